"""The files of JPEG, PNG, WebP and TIFF images without their metadata: the same pixels, and nothing else to be damaged.

Pillow parses EXIF, ICC, XMP and text entries while it opens a file, and a damaged entry can raise an error although
every pixel is sound. These formats are sequences of named blocks, so the blocks that no pixel needs can be left
out without decoding anything:

    JPEG   segments FF xx, length; left out: APPn except JFIF (APP0) and Adobe (APP14), and comments
    PNG    chunks length, name, data, checksum; kept: IHDR, PLTE, tRNS, IDAT, IEND and the rendering chunks of APNG
    WebP   RIFF chunks name, length, data; left out: EXIF, XMP and ICCP, with their flags in VP8X
    TIFF   a directory of entries of 12 bytes; kept: those that say where the pixels are and how they are coded
"""

from __future__ import annotations

import struct

__all__ = ["without_metadata"]

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"acTL", b"fcTL", b"fdAT")
_WEBP_LEFT_OUT = {b"EXIF": 0x08, b"XMP ": 0x04, b"ICCP": 0x20}  # with the flag of each in VP8X
# The entries of TIFF that describe pixels: sizes, coding, places of strips and tiles, colours, samples, JPEG tables.
_TIFF_KEPT = {
    *range(254, 260), 262, 266, 273, *range(277, 285), 284, 292, 293, 317, 318, 319, *range(320, 326),
    *range(332, 342), 347, *range(512, 522), *range(529, 533),
}  # fmt: skip
_ORIENTATION = 274


def without_metadata(data: bytes) -> tuple[bytes, bytes] | None:
    """Return the file of an image without its metadata, and its EXIF block (empty if it has none).

    None if the format is another one, or the file ends too early to tell its blocks apart.
    """
    try:
        if data[:3] == b"\xff\xd8\xff":
            return _jpeg(data)
        if data[:8] == _PNG:
            return _png(data)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _webp(data)
        if data[:4] in (b"II*\0", b"MM\0*"):
            return _tiff(data)
    except (IndexError, struct.error):
        return None
    return None


def _jpeg(data: bytes) -> tuple[bytes, bytes] | None:
    kept, exif, position = [data[:2]], b"", 2
    while data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        if marker == 0xDA:  # the pixels follow, to the end of the file
            return b"".join([*kept, data[position:]]), exif
        (length,) = struct.unpack_from(">H", data, position + 2)
        segment = data[position : position + 2 + length]
        if marker == 0xE1 and segment[4:10] == b"Exif\0\0":
            exif = exif or segment[4:]
        if not (0xE1 <= marker <= 0xEF and marker != 0xEE) and marker != 0xFE:
            kept.append(segment)
        position += 2 + length
    return None


def _png(data: bytes) -> tuple[bytes, bytes] | None:
    kept, exif, position = [data[:8]], b"", 8
    while position < len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        if name in _PNG_KEPT:
            kept.append(data[position : position + 12 + length])
        elif name == b"eXIf":
            exif = b"Exif\0\0" + data[position + 8 : position + 8 + length]
        position += 12 + length
        if name == b"IEND":
            return b"".join(kept), exif
    return None


def _webp(data: bytes) -> tuple[bytes, bytes] | None:
    kept, exif, position = [], b"", 12
    while position < len(data):
        name, length = struct.unpack_from("<4sI", data, position)
        end = position + 8 + length + length % 2
        chunk = bytearray(data[position:end])
        if name == b"VP8X":
            chunk[8] &= ~sum(_WEBP_LEFT_OUT.values()) & 0xFF
        if name == b"EXIF":
            exif = bytes(chunk[8 : 8 + length])
        if name not in _WEBP_LEFT_OUT:
            kept.append(bytes(chunk))
        position = end
    body = b"".join(kept)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body, exif


def _tiff(data: bytes) -> tuple[bytes, bytes]:
    order = "<" if data[:2] == b"II" else ">"
    (start,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, start)
    kept, exif = [], b""
    for k in range(count):
        entry = data[start + 2 + 12 * k : start + 14 + 12 * k]
        tag, kind, length = struct.unpack_from(f"{order}HHI", entry)
        if tag in _TIFF_KEPT:
            kept.append(entry)
        elif tag == _ORIENTATION and (kind, length) == (3, 1):
            directory = struct.pack(f"{order}IH", 8, 1) + entry + bytes(4)
            exif = b"Exif\0\0" + data[:4] + directory
    # In place, so that no position in the file changes; there is no directory after it.
    written = struct.pack(f"{order}H", len(kept)) + b"".join(kept) + bytes(4)
    return data[:start] + written + data[start + len(written) :], exif
