r"""The weight of guidance as people write it, and as a plan has it.

A plan has one convention, the first; a weight that was tuned with another one is converted. With the network's output
c of the class and u of no class, or of a weaker network,

    convention   guided output      unguided   who counts so
    from_null    u + w (c - u)      w = 1      Imagen, diffusers, EDM2, denoising-diffusion-pytorch, and Duet
    from_class   c + w (c - u)      w = 0      smalldiffusion
    difference   (1 + w) c - w u    w = 0      Classifier-Free Diffusion Guidance itself, flow_matching

The last two are one number that is written in two ways, one less than the first: "w = 1" is no guidance at all for some
and the class counted twice for others.

References:
    Classifier-Free Diffusion Guidance (Ho & Salimans, 2022), eq. 6, https://arxiv.org/abs/2207.12598
    Photorealistic Text-to-Image Diffusion Models with Deep Language Understanding (Saharia et al., 2022), section 2.2,
    https://arxiv.org/abs/2205.11487
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_core.common.errors import DuetError, one_of

__all__ = ["CONVENTIONS", "GuidanceScale", "convert", "per_row"]

Array = NDArray[np.float64]

# One weight, one for each row, or the first and the last of a ramp: {"first": 1, "last": 4}.
GuidanceScale = ArrayLike | Mapping[str, float]

# From a weight in some convention to the same in that of a plan, u + w (c - u).
CONVENTIONS: Mapping[str, Callable[[Array], Array]] = {
    "from_null": lambda w: w,
    "from_class": lambda w: 1.0 + w,
    "difference": lambda w: 1.0 + w,
}


def convert(weight: ArrayLike, convention: str) -> Array:
    """The w of u + w (c - u) that does what `weight` does in another convention.

    Raises:
        DuetError: for a convention that does not exist.
    """
    if convention not in CONVENTIONS:
        raise one_of("sampler.guidance_convention", convention, CONVENTIONS)
    return CONVENTIONS[convention](np.asarray(weight, np.float64))


def per_row(weight: GuidanceScale, rows: int, convention: str = "from_null") -> Array:
    """The weight of each row in the convention of a plan, with shape (rows,).

    Args:
        weight: one number, one per row, or a ramp: its first and its last weight, with steps of equal length between.
        rows: of the plan.
        convention: of the weight.

    Raises:
        DuetError: for an unknown convention, or weights that do not fit the rows.
    """
    given = weight
    try:
        if isinstance(weight, Mapping):
            if set(weight) != {"first", "last"}:
                raise ValueError
            weight = np.linspace(float(weight["first"]), float(weight["last"]), rows)
        weights = np.broadcast_to(np.asarray(weight, np.float64), (rows,))
    except (TypeError, ValueError) as error:
        raise DuetError(
            f"sampler.guidance_scale: {given!r} was given; it must be a number, one for each of {rows} rows, "
            "or a ramp such as {first: 1, last: 4}"
        ) from error
    return np.array(convert(weights, convention))
