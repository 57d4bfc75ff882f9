"""What a data set of latents says of the images that it was encoded from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from diffusion_core.common.errors import DuetError

__all__ = ["LatentRecord"]


@dataclass(frozen=True)
class LatentRecord:
    """How latents were encoded, and so how they are decoded.

    Args:
        autoencoder: the folder of the autoencoder, in the form of diffusers. In a file of a store it is relative to it.
        sha256: the hash of the autoencoder, see `networks.autoencoder.Autoencoder`.
        scaling_factor: latents are scaling_factor (z - shift_factor).
        shift_factor: see there.
        sampled: whether z was drawn from the posterior of each image; otherwise it is the mean.
        seed: of these draws.
        image_shape: of the images, (h, w, c).
    """

    autoencoder: str
    sha256: str
    scaling_factor: float
    shift_factor: float
    sampled: bool
    seed: int
    image_shape: tuple[int, int, int]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], what: str) -> LatentRecord:
        """Return the record of plain data; further keys are ignored.

        Raises:
            DuetError: if a key is missing or of another type; `what` holds it.
        """
        try:
            record = cls(**{name: data[name] for name in cls.__dataclass_fields__})
            record = replace(record, image_shape=tuple(map(int, record.image_shape)))
            if isinstance(record.autoencoder, str) and isinstance(record.sha256, str):
                return replace(record, scaling_factor=float(record.scaling_factor))
        except (KeyError, TypeError, ValueError) as error:
            raise DuetError(f"{what}: its entry on latents is not valid ({error})") from error
        raise DuetError(f"{what}: its entry on latents is not valid")

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self) | {"image_shape": list(self.image_shape)}

    def found_from(self, directory: Path) -> LatentRecord:
        """Return the record with the whole path of the autoencoder, which is given relative to a store."""
        return replace(self, autoencoder=str((directory / self.autoencoder).resolve()))
