"""Convert an image of any size and mode to bytes of one shape.

An image is opened upright with 8 bits per channel (`images.decode`), cropped to the largest rectangle with the aspect
ratio that is asked for, a square for one number, and resized with an antialiasing filter (Lanczos). The aspect ratio of
what is seen is kept. The rectangle lies at the centre, or at random along the longer side; with crop none, or without a
size, an image is neither cropped nor resized, and all images must have one size.

The position of a random crop is a function of (seed, index) in stream ``"data/crop"``, so it does not depend on which
process reads the image, nor when.

Arrays that are no pictures, such as floats, latents and sequences, are kept as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.common.random import Stream
from diffusion_core.images.decode import ImageInput, decode, open_image

__all__ = ["CROPS", "ArrayTransform", "ImageTransform", "Transformed", "fit_image", "read_image"]

CROPS = ("centre", "random", "none")


class Transformed(NamedTuple):
    """An image with the shape of its data set, its original size in words, and a remark on its file."""

    pixels: NDArray
    original: str
    remark: str | None = None


@dataclass(frozen=True)
class ImageTransform:
    """Crop and resize images to one shape.

    Args:
        size: height and width in pixels: one number for squares, or [height, width]; None keeps the images as they are,
            all of one size.
        channels: 3 for colour, 1 for grey; None is colour if any of some images is.
        crop: ``"centre"`` or ``"random"``; ``"none"`` neither crops nor resizes.
        seed: the seed of random crops.

    Raises:
        DuetError: an argument is out of range.
    """

    size: int | Sequence[int] | None
    channels: int | None = 3
    crop: str = "centre"
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.size, Sequence) and not isinstance(self.size, str):
            sides = tuple(self.size)
            # A square is one number, whatever was typed, so that it is one request.
            object.__setattr__(self, "size", sides[0] if len(sides) == 2 and sides[0] == sides[1] else sides)
        sides = self.size if isinstance(self.size, tuple) else (self.size,) * 2
        whole = all(isinstance(side, Integral) and not isinstance(side, bool) and side >= 1 for side in sides)
        if self.size is not None and (len(sides) != 2 or not whole):
            raise DuetError(
                f"data.options.size: {self.size!r} was given; it must be a whole number of at least 1 for squares, or "
                f"[HEIGHT,WIDTH], or null to keep the images as they are"
            )
        if self.channels not in (None, 1, 3):
            raise DuetError(f"data.options.channels: {self.channels} was given; it must be 1 or 3, or null")
        check_choice("crop", self.crop, CROPS)

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of an image, of a transform that `resolve` returned."""
        height, width = self.size if isinstance(self.size, tuple) else (self.size, self.size)
        return height, width, self.channels

    @property
    def dtype(self) -> np.dtype:
        """The type of a pixel."""
        return np.dtype(np.uint8)

    def resolve(self, images: Sequence[Image.Image]) -> ImageTransform:
        """Return the transform with the size of the first of some images and the channels of all, where none are given.

        Args:
            images: decoded images of the data set, at least one.
        """
        channels = self.channels or (3 if any(image.mode == "RGB" for image in images) else 1)
        if self.size is not None:
            return replace(self, channels=channels)
        return replace(self, size=(images[0].height, images[0].width), channels=channels, crop="none")

    def __call__(self, image: ImageInput, index: int = 0) -> Transformed:
        """Return an image in the shape of the data set.

        Args:
            image: the image to read.
            index: its index in the source, which determines a random crop.

        Raises:
            DuetError: the image cannot be read, the range of its values is unknown, or it has another size and is not
                to be resized.
        """
        opened, remark = decode(image)
        opened = opened.convert("RGB" if self.channels == 3 else "L")
        height, width, _ = self.shape
        original = f"{opened.width} x {opened.height}"
        if self.crop == "none" and opened.size != (width, height):
            what = "" if isinstance(image, bytes | np.ndarray) else f" {str(image)!r}"
            raise DuetError(
                f"image{what}: it has {original} pixels (width x height), others have {width} x {height}; without a "
                f"size all images must have one, so give data.options.size=[HEIGHT,WIDTH], or one number for squares"
            )
        start = None
        if self.crop == "random":
            room = np.array(opened.size) - _largest(opened.size, height, width)
            start = tuple((Stream(self.seed, "data/crop").uniform([index], 2)[0] * (room + 1)).astype(int).tolist())
        return Transformed(fit_image(opened, (height, width), start), original, remark)


@dataclass(frozen=True)
class ArrayTransform:
    """Keep arrays that are no pictures as they are.

    Args:
        shape: of an item.
        dtype: of its values.
    """

    shape: tuple[int, ...]
    dtype: np.dtype

    def __call__(self, image: NDArray, index: int = 0) -> Transformed:
        """Return an item."""
        return Transformed(image, " x ".join(map(str, self.shape)))


def read_image(file: str | Path, size: int | tuple[int, int], channels: int) -> NDArray[np.uint8]:
    """Read an image file, cropped at the centre and resized; see `fit_image`.

    Raises:
        DuetError: the file cannot be read, or the range of its values is unknown.
    """
    return fit_image(open_image(Path(file), channels), size)


def fit_image(
    pil_image: Image.Image, size: int | tuple[int, int], start: tuple[int, int] | None = None
) -> NDArray[np.uint8]:
    """Return an image cropped to the largest part of the new aspect ratio and resized, with shape (H, W, channels).

    Args:
        pil_image: grey or RGB.
        size: the new height and width; one number for a square.
        start: left and top of the part; None means the central one.
    """
    height, width = (size, size) if isinstance(size, Integral) else size
    if pil_image.size != (width, height):
        across, down = _largest(pil_image.size, height, width)
        left, top = start or ((pil_image.width - across) // 2, (pil_image.height - down) // 2)
        # Crop first: the filter of a resize with a box would read beyond the box.
        part = pil_image.crop((left, top, left + across, top + down))
        pil_image = part.resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(pil_image).reshape(height, width, -1)


def _largest(size: tuple[int, int], height: int, width: int) -> tuple[int, int]:
    """Return width and height of the largest part of an image with the aspect ratio width : height."""
    across, down = size
    if across * height <= down * width:
        return across, max(1, round(across * height / width))
    return max(1, round(down * width / height)), down
