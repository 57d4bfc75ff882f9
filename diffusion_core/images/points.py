"""Draw points of the plane: scatter plots, paths and arrows.

An image of one pixel with three channels is a point (x, y): red is x, green is y, both from -1 (0) to 1 (255); blue is
ignored. `diffusion_core.data.toys` makes such data. These images are drawn as points, because a square of colour does
not show where a point lies.

Coordinates have shape (N, 2), x to the right and y up. A `Plane` is drawn at several times its size and then reduced,
which smooths all edges. Later drawings cover earlier ones.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from diffusion_core.common.errors import DuetError

__all__ = ["Plane", "class_colours", "is_point", "panels", "point_coordinates", "scatter", "shifts"]

Colour = tuple[int, int, int]

INK: Colour = (56, 60, 68)
_PAPER, _GRID, _FRAME = (252, 252, 253), (232, 234, 238), (186, 190, 198)
# Colours that differ in hue and in lightness.
_COLOURS: tuple[Colour, ...] = (
    (31, 95, 191), (226, 108, 20), (28, 140, 92), (200, 48, 84), (124, 80, 190), (150, 106, 40), (20, 150, 176),
    (214, 84, 170), (110, 128, 24), (90, 100, 120),
)  # fmt: skip
_OVERSAMPLING = 3
_MOST_NAMES = 12


def is_point(shape: Sequence[int]) -> bool:
    """Return whether an image of this shape (h, w, c) is a point of the plane."""
    return tuple(shape[-3:]) == (1, 1, 3)


def point_coordinates(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the points, with shape (N, 2), of uint8 images with shape (N, 1, 1, 3).

    Example:
        >>> point_coordinates(np.array([[[[255, 0, 128]]]], np.uint8))
        array([[ 1., -1.]])
    """
    return images[:, 0, 0, :2] / 127.5 - 1.0


def class_colours(count: int) -> list[Colour]:
    """Return a colour for each of `count` classes; many classes get neighbouring hues of alternating lightness."""
    if count <= len(_COLOURS):
        return list(_COLOURS[:count])
    hues = [colorsys.hls_to_rgb(k / count, (0.36, 0.5)[k % 2], 0.68) for k in range(count)]
    return [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in hues]


class Plane:
    """A square drawing of the plane, from -limit to limit in both directions.

    Args:
        size: height and width in pixels.
        limit: the largest coordinate.
        numbers: whether to write -1, 0 and 1 on the axes.
    """

    def __init__(self, size: int = 240, limit: float = 1.25, numbers: bool = False) -> None:
        if size < 16 or not limit > 0:
            raise DuetError(f"plane: size {size} and limit {limit} were given; they must be at least 16 and above 0")
        self.size, self.limit = size, limit
        self._scale = size * _OVERSAMPLING
        self.image = Image.new("RGB", (self._scale, self._scale), _PAPER)
        self._draw = ImageDraw.Draw(self.image, "RGBA")
        for value in range(math.ceil(-limit), math.floor(limit) + 1):
            (at,), (end,) = self._pixels([[value, value]]), self._pixels([[limit, -limit]])
            self._draw.line([(at[0], 0), (at[0], end[1])], fill=_GRID, width=_OVERSAMPLING)
            self._draw.line([(0, at[1]), (end[0], at[1])], fill=_GRID, width=_OVERSAMPLING)
        if numbers:
            self._write_numbers()

    def _write_numbers(self) -> None:
        font = ImageFont.load_default(size=11 * _OVERSAMPLING)
        gap = 4 * _OVERSAMPLING
        for value in (-1, 0, 1):
            ((x, y),) = self._pixels([[value, value]])
            self._draw.text((x, self._scale - gap), f"{value}", fill=INK, font=font, anchor="mb")
            self._draw.text((gap, y), f"{value}", fill=INK, font=font, anchor="lm")

    def _pixels(self, points: ArrayLike) -> NDArray[np.float64]:
        """Return the positions of points in the oversampled drawing."""
        unit = np.asarray(points, np.float64) / self.limit
        return (np.stack([1 + unit[..., 0], 1 - unit[..., 1]], axis=-1) / 2) * self._scale

    def dots(
        self, points: ArrayLike, colours: Sequence[Colour] | Colour = INK, radius: float = 2.0, opacity: float = 0.75
    ) -> Plane:
        """Draw points as discs.

        Args:
            points: with shape (N, 2).
            colours: one for each point, or one for all.
            radius: in pixels.
            opacity: from 0 to 1.
        """
        r = radius * _OVERSAMPLING
        for (x, y), colour in zip(*self._visible(points, colours), strict=True):
            self._draw.ellipse((x - r, y - r, x + r, y + r), fill=(*colour, round(255 * opacity)))
        return self

    def _visible(
        self, points: ArrayLike, colours: Sequence[Colour] | Colour
    ) -> tuple[NDArray[np.float64], list[Colour]]:
        """Return the pixels of the points inside the drawing, and the colour of each."""
        points = np.asarray(points, np.float64).reshape(-1, 2)
        inside = np.all(np.abs(points) <= self.limit, axis=1)  # false for NaN too
        listed = _per_point(colours, len(points))
        return self._pixels(points[inside]), [listed[k] for k in np.flatnonzero(inside)]

    def paths(
        self, points: ArrayLike, colours: Sequence[Colour] | Colour = INK, width: float = 1.0, opacity: float = 0.5
    ) -> Plane:
        """Draw a path for each of N points.

        Args:
            points: with shape (T, N, 2).
            colours: one for each path, or one for all.
            width: in pixels.
            opacity: from 0 to 1.
        """
        pixels = self._pixels(points).swapaxes(0, 1)
        for path, colour in zip(pixels, _per_point(colours, len(pixels)), strict=True):
            fill = (*colour, round(255 * opacity))
            self._draw.line(
                [tuple(p) for p in path if np.all(np.isfinite(p))], fill, round(width * _OVERSAMPLING), "curve"
            )
        return self

    def arrows(self, points: ArrayLike, vectors: ArrayLike, colour: Colour = INK, width: float = 1.0) -> Plane:
        """Draw an arrow at each point, centred on it.

        Args:
            points: with shape (N, 2).
            vectors: with shape (N, 2), in the same units; an arrow shorter than a pixel is a dot.
            colour: of all.
            width: in pixels.
        """
        points, vectors = np.asarray(points, np.float64), np.asarray(vectors, np.float64)
        tails, tips = self._pixels(points - vectors / 2), self._pixels(points + vectors / 2)
        for tail, tip in zip(tails, tips, strict=True):
            if not np.all(np.isfinite([tail, tip])):
                continue
            length, line = float(np.hypot(*(tip - tail))), round(width * _OVERSAMPLING)
            if length < _OVERSAMPLING:
                r = 0.6 * line
                self._draw.ellipse((*(tip - r), *(tip + r)), fill=colour)
                continue
            along = (tip - tail) / length
            head = min(0.45 * length, 4.0 * line)
            neck, side = tip - head * along, 0.5 * head * np.array([-along[1], along[0]])
            self._draw.line([tuple(tail), tuple(neck)], fill=colour, width=line)
            self._draw.polygon([tuple(tip), tuple(neck + side), tuple(neck - side)], fill=colour)
        return self

    def pixels(self) -> NDArray[np.uint8]:
        """Return the drawing as uint8 with shape (size, size, 3), in a thin frame."""
        small = self.image.resize((self.size, self.size), Image.Resampling.BOX)
        ImageDraw.Draw(small).rectangle((0, 0, self.size - 1, self.size - 1), outline=_FRAME)
        return np.array(small)


