r"""Editing: sampling that starts from images, or keeps a part of them.

    image to image    starts at a row r of a plan, from  x = alpha_r x_0 + sigma_r eps
    interpolation     starts at a row r, from a combination of the x of two images
    inpainting        replaces the known part by  alpha_s x_0 + sigma_s eps  after each row that leads to level s
    posterior         samples images that agree with a measurement, see `measurement`

The later the row, the more of an image remains. `strength`, the fraction of the rows to run, expresses this for any
number of steps. At strength 1, on a schedule that ends without signal, image to image is plain sampling with the same
noise.

Two images are combined along a line, ``(1 - w) a + w b``, which preserves the noise level if both have the same eps, or
along an arc, for images with noise of their own,

    slerp = sin((1 - w) angle)/sin(angle) a + sin(w angle)/sin(angle) b        angle between a and b, as vectors

which preserves the length if both have the same. If the plan after the row is deterministic and starts from the images'
own noise (`inversion`), each end of the interpolation reproduces its image.

Replacing the known part keeps it exactly, but the part around it was sampled before the replacement; `repaint` makes
the two consistent.

References:
    SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations (Meng et al., 2021), algorithm 1,
    https://arxiv.org/abs/2108.01073
    Denoising Diffusion Probabilistic Models (Ho et al., 2020), section 4.3 and figure 8, interpolation,
    https://arxiv.org/abs/2006.11239
    Denoising Diffusion Implicit Models (Song et al., 2020), section 5.3, spherical interpolation,
    https://arxiv.org/abs/2010.02502
    Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2020), inpainting by
    replacement, https://arxiv.org/abs/2011.13456
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.common.random import Stream
from diffusion_core.diffusion.process import add_noise
from diffusion_core.sampling.measurement import Measurement
from diffusion_core.sampling.plan import SamplerPlan

__all__ = [
    "MIXES",
    "Edit",
    "add_start_noise",
    "decreasing_timesteps",
    "image_to_image",
    "inpaint",
    "interpolate",
    "posterior",
    "start_row",
    "tail",
]

Array = NDArray[np.float64]

# Below this sine of the angle, images are combined along a line: it differs from the arc by less than its square.
_NO_ARC = 1e-6


@dataclass(frozen=True, eq=False)
class Edit:
    """What N samples start from and keep; `model.generate` runs it.

    Args:
        plan: the rows to run.
        index: of each sample in the streams of noise, with shape (N,).
        start: register 0 before the first row, with shape (N, H, W, C); None for pure noise.
        mask: 1 where an image is known and 0 elsewhere, with shape (N, H, W, 1) or (N, H, W, C); None: known nowhere.
        images: the known images, with shape (N, H, W, C).
        measurement: what the N samples agree with; None for nothing.
    """

    plan: SamplerPlan
    index: NDArray[np.int64]
    start: Array | None = None
    mask: Array | None = None
    images: Array | None = None
    measurement: Measurement | None = None

    def __repr__(self) -> str:
        start, mask = self.start is not None, self.mask is not None
        measured = "" if self.measurement is None else f", {self.measurement!r}"
        return f"Edit(plan={self.plan.name!r}, samples={len(self.index)}, start={start}, mask={mask}{measured})"


def start_row(plan: SamplerPlan, strength: float) -> int:
    """Return the row from which this fraction of a plan's rows remains, at least one row.

    Raises:
        DuetError: if strength is not a fraction.
    """
    if not 0 < strength <= 1:
        raise DuetError(
            f"mode.strength: {strength} was given; it must be more than 0 and at most 1, which is every row"
        )
    return plan.rows - max(1, round(strength * plan.rows))


def tail(make: Callable[..., SamplerPlan], strength: float) -> SamplerPlan:
    """Return the last rows of a plan, from the start of the nearest step.

    If all of these rows depend on earlier ones, a new plan over the same noise levels takes their place.

    Args:
        make: makes the plan; its keyword arguments override the sampler's own options.
        strength: the fraction of the rows.

    Raises:
        DuetError: if strength is not a fraction.
    """
    full = make()
    row = start_row(full, strength)
    if full.is_self_contained(row):
        return full.tail(row)
    nearest = sorted(range(full.rows), key=lambda other: abs(other - row))
    # The last row of a multistep solver, which leads to clean data, is often self-contained, but alone it is no step.
    inner = (other for other in nearest if 0 < other < full.rows - 1)
    if any(map(full.is_self_contained, inner)) or not _is_made_of_its_timesteps(make, full):
        return full.tail(next(filter(full.is_self_contained, nearest)))
    t = full.t[row:]
    new = _make_from_timesteps(make, full, decreasing_timesteps(t[~_is_stage(full)[row:]]))
    # Each row keeps the guidance scale that its timestep has in the full plan.
    return replace(new, guidance_scale=full.guidance_scale[row:][np.abs(new.t[:, None] - t).argmin(axis=1)])


def decreasing_timesteps(t: NDArray) -> list[float]:
    """Return the timesteps that are below all before them, as `spacing` takes them."""
    return t[np.append(True, t[1:] < np.minimum.accumulate(t)[:-1])].tolist()


def _make_from_timesteps(make: Callable[..., SamplerPlan], plan: SamplerPlan, t: list[float]) -> SamplerPlan:
    """Return the plan whose steps start at these timesteps and end where a plan does, without guidance."""
    noisy = plan.sigma[-1] > 0
    spacing = {"timesteps": t, "end": plan.sigma[-1] / plan.alpha[-1]} if noisy else t
    return make(steps=None, spacing=spacing, guidance_scale=1.0, guidance_convention="from_null", interval=None)


def _is_made_of_its_timesteps(make: Callable[..., SamplerPlan], plan: SamplerPlan) -> bool:
    """Return whether the timesteps at which its steps start reproduce the plan: the sampler moves and adds none."""
    return np.array_equal(_make_from_timesteps(make, plan, decreasing_timesteps(plan.t[~_is_stage(plan)])).t, plan.t)


def _is_stage(plan: SamplerPlan) -> NDArray[np.bool_]:
    """Return which rows continue a step rather than start one, with shape (N,).

    Such a row leads on from a register that it leaves unchanged: the x from which the step started.
    """
    kept = np.all(plan.state == np.eye(plan.registers), axis=2) & ~np.any(plan.denoised, axis=2) & (plan.noise == 0)
    return np.any(kept[:, 1:] & (plan.state[:, 0, 1:] != 0), axis=1)


def add_start_noise(plan: SamplerPlan, images: NDArray, index: NDArray, seed: int) -> Array:
    """Return images with the noise of a plan's first level, with shape (N, H, W, C).

    The eps is the starting noise of a sample with the same index; without signal the result equals that start.
    """
    eps = Stream(seed, "sample/start").normal(index, images.shape[1:])
    return add_noise(images.astype(np.float64), eps, plan.alpha[0], plan.sigma[0])


def image_to_image(plan: SamplerPlan, images: NDArray, seed: int) -> Edit:
    """Add the noise of a plan's first level to images, to sample from there.

    Args:
        plan: the last rows of a longer plan, see `tail`.
        images: one for each sample, in the value range of the data, with shape (N, H, W, C).
        seed: of the noise.
    """
    index = np.arange(len(images))
    return Edit(plan, index, add_start_noise(plan, images, index, seed))


def lerp(a: Array, b: Array, weight: Array) -> Array:
    """Interpolate from a to b along a line."""
    return (1.0 - weight) * a + weight * b


def slerp(a: Array, b: Array, weight: Array) -> Array:
    """Interpolate from a to b along an arc, or along the line if they have the same or opposite directions."""
    axes = tuple(range(1, a.ndim))
    a_length, b_length = (np.sqrt((x**2).sum(axes, keepdims=True)) for x in (a, b))
    # A vector of length 0 has no direction; such a pair has no arc either.
    with np.errstate(invalid="ignore", divide="ignore"):
        angle = np.arccos(np.clip((a * b).sum(axes, keepdims=True) / (a_length * b_length), -1.0, 1.0))
        arc = (np.sin((1.0 - weight) * angle) * a + np.sin(weight * angle) * b) / np.sin(angle)
    return np.where(np.sin(angle) > _NO_ARC, arc, lerp(a, b, weight))


MIXES: Mapping[str, Callable[[Array, Array, Array], Array]] = {"lerp": lerp, "slerp": slerp}


def interpolate(plan: SamplerPlan, first: NDArray, second: NDArray, count: int, mix: str = "lerp") -> Edit:
    """Interpolate from one image to another, both ends included; all samples of a pair have the noise of one index.

    Args:
        plan: the last rows of a longer plan, see `tail`.
        first: P images at the plan's first noise level, from `add_start_noise` or an inversion, with shape
            (P, H, W, C).
        second: the images to interpolate to, with the same shape.
        count: the number of samples for each pair, at least 2; those of one pair are consecutive.
        mix: one of `MIXES`.

    Raises:
        DuetError: for a count below 2 or an unknown mix.
    """
    if count < 2:
        raise DuetError(f"count: {count} was given; an interpolation has at least 2 samples, its ends")
    check_choice("mix", mix, MIXES)
    weight = np.tile(np.linspace(0.0, 1.0, count), len(first))[:, None, None, None]
    a, b = (np.repeat(x.astype(np.float64), count, axis=0) for x in (first, second))
    return Edit(plan, np.repeat(np.arange(len(first)), count), MIXES[mix](a, b, weight))


def inpaint(plan: SamplerPlan, images: NDArray, mask: ArrayLike) -> Edit:
    """Sample the unknown part of images, from noise.

    Args:
        plan: of a sampler with one register; `repaint` is made for inpainting.
        images: one for each sample, in the value range of the data, with shape (N, H, W, C).
        mask: 1 where they are known, 0 elsewhere; broadcast to (N, H, W, 1) or (N, H, W, C).

    Raises:
        DuetError: if the mask has another shape or other values, or the sampler has several registers.
    """
    plan.check_inpainting()
    height, width, channels = images.shape[1:]
    mask = np.asarray(mask, np.float64)
    try:
        mask = np.broadcast_to(mask, (len(images), height, width, 1 if mask.shape[-1:] == (1,) else channels))
    except ValueError as error:
        raise DuetError(f"mask: its shape is {mask.shape}, but the images are {images.shape[1:]} (h, w, c)") from error
    if not np.all((mask == 0) | (mask == 1)):
        raise DuetError("mask: it must be 1 where the image is known and 0 elsewhere")
    return Edit(plan, np.arange(len(images)), mask=mask, images=images)


def posterior(plan: SamplerPlan, measurement: Measurement) -> Edit:
    """Sample images that agree with a measurement, from noise.

    Raises:
        DuetError: if the method of the measurement is not defined for the plan.
    """
    measurement.check(plan)
    return Edit(plan, np.arange(len(measurement.y)), measurement=measurement)
