"""Networks by name, as ``configs/model`` has them."""

from __future__ import annotations

from typing import Any

from diffusion_core.networks import NetworkSpec, make_spec
from experiments.runtime.options import read_option

__all__ = ["network"]


def network(name: str, **changes: Any) -> NetworkSpec:
    """Return the network of ``configs/model/NAME.yaml``, with some options changed.

    Args:
        name: for example ``"digits"``, ``"shapes"``, ``"ddpm_cifar10"`` or ``"adm_64"``.
        changes: options of its architecture, such as ``num_classes=0``.

    Raises:
        DuetError: for a name or an option that does not exist, or options that do not fit together.

    Example:
        >>> network("digits").image_shape
        (8, 8, 1)
        >>> network("digits", channels=16, norm_groups=4).channels
        16
    """
    options = read_option("model", name, what="network")
    # A file starts from the schema of its architecture: `/architecture@_here_: unet`.
    (architecture,) = (entry["/architecture@_here_"] for entry in options.pop("defaults") if isinstance(entry, dict))
    return make_spec(architecture, **options | changes)