def _per_point(colours: Sequence[Colour] | Colour, count: int) -> list[Colour]:
    if len(colours) == 3 and isinstance(colours[0], int | np.integer):
        return [colours] * count  # type: ignore[list-item]
    if len(colours) != count:
        raise DuetError(f"plane: {len(colours)} colours were given for {count} points; give one for each, or one")
    return list(colours)  # type: ignore[arg-type]


def scatter(
    points: ArrayLike,
    labels: ArrayLike | None = None,
    names: Mapping[int, str] | None = None,
    size: int = 420,
    limit: float = 1.25,
    legend: bool = True,
) -> NDArray[np.uint8]:
    """Return a scatter plot of points, coloured by class, with the names of up to twelve classes beside it.

    Args:
        points: with shape (N, 2).
        labels: the class of each point, with shape (N,); None draws all in one colour.
        names: the name of each label; without one, the label is written.
        size: of the plot without the names, in pixels.
        limit: the largest coordinate.
        legend: whether to write the names.

    Example:
        >>> scatter([[0.0, 0.5], [0.5, 0.0]], size=120).shape
        (120, 120, 3)
    """
    points = np.asarray(points, np.float64).reshape(-1, 2)
    labels = np.zeros(len(points), int) if labels is None else np.asarray(labels)
    present = np.unique(labels)
    colours = class_colours(1 + int(present.max(initial=0)))
    plane = Plane(size, limit, numbers=size >= 240)
    # Draw few points larger and more opaque.
    radius, opacity = (2.6, 0.85) if len(points) <= 300 else (2.0, 0.6) if len(points) <= 2000 else (1.4, 0.4)
    image = plane.dots(points, [colours[k] for k in labels], radius * max(1.0, size / 420), opacity).pixels()
    if not legend or not 1 < len(present) <= _MOST_NAMES:
        return image
    named = [((names or {}).get(int(k), str(k)), colours[k]) for k in present]
    return np.concatenate([image, _legend(named, size)], axis=1)


def panels(images: NDArray[np.uint8], size: int = 96) -> NDArray[np.uint8]:
    """Return one small plot per point, with shape (N, size, size, 3), for use in an image grid.

    Args:
        images: uint8 with shape (N, 1, 1, 3).
        size: of a plot, in pixels.
    """
    return np.stack([Plane(size).dots(point[None], INK, 3.5, 1.0).pixels() for point in point_coordinates(images)])


def shifts(left: NDArray[np.uint8], right: NDArray[np.uint8], gain: float, size: int = 420) -> NDArray[np.uint8]:
    """Return a plot of the differences between two sets of points: one line per pair, `gain` times the difference long.

    Args:
        left: uint8 with shape (N, 1, 1, 3).
        right: uint8 with the shape of `left`.
        gain: a factor that makes small differences visible.
        size: of the plot, in pixels.
    """
    start, end = point_coordinates(left), point_coordinates(right)
    lines = np.stack([start, start + gain * (end - start)])
    return Plane(size, numbers=True).paths(lines, (200, 48, 84), 1.0, 0.6).dots(start, INK, 1.8, 0.8).pixels()


def _legend(names: Sequence[tuple[str, Colour]], height: int) -> NDArray[np.uint8]:
    font = ImageFont.load_default(size=13)
    width = 34 + math.ceil(max(font.getlength(name) for name, _ in names))
    sheet = Image.new("RGB", (width, height), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    for row, (name, colour) in enumerate(names):
        y = 16 + 20 * row
        draw.ellipse((10, y - 5, 20, y + 5), fill=colour)
        draw.text((26, y), name, fill=INK, font=font, anchor="lm")
    return np.array(sheet)
