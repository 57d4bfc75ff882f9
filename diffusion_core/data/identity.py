"""Whether a prepared data set was made from these files: a quick fingerprint, and the content of the files.

The fingerprint of a folder covers the names, sizes and times of its files, so that nothing is read twice. A copy, a
checkout or `touch` changes the times alone; then the files are read, and their content decides.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_core.common.errors import DuetError
from diffusion_core.data.source import Source
from diffusion_core.images.decode import ImageInput, Packed, read_bytes

__all__ = ["content_digest", "describe_difference", "differs_by_times", "fingerprint", "same_content", "total_digest"]


def fingerprint(source: Source) -> str:
    """Hash a source: the content of pixels, the names, sizes and times of files and archives."""
    digest = hashlib.sha256(json.dumps([source.name, source.class_names, source.names]).encode())
    digest.update(source.labels.astype("<i4").tobytes())
    if source.conditions is not None:
        digest.update(json.dumps(source.condition_names).encode() + source.conditions.astype("<f4").tobytes())
    if isinstance(source.images, np.ndarray):
        step = max(1, (1 << 24) // source.images[0].nbytes)
        digest.update(str(source.images.shape).encode())
        if source.images.dtype != np.uint8:
            digest.update(f"{source.images.dtype.str} {source.value_range}".encode())
        for start in range(0, len(source), step):
            digest.update(np.ascontiguousarray(source.images[start : start + step]))
        return digest.hexdigest()
    archives: dict[Path, str] = {}
    for image in source.images:
        if isinstance(image, bytes):
            digest.update(hashlib.sha256(image).digest())
            continue
        file = image.archive if isinstance(image, Packed) else image
        if not isinstance(image, Packed) or file not in archives:
            state = file.stat()
            archives[file] = f"{state.st_size} {state.st_mtime_ns}"
        # Without the folder, because the same folder may be given by another path.
        digest.update(f"{image.name}\0{archives[file]}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def content_digest(image: ImageInput) -> str:
    """Return a hash of the bytes of an image file, or the same word for every file that cannot be read."""
    if isinstance(image, np.ndarray):
        return ""  # the fingerprint covers pixels
    try:
        return hashlib.sha256(read_bytes(image)).hexdigest()
    except (OSError, DuetError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError):
        return "unreadable"


def total_digest(source: Source, digests: Iterable[str]) -> str:
    """Return one hash for the contents of all files of a source, in order, with their names and labels."""
    total = hashlib.sha256(json.dumps([source.name, source.class_names, source.names]).encode())
    total.update(source.labels.astype("<i4").tobytes())
    for digest in digests:
        total.update(digest.encode())
    return total.hexdigest()


def differs_by_times(card: Mapping[str, Any], request: Mapping[str, Any]) -> bool:
    """Return whether a request may differ from that of a card in nothing but the times of files."""
    made = card["request"]
    if {**made, "parts": None} != {**request, "parts": None} or made["parts"].keys() != request["parts"].keys():
        return False
    counts = [{part: about["count"] for part, about in wanted["parts"].items()} for wanted in (made, request)]
    return counts[0] == counts[1] and card.get("contents", {}).keys() == request["parts"].keys()


def same_content(contents: Mapping[str, str], parts: Mapping[str, Source]) -> bool:
    """Return whether the files of every part hold what a card says that they held; every file is read."""
    for part, source in parts.items():
        if isinstance(source.images, np.ndarray):
            return False
        if total_digest(source, map(content_digest, source.images)) != contents[part]:
            return False
    return True


def describe_difference(made: Mapping[str, Any], request: Mapping[str, Any]) -> str:
    """Return in words what differs between two requests."""
    differences = []
    if made.get("square") != request["square"]:
        was, now = made.get("square") or {}, request["square"]
        changed = [key for key in now if was.get(key) != now[key]]
        differences.append(
            f"with other options ({', '.join(f'{key} {was.get(key)} instead of {now[key]}' for key in changed)})"
        )
    if made.get("parts", {}).keys() != request["parts"].keys():
        former = ", ".join(made.get("parts", {}))
        differences.append(f"with other parts ({former} instead of {', '.join(request['parts'])})")
    elif made.get("parts") != request["parts"]:
        counts = [sum(about["count"] for about in wanted["parts"].values()) for wanted in (made, request)]
        differences.append(f"from {counts[0]:,} other files" if counts[0] != counts[1] else "from other files")
    if made.get("pillow") != request["pillow"]:
        differences.append(f"by Pillow {made.get('pillow')} instead of {request['pillow']}")
    return " and ".join(differences) or "from other files"
