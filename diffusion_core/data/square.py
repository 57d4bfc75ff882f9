"""Convert an image of any size and mode to a square of bytes.

An image is opened upright with 8 bits per channel (`images.decode`), cropped to the largest square, at the centre or at
random along its longer side, and resized with an antialiasing filter (Lanczos). The aspect ratio is kept.

The position of a random crop is a function of (seed, index) in stream ``"data/crop"``, so it does not depend on which
process reads the image, nor when.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.common.random import Stream
from diffusion_core.images.decode import ImageInput, decode, open_image

__all__ = ["CROPS", "Square", "SquareTransform", "fit_image", "read_image"]

CROPS = ("centre", "random")


class Square(NamedTuple):
    """An image as a square of bytes (size, size, channels), its original width and height, and a remark on its file."""

    pixels: NDArray[np.uint8]
    original: tuple[int, int]
    remark: str | None = None


@dataclass(frozen=True)
class SquareTransform:
    """Crop and resize images to one shape.

    Args:
        size: height and width in pixels.
        channels: 3 for colour, 1 for grey.
        crop: ``"centre"`` or ``"random"``.
        seed: the seed of random crops.

    Raises:
        DuetError: an argument is out of range.
    """

    size: int
    channels: int = 3
    crop: str = "centre"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size < 1 or self.channels not in (1, 3):
            raise DuetError(
                f"images: size {self.size} and {self.channels} channels were given; "
                f"the size must be at least 1 and the channels 1 or 3"
            )
        if self.crop not in CROPS:
            raise one_of("crop", self.crop, CROPS)

    def __call__(self, image: ImageInput, index: int = 0) -> Square:
        """Return the square of an image.

        Args:
            image: the image to read.
            index: its index in the source, which determines a random crop.

        Raises:
            DuetError: the image cannot be read, or the range of its values is unknown.
        """
        opened, remark = decode(image)
        opened = opened.convert("RGB" if self.channels == 3 else "L")
        if self.crop == "centre":
            return Square(fit_image(opened, self.size), opened.size, remark)
        room = np.array(opened.size) - min(opened.size)
        start = (Stream(self.seed, "data/crop").uniform([index], 2)[0] * (room + 1)).astype(int)
        return Square(fit_image(opened, self.size, tuple(start.tolist())), opened.size, remark)


def read_image(file: str | Path, size: int, channels: int) -> NDArray[np.uint8]:
    """Read an image file, cropped at the centre and resized, with shape (size, size, channels).

    Raises:
        DuetError: the file cannot be read, or the range of its values is unknown.
    """
    return fit_image(open_image(Path(file), channels), size)


def fit_image(pil_image: Image.Image, size: int, start: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Return an image cropped to a square as wide as its shorter side and resized, with shape (size, size, channels).

    Args:
        pil_image: grey or RGB.
        size: the new height and width.
        start: left and top of the square; None means the central one.
    """
    side = min(pil_image.size)
    left, top = start or ((pil_image.width - side) // 2, (pil_image.height - side) // 2)
    if pil_image.size != (size, size):
        # Crop first: the filter of a resize with a box would read beyond the box.
        pil_image = pil_image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(pil_image).reshape(size, size, -1)
