"""What a data set of latents says of the images that it was encoded from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from diffusion_core.common.errors import DuetError

__all__ = ["SCALING", "LatentRecord"]

# The fields of an autoencoder that say how latents follow from z.
SCALING = ("scaling_factor", "shift_factor", "latents_mean", "latents_std", "image_range")


@dataclass(frozen=True)
class LatentRecord:
    """How latents were encoded, and so how they are decoded.

    Args:
        autoencoder: the folder of the autoencoder, in the form of diffusers. In a file of a store it is relative to it.
        sha256: the hash of the autoencoder, see `networks.autoencoder.Autoencoder`.
        scaling_factor: see `networks.autoencoder`, as for the following.
        shift_factor: see there.
        sampled: whether z was drawn from the posterior of each image; otherwise it is the mean.
        seed: of these draws.
        image_shape: of the images, (h, w, c).
        latents_mean: of each channel; () for a shift_factor.
        latents_std: of each channel.
        image_range: of the images that the autoencoder takes.
    """

    autoencoder: str
    sha256: str
    scaling_factor: float
    shift_factor: float
    sampled: bool
    seed: int
    image_shape: tuple[int, int, int]
    latents_mean: tuple[float, ...] = ()
    latents_std: tuple[float, ...] = ()
    image_range: tuple[float, float] = (-1.0, 1.0)

    @property
    def scaling(self) -> dict[str, Any]:
        """How latents follow from z: fields of an `AutoencoderSpec`."""
        return {name: getattr(self, name) for name in SCALING}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], what: str) -> LatentRecord:
        """Return the record of plain data; further keys are ignored.

        Raises:
            DuetError: if a key is missing or of another type; `what` holds it.
        """
        try:
            # Files of before have one factor and one shift, and no entry of the fields with a default.
            known = {f.name: data[f.name] for f in fields(cls) if f.default is MISSING or f.name in data}
            record = cls(**known)
            record = replace(record, image_shape=tuple(map(int, record.image_shape)))
            for name in ("latents_mean", "latents_std", "image_range"):
                record = replace(record, **{name: tuple(map(float, getattr(record, name)))})
            if isinstance(record.autoencoder, str) and isinstance(record.sha256, str):
                return replace(record, scaling_factor=float(record.scaling_factor))
        except (KeyError, TypeError, ValueError) as error:
            raise DuetError(f"{what}: its entry on latents is not valid ({error})") from error
        raise DuetError(f"{what}: its entry on latents is not valid")

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def found_from(self, directory: Path) -> LatentRecord:
        """Return the record with the whole path of the autoencoder, which is given relative to a store."""
        return replace(self, autoencoder=str((directory / self.autoencoder).resolve()))
