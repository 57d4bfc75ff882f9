"""Synthetic images of one shape each, from a distribution that is known exactly.

In units of the image's side, with u the uniform numbers of item i in stream ``"data/shapes"``::

    kind        uniform among circle, square, triangle, cross, ring, diamond; this is the class
    radius      uniform in [0.20, 0.38]
    centre      x and y uniform, independent, such that the circle of that radius keeps 0.04 from the border
    colour      hue uniform, saturation in [0.55, 1], value in [0.75, 1]; grey images use value alone
    background  grey, uniform in [0.02, 0.22]

With d the signed distance of a pixel to the edge of the shape, in pixels, the pixel is covered by the fraction
``clip(1/2 - d, 0, 1)``, which is antialiasing one pixel wide; it mixes colour and background by that fraction.
Item i depends on (seed, i) alone, and its scene does not depend on size and channels, so a larger data set begins
with the smaller one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.data.dataset import Dataset

__all__ = ["KINDS", "Scenes", "render_scenes", "sample_scenes", "shapes"]

Array = NDArray[np.float64]

_CHUNK = 256


def _circle(x: Array, y: Array, r: Array) -> Array:
    return np.hypot(x, y) - r


def _square(x: Array, y: Array, r: Array) -> Array:
    return np.maximum(np.abs(x), np.abs(y)) - r / math.sqrt(2)


def _triangle(x: Array, y: Array, r: Array) -> Array:
    # Three sides at distance r / 2 from the centre, one corner at the top; y points down.
    return np.maximum(y, math.sqrt(0.75) * np.abs(x) - y / 2) - r / 2


def _cross(x: Array, y: Array, r: Array) -> Array:
    # Two bars of half width r / 4 whose ends lie on the circle.
    x, y = np.abs(x), np.abs(y)
    end, side = math.sqrt(15 / 16) * r, r / 4
    return np.minimum(np.maximum(x - end, y - side), np.maximum(y - end, x - side))


def _ring(x: Array, y: Array, r: Array) -> Array:
    return np.abs(np.hypot(x, y) - 0.75 * r) - 0.25 * r


def _diamond(x: Array, y: Array, r: Array) -> Array:
    # Twice as high as wide, so that it is not a rotated square.
    return (2 * np.abs(x) + np.abs(y) - r) / math.sqrt(5)


# The signed distance to the edge, negative inside, of each shape at the origin within radius r.
KINDS: dict[str, Callable[[Array, Array, Array], Array]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
    "ring": _ring,
    "diamond": _diamond,
}


@dataclass(frozen=True, eq=False)
class Scenes:
    """The content of the images, in units of the image's side.

    Args:
        kinds: indices into `KINDS`, with shape (N,).
        centres: x to the right and y down, with shape (N, 2).
        radii: with shape (N,).
        colours: hue, saturation and value in [0, 1], with shape (N, 3).
        backgrounds: grey values in [0, 1], with shape (N,).
    """

    kinds: NDArray[np.int64]
    centres: Array
    radii: Array
    colours: Array
    backgrounds: Array


def sample_scenes(count: int, seed: int) -> Scenes:
    """Return the first `count` scenes of the distribution."""
    u = Stream(seed, "data/shapes").uniform(np.arange(count), 8)
    radii = 0.20 + 0.18 * u[:, 1]
    reach = radii[:, None] + 0.04
    return Scenes(
        kinds=(u[:, 0] * len(KINDS)).astype(np.int64),
        centres=reach + (1 - 2 * reach) * u[:, 2:4],
        radii=radii,
        colours=np.array([0.0, 0.55, 0.75]) + np.array([1.0, 0.45, 0.25]) * u[:, 4:7],
        backgrounds=0.02 + 0.20 * u[:, 7],
    )


def render_scenes(scenes: Scenes, size: int, channels: int) -> NDArray[np.uint8]:
    """Return images of scenes, with shape (N, size, size, channels)."""
    images = np.empty((len(scenes.kinds), size, size, channels), np.uint8)
    axis = (np.arange(size) + 0.5) / size
    for start in range(0, len(images), _CHUNK):
        part = slice(start, start + _CHUNK)
        x = axis[None, None, :] - scenes.centres[part, 0, None, None]
        y = axis[None, :, None] - scenes.centres[part, 1, None, None]
        r = scenes.radii[part, None, None]
        distances = np.empty((*np.broadcast_shapes(x.shape, y.shape),))
        for k, edge in enumerate(KINDS.values()):
            here = scenes.kinds[part] == k
            distances[here] = edge(x[here], y[here], r[here])
        cover = np.clip(0.5 - size * distances, 0.0, 1.0)[..., None]
        ink = _rgb(scenes.colours[part]) if channels == 3 else scenes.colours[part, 2:]
        ground = scenes.backgrounds[part, None, None, None]
        images[part] = np.floor(255 * (ground + cover * (ink[:, None, None, :] - ground)) + 0.5)
    return images


def shapes(count: int = 4096, size: int = 32, channels: int = 3, seed: int = 0) -> Dataset:
    """Return the first `count` images of the distribution; the class is the kind of shape.

    Args:
        count: the number of images.
        size: height and width in pixels, at least 8, so that the kinds can be told apart.
        channels: 3 for colour, 1 for grey.
        seed: the seed of the stream.

    Raises:
        DuetError: a number is out of range.
    """
    if count < 1 or size < 8 or channels not in (1, 3):
        raise DuetError(
            f"shapes: {count} images of size {size} with {channels} channels were requested; "
            f"the count must be at least 1, the size at least 8 and the channels 1 or 3"
        )
    scenes = sample_scenes(count, seed)
    return Dataset(render_scenes(scenes, size, channels), scenes.kinds, tuple(KINDS), "shapes")


def _rgb(colours: Array) -> Array:
    """Return red, green and blue of hue, saturation and value, all in [0, 1] with shape (N, 3)."""
    hue, saturation, value = colours[:, 0:1], colours[:, 1:2], colours[:, 2:3]
    k = (np.array([5.0, 3.0, 1.0]) + 6.0 * hue) % 6.0
    return value * (1.0 - saturation * np.clip(np.minimum(k, 4.0 - k), 0.0, 1.0))
