"""Draw images of samples: grids, strips, captioned rows, tables, differences, PNG files and animations.

Every image is uint8 with shape (H, W, C), where C is 1 (grey) or 3 (red, green, blue); several images have shape
(N, H, W, C). Magnification repeats pixels, so the result shows exactly the pixels that were sampled. Padding is
measured in pixels of the result, and is the same between images and around them. The background is light grey, so that
both black and white images stand out.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from diffusion_core.common.errors import DuetError
from diffusion_core.files.atomic import write_atomically

__all__ = ["difference", "grid", "labelled_rows", "png_bytes", "save_gif", "save_png", "strip", "table"]

ImageArray = NDArray[np.uint8]

BACKGROUND = 232
INK = 56


def grid(images: ImageArray, columns: int, scale: int = 1, pad: int = 2) -> ImageArray:
    """Arrange images in rows of `columns`, from left to right and top to bottom.

    Args:
        images: uint8 with shape (N, H, W, C). An incomplete last row is filled with background.
        columns: images per row.
        scale: how many times each pixel is repeated in both directions.
        pad: pixels between and around the images.

    Returns:
        An image with shape (rows * (scale * H + pad) + pad, columns * (scale * W + pad) + pad, C).

    Raises:
        DuetError: the images are not uint8 with shape (N, H, W, 1) or (N, H, W, 3), or a number is out of range.

    Example:
        >>> grid(np.zeros((10, 8, 8, 3), np.uint8), columns=4, scale=2).shape
        (56, 74, 3)
    """
    _check_images(images)
    _check_whole("columns", columns, 1)
    _check_whole("scale", scale, 1)
    _check_whole("pad", pad, 0)
    n, height, width, channels = images.shape
    rows = math.ceil(n / columns)
    cells = np.full((rows * columns, scale * height + pad, scale * width + pad, channels), BACKGROUND, np.uint8)
    cells[:n, pad:, pad:] = images.repeat(scale, axis=1).repeat(scale, axis=2)
    cells = cells.reshape(rows, columns, *cells.shape[1:]).swapaxes(1, 2)
    sheet = cells.reshape(rows * cells.shape[1], columns * cells.shape[3], channels)
    return np.pad(sheet, ((0, pad), (0, pad), (0, 0)), constant_values=BACKGROUND)


def strip(images: ImageArray, scale: int = 1, pad: int = 2) -> ImageArray:
    """Arrange images with shape (N, H, W, C) side by side, as `grid` with N columns."""
    _check_images(images)
    return grid(images, len(images), scale, pad)


def labelled_rows(
    rows: Sequence[tuple[str, ImageArray]],
    scale: int = 1,
    pad: int = 4,
    text_size: int = 14,
    heads: Sequence[tuple[str, int]] = (),
    corner: str = "",
) -> ImageArray:
    """Draw one row of images per caption, with the caption on the left.

    Args:
        rows: pairs of a caption, which may have several lines, and images with shape (N, H, W, C). Rows may differ in
            N, H and W; the result is in colour if any row is.
        scale: how many times each pixel is repeated in both directions.
        pad: pixels between and around the images.
        text_size: font size in pixels; heads are a little smaller.
        heads: pairs of a title and the number of images below it, from left to right; then all rows must have the same
            number of images and the same width.
        corner: a title to the left of the heads.
    """
    if not rows:
        raise DuetError("labelled rows: no rows were given; there must be at least one pair of caption and images")
    _check_whole("text_size", text_size, 1)
    font = ImageFont.load_default(size=text_size)
    ruler = ImageDraw.Draw(Image.new("L", (1, 1)))
    strips = [strip(images, scale, pad) for _, images in rows]
    boxes = [ruler.multiline_textbbox((0, 0), caption or " ", font=font) for caption, _ in rows]

    margin = max(pad, text_size // 2)
    # A row is as high as its images or its caption, whichever is higher; neighbouring rows share their padding.
    heights = [max(s.shape[0], math.ceil(box[3] - box[1]) + margin + pad) for s, box in zip(strips, boxes, strict=True)]
    corner_width = ImageFont.load_default(size=text_size * 0.8).getlength(corner)
    left = math.ceil(max(corner_width, *(box[2] for box in boxes))) + 2 * margin
    height = sum(heights) - pad * (len(rows) - 1)
    width = left + max(s.shape[1] for s in strips)
    channels = max(s.shape[2] for s in strips)

    sheet = np.full((height, width, channels), BACKGROUND, np.uint8)
    captions = Image.new("L", (left, height), BACKGROUND)
    draw = ImageDraw.Draw(captions)
    top = 0
    for (caption, _), row, row_height in zip(rows, strips, heights, strict=True):
        start = top + (row_height - row.shape[0]) // 2
        sheet[start : start + row.shape[0], left : left + row.shape[1]] = row
        draw.multiline_text((margin, top + row_height / 2), caption, fill=INK, font=font, anchor="lm")
        top += row_height - pad
    sheet[:, :left] = np.asarray(captions)[..., None]
    if not heads:
        return sheet
    if {(len(images), images.shape[2]) for _, images in rows} != {(sum(n for _, n in heads), rows[0][1].shape[2])}:
        raise DuetError(
            f"labelled rows: heads of {[n for _, n in heads]} images were given; every row must have as many"
        )
    cell = scale * rows[0][1].shape[2] + pad
    return np.concatenate([_headline(heads, corner, left, cell, sheet.shape[1:], margin, text_size * 0.8), sheet])


def _headline(
    heads: Sequence[tuple[str, int]],
    corner: str,
    left: int,
    cell: int,
    shape: tuple[int, int],
    margin: int,
    text_size: float,
) -> ImageArray:
    """Draw a line of titles, each centred above its cells, with the width and channels of `shape`."""
    font = ImageFont.load_default(size=text_size)
    line = Image.new("L", (shape[0], math.ceil(1.4 * text_size) + margin // 2), BACKGROUND)
    draw, at = ImageDraw.Draw(line), left
    draw.text((margin, line.height), corner, fill=INK, font=font, anchor="ld")
    for head, count in heads:
        draw.text((at + count * cell / 2, line.height), head, fill=INK, font=font, anchor="md")
        at += count * cell
    return np.asarray(line)[..., None].repeat(shape[1], axis=2)


def table(
    cells: Sequence[Sequence[tuple[ImageArray, str] | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    scale: int = 1,
    pad: int = 4,
    text_size: int = 14,
) -> ImageArray:
    """Draw images in rows and columns with captions, and a note under every cell.

    Args:
        cells: by row and column, a pair of images (N, H, W, C), drawn side by side, and a note; None leaves a cell
            empty. All images have one shape.
        rows: the captions of the rows, on the left.
        columns: the captions of the columns, at the top.
        scale: how many times each pixel is repeated in both directions.
        pad: pixels between and around the images of a cell.
        text_size: font size in pixels; notes are a little smaller.
    """
    if len(cells) != len(rows) or any(len(row) != len(columns) for row in cells):
        raise DuetError(
            f"table: {len(rows)} row and {len(columns)} column captions were given; every row and column needs one"
        )
    strips = [[cell and strip(cell[0], scale, pad) for cell in row] for row in cells]
    drawn = [s for row in strips for s in row if s is not None]
    if not drawn or len({s.shape for s in drawn}) > 1:
        raise DuetError("table: the cells have no images, or images of several shapes; all must have one shape")
    high, wide, channels = drawn[0].shape
    font, small = (ImageFont.load_default(size=size) for size in (text_size, text_size * 0.8))
    gap, line = text_size, math.ceil(text_size * 1.4)
    left = math.ceil(max(font.getlength(name) for name in rows)) + 2 * gap
    size = left + len(columns) * (wide + gap), line + gap + len(rows) * (high + line + gap // 2)
    sheet = Image.new("RGB" if channels == 3 else "L", size, (BACKGROUND,) * 3 if channels == 3 else BACKGROUND)
    ink = (INK,) * 3 if channels == 3 else INK
    draw = ImageDraw.Draw(sheet)
    for j, name in enumerate(columns):
        draw.text((left + j * (wide + gap) + wide / 2, gap), name, fill=ink, font=font, anchor="mt")
    for i, name in enumerate(rows):
        top = line + gap + i * (high + line + gap // 2)
        draw.text((gap, top + high / 2), name, fill=ink, font=font, anchor="lm")
        for j, cell in enumerate(cells[i]):
            if cell is not None:
                at = left + j * (wide + gap)
                sheet.paste(_to_pil(strips[i][j]), (at, top))
                draw.text((at + wide / 2, top + high + 1), cell[1], fill=ink, font=small, anchor="mt")
    return np.asarray(sheet).reshape(size[1], size[0], channels)


def difference(a: ImageArray, b: ImageArray, gain: float = 1.0) -> ImageArray:
    """Return the difference of two images, ``min(255, gain * |a - b|)``: black where they are equal.

    Args:
        a: uint8 with shape (..., H, W, C).
        b: uint8 with the shape of `a`.
        gain: a factor that makes small differences visible. Any difference is at least 1 in the result.
    """
    if a.dtype != np.uint8 or b.dtype != np.uint8 or a.shape != b.shape:
        raise DuetError(
            f"difference: {a.dtype} {a.shape} and {b.dtype} {b.shape} were given; "
            f"they must be two uint8 arrays of one shape"
        )
    if not gain > 0:
        raise DuetError(f"difference: a gain of {gain} was given; it must be positive")
    return np.ceil(np.minimum(255.0, gain * np.abs(a.astype(np.float64) - b))).astype(np.uint8)


def png_bytes(array: ImageArray) -> bytes:
    """Return the PNG file of an image with shape (H, W, C), as bytes."""
    buffer = io.BytesIO()
    _to_pil(array).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def save_png(path: str | Path, array: ImageArray) -> None:
    """Write an image as a PNG file, creating missing folders.

    Args:
        path: the file.
        array: uint8 with shape (H, W, C), where C is 1 or 3.

    Raises:
        DuetError: the array is not such an image.
    """
    write_atomically(Path(path), png_bytes(array))


def save_gif(
    path: str | Path, frames: Sequence[ImageArray] | ImageArray, fps: float = 12, hold_last: float = 1.5
) -> None:
    """Write an endless animation as a GIF file.

    Grey frames are exact. Colour frames share one palette of 256 colours, without dithering, so a pixel that does not
    change does not flicker.

    Args:
        path: the file; missing folders are created.
        frames: images with one shape (H, W, C).
        fps: frames per second, at most 50. The format stores hundredths of a second.
        hold_last: seconds for which the last frame stays.
    """
    if len(frames) == 0 or len({np.shape(frame) for frame in frames}) > 1:
        shapes = sorted({np.shape(frame) for frame in frames})
        raise DuetError(
            f"animation: frames of shapes {shapes} were given; there must be at least one, all of one shape"
        )
    if not 0 < fps <= 50 or not 0 <= hold_last <= 600:
        raise DuetError(
            f"animation: {fps} frames per second and a hold of {hold_last} s were given; "
            f"they must be at most 50 and 600, and the first above 0"
        )
    pil_images = [_to_pil(frame) for frame in frames]
    if pil_images[0].mode == "RGB":
        pil_images = _indexed(np.stack(frames))
    step = 10 * max(2, round(100 / fps))
    durations = [step] * (len(pil_images) - 1) + [max(step, 10 * round(100 * hold_last))]
    buffer = io.BytesIO()
    pil_images[0].save(
        buffer, format="GIF", save_all=True, append_images=pil_images[1:], duration=durations, loop=0, disposal=1
    )
    write_atomically(Path(path), buffer.getvalue())


def _indexed(frames: ImageArray) -> list[Image.Image]:
    """Convert colour frames with shape (T, H, W, 3) to one palette by median cut; up to 256 colours are exact."""
    tall = Image.fromarray(frames.reshape(-1, *frames.shape[2:]))
    tall = tall.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    pil_images = [Image.fromarray(indices) for indices in np.asarray(tall).reshape(frames.shape[:3])]
    for pil_image in pil_images:
        pil_image.putpalette(tall.getpalette())
    return pil_images


def _to_pil(array: ImageArray) -> Image.Image:
    if not isinstance(array, np.ndarray) or array.ndim != 3:
        raise DuetError(f"image: shape {np.shape(array)} was given; it must be (H, W, C)")
    _check_images(array[None])
    return Image.fromarray(np.ascontiguousarray(array[..., 0] if array.shape[2] == 1 else array))


def _check_images(images: ImageArray) -> None:
    shape = np.shape(images)
    fits = isinstance(images, np.ndarray) and images.dtype == np.uint8
    if not fits or len(shape) != 4 or shape[3] not in (1, 3) or 0 in shape:
        kind = getattr(images, "dtype", type(images).__name__)
        raise DuetError(
            f"images: {kind} with shape {shape} was given; it must be uint8 with shape (N, H, W, 1) or (N, H, W, 3)"
        )


def _check_whole(what: str, value: int, least: int) -> None:
    if not isinstance(value, int | np.integer) or value < least:
        raise DuetError(f"images: {what} {value!r} was given; it must be a whole number of at least {least}")
