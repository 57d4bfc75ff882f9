r"""Editing: sampling that starts from pictures, or keeps a part of them.

    image to image    starts at a row r of a plan, from  x = alpha_r x_0 + sigma_r eps
    interpolation     starts at a row r, from a mixture of two pictures' x
    inpainting        lays  alpha_s x_0 + sigma_s eps  over the known part after each row that leads to level s

The later the row, the more of a picture stays: `strength`, the share of the rows that are run, says it for any number
of steps. At strength 1 on a schedule that ends without signal, image to image is plain sampling, with its very noise.

Two pictures are mixed along a line, ``(1 - s) a + s b``, which keeps the level where both have the same eps, or along
an arc through noise that both have for themselves,

    slerp = sin((1 - s) angle)/sin(angle) a + sin(s angle)/sin(angle) b        angle between a and b, as vectors

which keeps the length where that of both is the same. Where the plan after the row is deterministic and what it starts
from is the pictures' own noise (`inversion`), either end gives its picture back.

Laying the known part over the sampled one (replacement) keeps it exactly, but what is around it was sampled before it
was seen; `repaint` lets the two agree.

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

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.common.random import Stream
from diffusion_core.diffusion.process import add_noise
from diffusion_core.sampling.plan import SamplerPlan

__all__ = [
    "MIXES",
    "Edit",
    "decreasing_timesteps",
    "image_to_image",
    "inpaint",
    "interpolate",
    "add_start_noise",
    "start_row",
    "tail",
]

Array = NDArray[np.float64]

# The sine of the least angle along which pictures are mixed on an arc; the line differs by less than its square.
_NO_ARC = 1e-6


@dataclass(frozen=True, eq=False)
class Edit:
    """What N samples are made of, beside noise; `draw` runs it.

    Args:
        plan: the rows that are run.
        index: of each sample in the streams of its noise, with shape (N,).
        start: register 0 before the first row, with shape (N, H, W, C); None is noise alone.
        mask: where a picture is known, 1, or not, 0, with shape (N, H, W, 1) or (N, H, W, C); None is nowhere.
        pictures: what is known, with shape (N, H, W, C).
    """

    plan: SamplerPlan
    index: NDArray[np.int64]
    start: Array | None = None
    mask: Array | None = None
    pictures: Array | None = None


def start_row(plan: SamplerPlan, strength: float) -> int:
    """The row at which this share of a plan's rows begins, at least one of them.

    Raises:
        DuetError: if it is no share.
    """
    if not 0 < strength <= 1:
        raise DuetError(f"strength: {strength} was given; it must be more than 0 and at most 1, which is every row")
    return plan.rows - max(1, round(strength * plan.rows))


def tail(make: Callable[..., SamplerPlan], strength: float) -> SamplerPlan:
    """The last rows of a plan, from the start of the step that is nearest; or where all of them need earlier ones, a
    plan of the same levels that begins there.

    Args:
        make: makes the plan; its keywords take the place of the sampler's own options.
        strength: the share of the rows.

    Raises:
        DuetError: if it is no share.
    """
    whole = make()
    row = start_row(whole, strength)
    if whole.is_self_contained(row):
        return whole.tail(row)
    nearest = sorted(range(whole.rows), key=lambda other: abs(other - row))
    # The last row of a multistep solver, which leads to clean data, is often one of its own: that is no step of many.
    inner = (other for other in nearest if 0 < other < whole.rows - 1)
    if any(map(whole.is_self_contained, inner)) or not _begins(make, whole):
        return whole.tail(next(filter(whole.is_self_contained, nearest)))
    t = whole.t[row:]
    begun = _of_levels(make, decreasing_timesteps(t[~_is_stage(whole)[row:]]))
    # Each row keeps the guidance that its level has in the whole.
    return replace(begun, guidance_scale=whole.guidance_scale[row:][np.abs(begun.t[:, None] - t).argmin(axis=1)])


def decreasing_timesteps(t: NDArray) -> list[float]:
    """The levels that are below all before them, which `spacing` takes."""
    return t[np.append(True, t[1:] < np.minimum.accumulate(t)[:-1])].tolist()


def _of_levels(make: Callable[..., SamplerPlan], levels: list[float]) -> SamplerPlan:
    """The plan whose steps start at these levels, not guided."""
    return make(steps=None, spacing=levels, guidance_scale=1.0, guidance_convention="from_null", interval=None)


def _begins(make: Callable[..., SamplerPlan], whole: SamplerPlan) -> bool:
    """Whether a plan is that of the levels at which its steps start, none of them moved or added by the sampler."""
    return np.array_equal(_of_levels(make, decreasing_timesteps(whole.t[~_is_stage(whole)])).t, whole.t)


def _is_stage(plan: SamplerPlan) -> NDArray[np.bool_]:
    """Which rows go on with a step rather than start one, with shape (N,): they lead on from a register that they
    leave as it is, the picture that the step has started from.
    """
    kept = np.all(plan.state == np.eye(plan.registers), axis=2) & ~np.any(plan.denoised, axis=2) & (plan.noise == 0)
    return np.any(kept[:, 1:] & (plan.state[:, 0, 1:] != 0), axis=1)


def add_start_noise(plan: SamplerPlan, pictures: NDArray, index: NDArray, seed: int) -> Array:
    """Pictures with the noise of a plan's first level, with shape (N, H, W, C).

    The eps is that from which a sample of the same index starts, so that without signal this is its start.
    """
    eps = Stream(seed, "sample/start").normal(index, pictures.shape[1:])
    return add_noise(pictures.astype(np.float64), eps, plan.alpha[0], plan.sigma[0])


def image_to_image(plan: SamplerPlan, pictures: NDArray, seed: int) -> Edit:
    """Pictures of the first level of a plan, which is the end of a longer one, sampled from there.

    Args:
        plan: see `tail`.
        pictures: one for each sample, in the range of the data, with shape (N, H, W, C).
        seed: of the noise.
    """
    index = np.arange(len(pictures))
    return Edit(plan, index, add_start_noise(plan, pictures, index, seed))


def lerp(a: Array, b: Array, share: Array) -> Array:
    """From a to b along a line."""
    return (1.0 - share) * a + share * b


def slerp(a: Array, b: Array, share: Array) -> Array:
    """From a to b along an arc; along the line where they have one direction."""
    axes = tuple(range(1, a.ndim))
    a_length, b_length = (np.sqrt((x**2).sum(axes, keepdims=True)) for x in (a, b))
    # Zero lengths have no direction: then, as where both point the same way or away from each other, there is no arc.
    with np.errstate(invalid="ignore", divide="ignore"):
        angle = np.arccos(np.clip((a * b).sum(axes, keepdims=True) / (a_length * b_length), -1.0, 1.0))
        arc = (np.sin((1.0 - share) * angle) * a + np.sin(share * angle) * b) / np.sin(angle)
    return np.where(np.sin(angle) > _NO_ARC, arc, lerp(a, b, share))


MIXES: Mapping[str, Callable[[Array, Array, Array], Array]] = {"lerp": lerp, "slerp": slerp}


def interpolate(plan: SamplerPlan, first: NDArray, second: NDArray, count: int, mix: str = "lerp") -> Edit:
    """From one picture to another in so many samples, both ends included; all of a pair have the noise of one index.

    Args:
        plan: see `tail`.
        first: pictures at the plan's first level, as `add_start_noise` or an inversion gives them, with shape (P, H, W, C).
        second: where each leads, with the same shape.
        count: samples of each pair, at least 2; they follow each other.
        mix: one of `MIXES`.

    Raises:
        DuetError: if count or mix do not fit.
    """
    if count < 2:
        raise DuetError(f"count: {count} was given; from one picture to another there are at least 2")
    if mix not in MIXES:
        raise one_of("mix", mix, MIXES)
    share = np.tile(np.linspace(0.0, 1.0, count), len(first))[:, None, None, None]
    a, b = (np.repeat(x.astype(np.float64), count, axis=0) for x in (first, second))
    return Edit(plan, np.repeat(np.arange(len(first)), count), MIXES[mix](a, b, share))


def inpaint(plan: SamplerPlan, pictures: NDArray, mask: ArrayLike) -> Edit:
    """Sample what is not known of pictures, from noise.

    Args:
        plan: of a sampler that keeps one picture; `repaint` is made for it.
        pictures: one for each sample, in the range of the data, with shape (N, H, W, C).
        mask: 1 where they are known, 0 where not, to be broadcast to (N, H, W, 1) or (N, H, W, C).

    Raises:
        DuetError: if the mask is of another shape or has other numbers, or the sampler keeps more pictures than one.
    """
    plan.check_inpainting()
    height, width, channels = pictures.shape[1:]
    mask = np.asarray(mask, np.float64)
    try:
        mask = np.broadcast_to(mask, (len(pictures), height, width, 1 if mask.shape[-1:] == (1,) else channels))
    except ValueError as error:
        raise DuetError(
            f"mask: its shape is {mask.shape}, but the pictures are {pictures.shape[1:]} (h, w, c)"
        ) from error
    if not np.all((mask == 0) | (mask == 1)):
        raise DuetError("mask: it must be 1 where the picture is known and 0 where not")
    return Edit(plan, np.arange(len(pictures)), mask=mask, pictures=pictures)
