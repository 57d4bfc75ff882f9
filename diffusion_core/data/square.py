"""Convert an image of any size and mode to a square of bytes.

An image is rotated as its EXIF data say, laid over white where it is transparent, cropped to the largest square, at
the centre or at random along its longer side, and resized with an antialiasing filter (Lanczos). The aspect ratio is
kept. Grey, palette, CMYK and 16-bit files become 8-bit grey or RGB. Of an animation, the first frame is used.

A 16-bit value v of a grey file becomes v / 257, rounded. Pillow returns colour, and grey with transparency, as 8 bits:
there the lower byte is cut off, v // 256, which differs by at most one.

The position of a random crop is a function of (seed, index) in stream ``"data/crop"``, so it does not depend on which
process reads the image, nor when.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.common.random import Stream
from diffusion_core.files.safe_read import read_member

__all__ = ["CROPS", "Member", "SUFFIXES", "ImageInput", "SquareTransform", "fit_image", "open_image", "read_image"]

CROPS = ("centre", "random")
# The file names that are read as images.
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Member:
    """A file inside a zip archive."""

    archive: Path
    name: str

    def __str__(self) -> str:
        return f"{self.archive}/{self.name}"


# A file, a file in a zip archive, the content of a file, or uint8 pixels with shape (H, W, C).
ImageInput = Path | Member | bytes | NDArray[np.uint8]


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

    def __call__(self, image: ImageInput, index: int = 0) -> tuple[NDArray[np.uint8], tuple[int, int]]:
        """Return the square of an image with shape (size, size, channels), and the image's original width and height.

        Args:
            image: the image to read.
            index: its index in the source, which determines a random crop.

        Raises:
            DuetError: the image cannot be read, or the range of its values is unknown.
        """
        opened = open_image(image, self.channels)
        if self.crop == "centre":
            return fit_image(opened, self.size), opened.size
        room = np.array(opened.size) - min(opened.size)
        start = (Stream(self.seed, "data/crop").uniform([index], 2)[0] * (room + 1)).astype(int)
        return fit_image(opened, self.size, tuple(start.tolist())), opened.size


def read_image(file: str | Path, size: int, channels: int) -> NDArray[np.uint8]:
    """Read an image file, cropped at the centre and resized, with shape (size, size, channels).

    Raises:
        DuetError: the file cannot be read, or the range of its values is unknown.
    """
    return fit_image(open_image(Path(file), channels), size)


def open_image(image: ImageInput | str, channels: int) -> Image.Image:
    """Open an image in its own size and upright, with 8 bits per channel, grey or RGB.

    Raises:
        DuetError: it cannot be read, or the range of its values is unknown.
    """
    opened = _from_pixels(image) if isinstance(image, np.ndarray) else _from_file(image)
    return opened.convert("RGB" if channels == 3 else "L")


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


def _from_pixels(pixels: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))


@lru_cache(maxsize=4)
def _open_zip(archive: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(archive)


def _from_file(image: Path | Member | bytes | str) -> Image.Image:
    what = "image" if isinstance(image, bytes) else f"image {str(image)!r}"
    try:
        file = image
        if isinstance(image, Member):
            file = io.BytesIO(read_member(_open_zip(image.archive), image.name))
        elif isinstance(image, bytes):
            file = io.BytesIO(image)
        with Image.open(file) as opened:
            opened.load()
            return _eight_bit(ImageOps.exif_transpose(opened), is_wide=opened.mode == "I" and opened.format == "TIFF")
    except DuetError as error:
        raise DuetError(f"{what}: {error}") from None
    # On a corrupted file Pillow may raise anything, for example struct.error for its EXIF data.
    except Exception as error:
        reason = "Pillow does not recognise its format" if isinstance(error, Image.UnidentifiedImageError) else error
        raise DuetError(f"{what} cannot be read: {reason}; repair it or delete it") from error


def _eight_bit(pil_image: Image.Image, is_wide: bool) -> Image.Image:
    """Return an image with 8 bits per channel, laid over white where it is transparent. 32-bit images are refused."""
    if pil_image.mode == "F" or pil_image.mode.startswith("I"):
        values = np.asarray(pil_image).astype(np.float64)
        # Pillow opens 16-bit files in several modes, some of 32 bits. A real 32-bit file does not define white.
        if is_wide or pil_image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise DuetError(f"its pixels have mode {pil_image.mode!r}, which does not define white; use 8 or 16 bits")
        return Image.fromarray(np.floor(values / 257 + 0.5).astype(np.uint8))
    if pil_image.has_transparency_data:
        pil_image = pil_image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", pil_image.size, "white"), pil_image).convert("RGB")
    # Grey stays grey, so its values are exact; every other mode is converted to RGB.
    return pil_image if pil_image.mode in ("1", "L", "RGB") else pil_image.convert("RGB")
