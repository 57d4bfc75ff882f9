"""Open an image of any kind: upright, with 8 bits per channel, grey or RGB.

An image is rotated as its EXIF data say and laid over white where it is transparent. Grey, palette, CMYK and 16-bit
files become 8-bit grey or RGB. Of an animation or a file of several pages, the first image is used. Colour profiles
(ICC) are not applied.

A 16-bit value v of a grey file becomes v / 257, rounded. Pillow returns colour, and grey with transparency, as 8 bits:
there the lower byte is cut off, v // 256, which differs by at most one.

Metadata never cost a sound image. If EXIF, ICC or XMP entries are damaged, the image is rotated by its orientation if
that one entry can be read, and is otherwise taken as it lies; a remark says so.
"""

from __future__ import annotations

import contextlib
import io
import warnings
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from diffusion_core.common.errors import DuetError
from diffusion_core.common.text import first_line
from diffusion_core.files.safe_read import read_member
from diffusion_core.images.metadata import without_metadata

__all__ = [
    "Decoded",
    "ImageInput",
    "Member",
    "Packed",
    "UnreadableImage",
    "decode",
    "eight_bit",
    "open_image",
    "read_bytes",
]

_ORIENTATION = ExifTags.Base.Orientation
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Packed:
    """An image file inside another file, whose path is `archive`; `name` says where it is in it."""

    archive: Path
    name: str

    def read(self) -> bytes:
        """Return its bytes."""
        raise NotImplementedError


@dataclass(frozen=True)
class Member(Packed):
    """A file inside a zip archive."""

    archive: Path
    name: str

    def __str__(self) -> str:
        return f"{self.archive}/{self.name}"

    def read(self) -> bytes:
        """Return its bytes."""
        state = self.archive.stat()
        return read_member(_open_zip(self.archive, state.st_mtime_ns, state.st_size), self.name)


# A file, a file inside another one, the content of a file, or uint8 pixels with shape (H, W, C).
ImageInput = Path | Packed | bytes | NDArray[np.uint8]


class UnreadableImage(DuetError):
    """An image that cannot be read; `reason` says why, without its name."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return UnreadableImage, (str(self), self.reason)


class Decoded(NamedTuple):
    """An image with 8 bits per channel, and a remark on its metadata if they are damaged."""

    image: Image.Image
    remark: str | None = None


def open_image(image: ImageInput | str, channels: int) -> Image.Image:
    """Open an image in its own size and upright, with 8 bits per channel, grey or RGB.

    Raises:
        DuetError: it cannot be read, or the range of its values is unknown.
    """
    return decode(image).image.convert("RGB" if channels == 3 else "L")


def decode(image: ImageInput | str) -> Decoded:
    """Open an image in its own size and upright; its mode is "1", "L" or "RGB".

    Raises:
        DuetError: it cannot be read, or the range of its values is unknown.
    """
    if isinstance(image, np.ndarray):
        return Decoded(Image.fromarray(np.ascontiguousarray(image[..., 0] if image.shape[2] == 1 else image)))
    what = "image" if isinstance(image, bytes) else f"image {str(image)!r}"
    try:
        file = io.BytesIO(read_bytes(image)) if isinstance(image, Packed | bytes) else image
        try:
            return _decode(file)
        except DuetError:
            raise
        except Exception as error:
            return _decode_bare(image, error)
    except DuetError as error:
        raise UnreadableImage(f"{what}: {error}", str(error)) from None
    # On a corrupted file Pillow may raise anything.
    except Exception as error:
        reason = "Pillow does not recognise its format" if isinstance(error, Image.UnidentifiedImageError) else error
        raise UnreadableImage(f"{what} cannot be read: {reason}; repair it or delete it", first_line(reason)) from error


@lru_cache(maxsize=4)
def _open_zip(archive: Path, modified: int, size: int) -> zipfile.ZipFile:
    """Open an archive once for each state of its file."""
    return zipfile.ZipFile(archive)


def read_bytes(image: Path | Packed | bytes | str) -> bytes:
    """Return the content of an image file, which may be a member of an archive."""
    if isinstance(image, Packed):
        return image.read()
    return image if isinstance(image, bytes) else Path(image).read_bytes()


def _decode(file: io.BytesIO | Path | str) -> Decoded:
    remark = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about damaged metadata, which the remark states, and very large images
        with Image.open(file) as opened:
            try:
                opened.load()
            except Exception as error:
                # A TIFF file reads its EXIF data after its pixels, which are complete then.
                if opened.format != "TIFF" or getattr(opened, "tile", None):
                    raise
                remark = _remark(error)
            is_wide = opened.mode == "I" and opened.format == "TIFF"
            try:
                orientation = opened.getexif().get(_ORIENTATION, 1)
            except Exception as error:
                orientation, remark = 1, _remark(error)
            return Decoded(eight_bit(_upright(opened, orientation), is_wide), remark)


def _decode_bare(image: Path | Packed | bytes | str, reason: Exception) -> Decoded:
    """Decode an image without its metadata, which may be why it could not be read; raise `reason` if they were not."""
    try:
        bare, exif = without_metadata(read_bytes(image))
        decoded = _decode(io.BytesIO(bare)).image
    except Exception:
        raise reason from None
    read, orientation = Image.Exif(), 1
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read.load(exif)
        orientation = read.get(_ORIENTATION, 1)
    return Decoded(_upright(decoded, orientation), _remark(reason))


def _upright(image: Image.Image, orientation: object) -> Image.Image:
    method = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def _remark(error: Exception) -> str:
    reason = first_line(error)
    return f"its metadata are damaged ({reason}); only its pixels, and its orientation if it can be read, are used"


def eight_bit(pil_image: Image.Image, is_wide: bool = False) -> Image.Image:
    """Return an image with 8 bits per channel, laid over white where it is transparent; its mode is "1", "L" or "RGB".

    Args:
        pil_image: the image.
        is_wide: whether its file has 32 bits per value.

    Raises:
        DuetError: it has 32 bits per value, which define no white.
    """
    if pil_image.mode == "F" or pil_image.mode.startswith("I"):
        values = np.asarray(pil_image).astype(np.float64)
        # Pillow opens 16-bit files in several modes, some of 32 bits. A real 32-bit file does not define white.
        if is_wide or pil_image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise DuetError(f"its pixels have mode {pil_image.mode!r}, which does not define white; use 8 or 16 bits")
        return Image.fromarray(np.floor(values / 257 + 0.5).astype(np.uint8))
    if pil_image.has_transparency_data:
        pil_image = pil_image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", pil_image.size, "white"), pil_image).convert("RGB")
    # Grey stays grey, so its values are exact; every other mode is converted to RGB. A copy outlives the file.
    return pil_image.copy() if pil_image.mode in ("1", "L", "RGB") else pil_image.convert("RGB")
