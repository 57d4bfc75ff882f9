"""The files of JPEG, PNG and WebP images without their metadata: the same pixels, and nothing else that can be damaged.

Pillow parses EXIF, ICC, XMP and text entries while it opens a file, and a damaged entry can raise an error although
every pixel is sound. These three formats are sequences of named blocks, so the blocks that no pixel needs can be left
out without decoding anything:

    JPEG   segments FF xx, length; left out: APPn except JFIF (APP0) and Adobe (APP14), and comments
    PNG    chunks length, name, data, checksum; kept: IHDR, PLTE, tRNS, IDAT, IEND and the rendering chunks of APNG
    WebP   RIFF chunks name, length, data; left out: EXIF, XMP and ICCP, with their flags in VP8X
"""

from __future__ import annotations

import struct

__all__ = ["without_metadata"]

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"acTL", b"fcTL", b"fdAT")
_WEBP_LEFT_OUT = {b"EXIF": 0x08, b"XMP ": 0x04, b"ICCP": 0x20}  # with the flag of each in VP8X


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
