"""A folder of pictures as a data set.

Each folder directly inside is a class, in the order of the sorted names, and holds its pictures at
any depth; a folder with pictures and no folders is one class. A picture is turned as its camera
says (EXIF), laid over white where it is transparent, cut to its central square and resized with an
antialiasing filter (Lanczos). Nothing is squashed.

Grey, palette, CMYK and 16-bit files become 8-bit grey or RGB. Of an animation, the first frame is
taken. Hidden files and files of other kinds are left out; a picture that cannot be read is an error,
so that two machines never train on different sets without a word.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from diffusion_core.data.dataset import Dataset
from diffusion_core.errors import DuetError

__all__ = ["SUFFIXES", "fit_picture", "image_folder", "open_picture", "read_picture"]

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def image_folder(path: str | Path, size: int, channels: int = 3) -> Dataset:
    """The pictures under a folder, in memory, one class per folder.

    Args:
        path: the folder.
        size: height and width to bring them to, in pixels.
        channels: 3 for colour, 1 for grey.

    Raises:
        DuetError: there is no such folder, it holds no pictures or mixes pictures with class folders,
            or a picture cannot be read.
    """
    folder = Path(path).expanduser()
    if size < 1 or channels not in (1, 3):
        raise DuetError(
            f"image folder: size {size} and {channels} channels were given; "
            f"the size must be at least 1 and the channels 1 or 3"
        )
    wanted = f"it must hold pictures ({', '.join(SUFFIXES)}), or one folder of pictures per class"
    if not folder.is_dir():
        raise DuetError(f"image folder: {str(folder)!r} is no folder; {wanted}")
    classes = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    loose = _pictures(folder, "*")
    if classes and loose:
        raise DuetError(
            f"image folder: {str(folder)!r} holds {loose[0].name!r} beside the folder {classes[0].name!r}; {wanted}"
        )
    groups = classes or [folder]
    files = [_pictures(group, "**/*") for group in groups]
    for group, members in zip(groups, files, strict=True):
        if not members:
            raise DuetError(f"image folder: {str(group)!r} holds no pictures; {wanted}")
    images = np.empty((sum(map(len, files)), size, size, channels), np.uint8)
    for place, file in enumerate(file for members in files for file in members):
        images[place] = read_picture(file, size, channels)
    labels = np.repeat(np.arange(len(groups)), [len(members) for members in files])
    return Dataset(images, labels, tuple(group.resolve().name for group in groups), folder.resolve().name)


def read_picture(file: str | Path, size: int, channels: int) -> NDArray[np.uint8]:
    """One picture, cut to its central square and resized, with shape (size, size, channels).

    Raises:
        DuetError: the file cannot be read, or its values have no known range.
    """
    return fit_picture(open_picture(file, channels), size)


def open_picture(file: str | Path, channels: int) -> Image.Image:
    """One picture of 8 bits per channel, grey or RGB, of its own size and the right way up.

    Raises:
        DuetError: the file cannot be read, or its values have no known range.
    """
    try:
        with Image.open(file) as opened:
            opened.load()
            picture = ImageOps.exif_transpose(opened)
            picture = _eight_bit(picture)
            return picture.convert("RGB" if channels == 3 else "L")
    except DuetError as error:
        raise DuetError(f"picture {str(file)!r}: {error}") from None
    # Pillow's readers raise many kinds of error on broken files, a few of them unrelated to OSError.
    except (OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, Image.DecompressionBombError) as error:
        reason = "it is not a picture that Pillow knows" if isinstance(error, Image.UnidentifiedImageError) else error
        raise DuetError(f"picture {str(file)!r} cannot be read: {reason}; repair it or take it away") from error


def fit_picture(picture: Image.Image, size: int) -> NDArray[np.uint8]:
    """A picture cut to its central square and resized, with shape (size, size, channels)."""
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    square = (left, top, left + side, top + side)
    picture = picture.resize((size, size), Image.Resampling.LANCZOS, box=square)
    return np.asarray(picture).reshape(size, size, -1)


def _eight_bit(picture: Image.Image) -> Image.Image:
    """A picture of 8 bits per channel without transparency, which is laid over white."""
    if picture.mode == "F" or picture.mode.startswith("I"):
        values = np.asarray(picture).astype(np.float64)
        # 16-bit files arrive in several modes; wider ones do not say what white is.
        if picture.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise DuetError(f"its pixels are of mode {picture.mode!r}, without a known white; 8 or 16 bits would fit")
        return Image.fromarray(np.floor(values / 257 + 0.5).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    # Grey stays grey, so its levels are kept exactly; all other kinds go by way of RGB.
    return picture if picture.mode in ("1", "L", "RGB") else picture.convert("RGB")


def _pictures(folder: Path, pattern: str) -> list[Path]:
    """The files of known suffix, in sorted order, none of them hidden or in a hidden folder."""
    return sorted(
        file
        for file in folder.glob(pattern)
        if file.suffix.lower() in SUFFIXES
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )
