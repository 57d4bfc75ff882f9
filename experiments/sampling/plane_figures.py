"""Figures of models of the plane, whose images of one pixel are points, see `diffusion_core.images.points`.

States are drawn in the coordinates y = x_t / sqrt(alpha^2 + sigma^2), in which noise has unit variance at every level
and data lie where they are; `diffusion_core.model.flow_field` has the velocity in the same coordinates.

    denoising      states and estimates of x_0 along the way, a column for each noise level
    trajectories   the path of each sample from noise to data
    flow           the probability-flow velocity on a grid, for up to three classes
    generation     the samples as they move, with the last part of their paths, as an animation
    noising        data points at rising noise levels
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffusion_core.backend.interface import Network, StepCallback
from diffusion_core.common.random import Stream
from diffusion_core.data import to_uint8
from diffusion_core.diffusion.process import add_noise
from diffusion_core.images import render
from diffusion_core.images.points import Plane, class_colours
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.model.flow_field import flow_velocity, to_plane
from diffusion_core.model.noise_strip import to_visible, visible_rows, visible_timesteps
from diffusion_core.runs.run_directory import write_arrays
from diffusion_core.sampling import SamplerPlan

__all__ = ["CORNER", "PlaneTrajectory", "flow_figure", "format_ratio", "noising_figure"]

CORNER = "sigma/alpha"
# The plane is drawn to 2.5 standard deviations of the noise; data lie within 1.
_LIMIT = 2.5
_FLOW_LIMIT, _FLOW_POINTS, _FLOW_CLASSES = 1.4, 17, 3
_SHOWN, _PATHS = 512, 100
_PANEL, _FLOW_PANEL, _FRAME, _LARGE = 132, 216, 320, 420


class PlaneTrajectory:
    """Records the states and estimates of the first samples while a plan runs, and writes them as figures.

    Args:
        model: of images of one pixel.
        plan: about 10 of its rows stand in the strip, and at most 60 in the animation.
        network: computes the flow field; the one that is sampled.
        labels: the class of each sample.
        names: the name of each label, for captions.
    """

    def __init__(
        self,
        model: DiffusionModel,
        plan: SamplerPlan,
        network: Network,
        labels: NDArray,
        names: Mapping[int, str],
    ) -> None:
        self.model, self.plan, self.network, self.names = model, plan, network, names
        self.labels = np.asarray(labels)[:_SHOWN]
        self.strip_rows = visible_rows(plan, 10)
        self.animation_rows = np.unique(np.linspace(0, plan.rows - 1, min(plan.rows, 60)).astype(int))
        # By row: the states that the row leads to and the estimates of x_0 that it used, in the plane.
        self.states: dict[int, NDArray[np.float64]] = {}
        self.estimates: dict[int, NDArray[np.float64]] = {}
        # By row: the same for ten samples as pixels, as for images.
        self.pixels: dict[int, tuple[NDArray[np.uint8], NDArray[np.uint8]]] = {}

    @property
    def callback(self) -> StepCallback:
        """What `generate` calls after the recorded rows."""
        return StepCallback(self._record, frozenset([*map(int, self.strip_rows), *map(int, self.animation_rows)]))

    def _record(self, row: int, x: NDArray, estimate: NDArray) -> None:
        level, value_range = (self.plan.alpha[row + 1], self.plan.sigma[row + 1]), self.model.value_range
        self.states[row] = to_plane(x[:_SHOWN], *level, value_range)
        self.estimates[row] = to_plane(estimate[:_SHOWN], 1.0, 0.0, value_range)
        self.pixels[row] = to_visible(x[:10], *level, value_range), to_uint8(estimate[:10], value_range)

    def save(self, directory: Path, suffix: str = "") -> None:
        """Write denoising, trajectories and flow as ``.png``, ``generation<suffix>.gif`` and the states as ``.npz``."""
        plan, rows = self.plan, sorted(self.states)
        write_arrays(
            directory / f"trajectory{suffix}.npz",
            row=np.array(rows), sigma_alpha=np.array([plan.sigma[row + 1] / plan.alpha[row + 1] for row in rows]),
            x=np.stack([self.pixels[row][0] for row in rows]),
            estimate=np.stack([self.pixels[row][1] for row in rows]),
            points=np.stack([self.states[row] for row in rows]).astype(np.float32), labels=self.labels,
        )  # fmt: skip
        render.save_png(directory / f"denoising{suffix}.png", self._denoising())
        render.save_png(directory / f"trajectories{suffix}.png", self._trajectories())
        end = self.states[rows[-1]]
        flow = flow_figure(self.model, self.network, end, self._own_labels(len(end)), self.names)
        render.save_png(directory / f"flow{suffix}.png", flow)
        render.save_gif(directory / f"generation{suffix}.gif", self._frames())

    def _own_labels(self, count: int) -> NDArray:
        return self.labels[:count]

    def _colours(self, count: int) -> list[tuple[int, int, int]]:
        labels = self._own_labels(count)
        colours = class_colours(max(self.model.spec.num_classes, int(labels.max(initial=0))) + 1)
        return [colours[label] for label in labels]

    def _denoising(self) -> NDArray[np.uint8]:
        panels = [
            (
                caption,
                np.stack([
                    Plane(_PANEL, _LIMIT).dots(points[row], self._colours(len(points[row])), 1.3, 0.6).pixels()
                    for row in self.strip_rows
                ]),
            )
            for caption, points in (("x_t", self.states), ("estimate", self.estimates))
        ]  # fmt: skip
        heads = [(format_ratio(self.plan.alpha[row + 1], self.plan.sigma[row + 1]), 1) for row in self.strip_rows]
        return render.labelled_rows(panels, heads=heads, corner=CORNER)

    def _paths(self) -> NDArray[np.float64]:
        """Return the states of some samples at all rows of the animation, with shape (T, N, 2)."""
        return np.stack([self.states[row][:_PATHS] for row in self.animation_rows])

    def _trajectories(self) -> NDArray[np.uint8]:
        paths = self._paths()
        colours = self._colours(paths.shape[1])
        plane = Plane(_LARGE, _LIMIT, numbers=True).paths(paths, colours, 1.0, 0.5)
        return plane.dots(paths[0], (150, 154, 162), 1.6, 0.9).dots(paths[-1], colours, 2.4, 0.95).pixels()

    def _frames(self) -> list[NDArray[np.uint8]]:
        """Return the frames of the animation: every sample, and the last part of the paths of some."""
        paths, frames = self._paths(), []
        for k, row in enumerate(self.animation_rows):
            plane, tail = Plane(_FRAME, _LIMIT, numbers=True), paths[max(0, k - 12) : k + 1]
            if k:
                plane.paths(tail, self._colours(tail.shape[1]), 0.8, 0.35)
            points = self.states[row]
            frames.append(plane.dots(points, self._colours(len(points)), 1.6, 0.7).pixels())
        return frames


def flow_figure(
    model: DiffusionModel, network: Network, data: NDArray[np.float64], labels: NDArray, names: Mapping[int, str]
) -> NDArray[np.uint8]:
    """Return the probability-flow velocity at six noise levels, with a row for each of up to three classes.

    In each panel the length of an arrow grows with the square root of the speed, up to the distance of two arrows, so
    that slow places are seen too. Behind the arrows lie the points of the class, moved towards 0 as the noise level
    moves them.

    Args:
        model: of images of one pixel.
        network: of that model.
        data: points in the plane, such as samples.
        labels: the class of each point.
        names: the name of each label.
    """
    axis = np.linspace(-1, 1, _FLOW_POINTS) * _FLOW_LIMIT * (1 - 1 / _FLOW_POINTS)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    t = np.unique(visible_timesteps(model.process.schedule, 6))[::-1]
    levels = np.stack(model.process.schedule(t), axis=1)
    classes = np.unique(labels)[:_FLOW_CLASSES] if model.program.classes else np.array([0])
    half = (model.value_range[1] - model.value_range[0]) / 2
    colours = class_colours(max(model.spec.num_classes, int(classes.max())) + 1)
    rows = []
    for label in classes:
        own = data[labels == label] if model.program.classes else data
        panels = []
        for time, (alpha, sigma) in zip(t, levels, strict=True):
            velocity = flow_velocity(model, network, grid, time, int(label))
            speed = np.maximum(np.hypot(*velocity.T), 1e-12)
            length = (axis[1] - axis[0]) * np.sqrt(np.minimum(1.0, speed / np.percentile(speed, 98)))
            arrows = velocity * (length / speed)[:, None]
            behind = own * alpha / np.hypot(alpha, sigma / half)
            plane = Plane(_FLOW_PANEL, _FLOW_LIMIT).dots(behind, colours[label], 1.8, 0.25)
            panels.append(plane.arrows(grid, arrows, (70, 76, 88)).pixels())
        rows.append((_caption(int(label), names) if model.program.classes else "velocity", np.stack(panels)))
    return render.labelled_rows(rows, heads=[(format_ratio(*level), 1) for level in levels], corner=CORNER)


def _caption(label: int, names: Mapping[int, str]) -> str:
    name = names.get(label, str(label))
    return f"class {label}" if name == str(label) else name


def noising_figure(model: DiffusionModel, images: NDArray, labels: NDArray, seed: int) -> NDArray[np.uint8]:
    """Return a figure of data points without noise and at nine noise levels.

    Args:
        model: its schedule gives the noise levels.
        images: points as images in the value range of the model, with shape (N, 1, 1, 3).
        labels: the class of each.
        seed: of the noise.
    """
    levels = np.stack(model.process.schedule(visible_timesteps(model.process.schedule, 9)), axis=1)
    eps = Stream(seed, "picture/noise").normal(np.arange(len(images)), images.shape[1:])
    palette = class_colours(max(model.spec.num_classes, int(np.max(labels, initial=0))) + 1)
    colours = [palette[label] for label in labels]
    states = [to_plane(images, 1.0, 0.0, model.value_range)]
    states += [
        to_plane(
            add_noise(images, eps, np.full(len(eps), alpha), np.full(len(eps), sigma)), alpha, sigma, model.value_range
        )
        for alpha, sigma in levels
    ]
    panels = np.stack([Plane(_PANEL, _LIMIT).dots(points, colours, 1.3, 0.6).pixels() for points in states])
    heads = [("0", 1), *((format_ratio(*level), 1) for level in levels)]
    return render.labelled_rows([("x_t", panels)], heads=heads, corner=CORNER)


def format_ratio(alpha: float, sigma: float) -> str:
    """Return sigma/alpha as text."""
    ratio = sigma / alpha if alpha else np.inf
    return f"{ratio:.2g}" if ratio < 100 else f"{ratio:.0f}"
