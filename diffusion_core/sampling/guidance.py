r"""The guidance weight in the conventions that people use, and in that of a plan.

A plan uses the first of these conventions; a weight tuned with another one is converted. With the network's output c
for the class and u without class, or of a weaker network,

    convention   guided output      unguided   used by
    from_null    u + w (c - u)      w = 1      Imagen, diffusers, EDM2, denoising-diffusion-pytorch, and Duet
    from_class   c + w (c - u)      w = 0      smalldiffusion
    difference   (1 + w) c - w u    w = 0      Classifier-Free Diffusion Guidance itself, flow_matching

The last two are the same number written in two ways, one less than the first. "w = 1" therefore means no guidance in
some papers and doubled guidance in others.

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

# From a weight in some convention to the weight w of a plan, u + w (c - u).
CONVENTIONS: Mapping[str, Callable[[Array], Array]] = {
    "from_null": lambda w: w,
    "from_class": lambda w: 1.0 + w,
    "difference": lambda w: 1.0 + w,
}


def convert(weight: ArrayLike, convention: str) -> Array:
    """Return the w of u + w (c - u) for a weight in another convention.

    Raises:
        DuetError: for an unknown convention.

    Example:
        >>> float(convert(1.5, "from_class"))
        2.5
    """
    if not isinstance(convention, str) or convention not in CONVENTIONS:
        raise one_of("sampler.guidance_convention", convention, CONVENTIONS)
    return CONVENTIONS[convention](np.asarray(weight, np.float64))


def per_row(weight: GuidanceScale, rows: int, convention: str = "from_null") -> Array:
    """Return the weight of each row in the convention of a plan, with shape (rows,).

    Args:
        weight: one number, one per row, or a ramp: its first and its last weight, linear between them.
        rows: of the plan.
        convention: of the weight.

    Raises:
        DuetError: for an unknown convention, or another number of weights than rows.

    Example:
        >>> per_row({"first": 1, "last": 4}, rows=4).tolist()
        [1.0, 2.0, 3.0, 4.0]
    """
    original = weight
    try:
        if isinstance(weight, bool):
            raise ValueError
        if isinstance(weight, Mapping):
            if set(weight) != {"first", "last"}:
                raise ValueError
            weight = np.linspace(float(weight["first"]), float(weight["last"]), rows)
        weights = np.broadcast_to(np.asarray(weight, np.float64), (rows,))
        if not np.all(np.isfinite(weights)):
            raise ValueError
    except (TypeError, ValueError) as error:
        raise DuetError(
            f"sampler.guidance_scale: {original!r} was given; it must be a finite number, one for each of {rows} rows, "
            "or a ramp such as {first: 1, last: 4}"
        ) from error
    return np.array(convert(weights, convention))
