"""Figures of noisy images: the forward process on a few images, and the states of a sampler on its way.

Images are drawn as `diffusion_core.model.noise_strip` makes noise visible, with sigma/alpha above each column.
Images of one pixel are points of the plane and are drawn by `plane_figures`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from diffusion_core.backend.interface import Network, StepCallback
from diffusion_core.common.random import Stream
from diffusion_core.data import Loader, to_uint8
from diffusion_core.diffusion.process import add_noise
from diffusion_core.images import render
from diffusion_core.images.channels import as_pictures
from diffusion_core.images.points import is_point
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.model.noise_strip import to_visible, visible_rows, visible_timesteps
from diffusion_core.networks.own_call import samples_to_images
from diffusion_core.runs.run_directory import write_arrays
from diffusion_core.sampling import SamplerPlan
from experiments.sampling.plane_figures import CORNER, PlaneTrajectory, format_ratio, noising_figure
from experiments.sampling.sheet import sheet_columns

__all__ = ["ImageTrajectory", "Trajectory", "make_trajectory", "noising_strip"]


class Trajectory(Protocol):
    """Records the first samples while a plan runs, and writes figures of them."""

    @property
    def callback(self) -> StepCallback:
        """What `generate` calls after the recorded rows."""

    def save(self, directory: Path, suffix: str = "") -> None:
        """Write the figures."""


def make_trajectory(
    model: DiffusionModel, plan: SamplerPlan, network: Network, labels: NDArray, names: Mapping[int, str]
) -> Trajectory:
    """Return the recorder of samples with these labels and their names: of images, or of points of the plane."""
    if is_point(model.spec.image_shape):
        return PlaneTrajectory(model, plan, network, labels, names)
    return ImageTrajectory(model, plan)


class ImageTrajectory:
    """Records the states and estimates of the first samples while a plan runs, and writes them as figures.

    Args:
        model: what is sampled from.
        plan: about 10 of its rows stand in the strip, and at most 60 in the animation.
    """

    def __init__(self, model: DiffusionModel, plan: SamplerPlan) -> None:
        self.model, self.plan = model, plan
        self.strip_rows = visible_rows(plan, 10)
        self.animation_rows = np.unique(np.linspace(0, plan.rows - 1, min(plan.rows, 60)).astype(int))
        # By row: the state that the row leads to, and the estimate of x_0 that it used.
        self.frames: dict[int, tuple[NDArray[np.uint8], NDArray[np.uint8]]] = {}

    @property
    def callback(self) -> StepCallback:
        """What `generate` calls after the recorded rows."""
        rows = frozenset([*map(int, self.strip_rows), *map(int, self.animation_rows)])
        return StepCallback(self._record, rows)

    def _record(self, row: int, x: NDArray, estimate: NDArray) -> None:
        level, value_range = (self.plan.alpha[row + 1], self.plan.sigma[row + 1]), self.model.value_range
        x, estimate = as_pictures(x[:100]), as_pictures(estimate[:10])
        self.frames[row] = to_visible(x, *level, value_range), to_uint8(estimate, value_range)

    def save(self, directory: Path, suffix: str = "") -> None:
        """Write ``trajectory<suffix>.npz``, ``denoising<suffix>.png`` and ``generation<suffix>.gif``.

        The first has, for the first ten samples, `x` and `estimate` as uint8 with shape (rows, 10, h, w, c), and for
        each recorded row its number `row` and the ratio `sigma_alpha` that it leads to.
        """
        plan, frames, rows = self.plan, self.frames, sorted(self.frames)
        write_arrays(
            directory / f"trajectory{suffix}.npz",
            row=np.array(rows), sigma_alpha=np.array([plan.sigma[row + 1] / plan.alpha[row + 1] for row in rows]),
            x=np.stack([frames[row][0][:10] for row in rows]), estimate=np.stack([frames[row][1] for row in rows]),
        )  # fmt: skip
        scale = max(1, 64 // self.model.spec.image_size)
        strips = [
            (name, np.concatenate([frames[row][i][:1] for row in self.strip_rows]))
            for i, name in enumerate(("x_t", "estimate"))
        ]
        heads = [(format_ratio(plan.alpha[row + 1], plan.sigma[row + 1]), 1) for row in self.strip_rows]
        sheet = render.labelled_rows(strips, scale=scale, heads=heads, corner=CORNER)
        render.save_png(directory / f"denoising{suffix}.png", sheet)
        columns = sheet_columns(self.model.spec.num_classes)
        grids = [render.grid(frames[row][0], columns, scale=max(1, scale // 2)) for row in self.animation_rows]
        render.save_gif(directory / f"generation{suffix}.gif", grids)


def noising_strip(model: DiffusionModel, loader: Loader, seed: int) -> NDArray[np.uint8]:
    """Return a figure of the first three images of the data, each without noise and at nine noise levels.

    Points of the plane are five hundred.

    Args:
        model: its schedule gives the noise levels.
        loader: the data, in the value range of the model.
        seed: of the noise.
    """
    if is_point(model.spec.image_shape):
        batch = loader.batch(0, 500)
        return noising_figure(model, batch.pixels, batch.labels, seed)
    images = samples_to_images(loader.batch(0, 3).pixels, "channels_last")
    levels = np.stack(model.process.schedule(visible_timesteps(model.process.schedule, 9)), axis=1)
    rows = []
    for k, image in enumerate(images[:3]):
        eps = Stream(seed, "picture/noise").normal([k], image.shape)[0]
        states = as_pictures(np.stack([image, *(add_noise(image, eps, *level) for level in levels)]))
        noisy = [to_visible(state, *level, model.value_range) for state, level in zip(states[1:], levels, strict=True)]
        rows.append(("" if k else "x_t", np.stack([to_uint8(states[0], model.value_range), *noisy])))
    heads = [("0", 1), *((format_ratio(*level), 1) for level in levels)]
    return render.labelled_rows(rows, scale=max(1, 64 // model.spec.image_size), heads=heads, corner=CORNER)
