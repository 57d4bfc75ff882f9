"""Sets of samples in files: saved samples, folders of PNG files, and features that were computed elsewhere.

An `.npz` file may hold any arrays of a set (`metrics.metric`) under their own names. uint8 images may also be called
`pictures` or `arr_0`, labels `arr_1` (as in the reference batches of guided-diffusion), and `logits` can replace
probabilities. `facts` is JSON text about the file, with the kind of its features under "kind".
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.special import softmax

from diffusion_core.common.errors import DuetError
from diffusion_core.files.atomic import write_atomically
from diffusion_core.files.safe_read import file_errors, open_npz, open_regular, parse_json
from diffusion_core.metrics.metric import ARRAY_NAMES, FEATURE_ARRAYS, FeatureKind, SampleSet

__all__ = ["join", "read_sample_set", "write_features"]

_ALIASES = {"pictures": "images", "arr_0": "images", "arr_1": "labels", "logits": "probabilities"}


def read_sample_set(path: str | Path) -> SampleSet:
    """Read the samples of a file, a folder of PNG files, or a run.

    Labels that are all 0 are ignored, unless the file says that its samples are conditional.

    Raises:
        DuetError: the path does not exist, or its content is not as described above.
    """
    path = Path(path)
    if path.is_dir():
        files = [path / "samples" / "samples.npz", path / "samples.npz"]
        existing = next((file for file in files if file.is_file()), None)
        return _from_file(existing) if existing else _from_folder(path)
    return _from_file(path)


def join(sources: Sequence[SampleSet]) -> SampleSet:
    """Concatenate several sets in order, with the arrays that all of them have.

    Raises:
        DuetError: their features or shapes differ.
    """
    if len(sources) == 1:
        return sources[0]
    first = sources[0]
    if any(source.kind != first.kind for source in sources):
        raise DuetError("samples: the sets have features of different kinds; evaluate them separately")
    sample_arrays = {}
    for name in first.arrays:
        arrays = [source.arrays[name] for source in sources if name in source.arrays]
        if len(arrays) < len(sources):
            continue
        if len({(array.shape[1:], array.dtype) for array in arrays}) > 1:
            shapes = ", ".join(str(array.shape[1:]) for array in arrays)
            raise DuetError(f"samples: {name} of shapes {shapes} were given; all sets must have one shape")
        sample_arrays[name] = np.concatenate(arrays)
    return SampleSet(
        sample_arrays, {"count": sum(map(len, sources)), "sets": [dict(s.facts) for s in sources]}, first.kind
    )


def write_features(path: Path, source: SampleSet) -> None:
    """Write a set without its images, for `read_sample_set` in an environment that cannot compute the features."""
    sample_arrays = {name: array for name, array in source.arrays.items() if name in (*FEATURE_ARRAYS, "labels")}
    kind = source.kind and source.kind.plain
    facts = {
        "source": dict(source.facts),
        "kind": kind,
        "conditional": "labels" in sample_arrays,
        "classes": source.classes,
    }
    buffer = io.BytesIO()
    np.savez(buffer, **sample_arrays, facts=np.array(json.dumps(facts)))
    write_atomically(path, buffer.getvalue())


def _from_file(path: Path) -> SampleSet:
    with open_npz(path, "a file of samples or features") as file:
        arrays = dict(file)
        facts = parse_json(str(arrays.pop("facts", "{}")))
        kind = facts.pop("kind", None)
        kind, classes = kind and FeatureKind(**kind), tuple(facts.pop("classes", ()))
    sample_arrays = {
        _ALIASES.get(name, name): array for name, array in arrays.items() if _ALIASES.get(name, name) in ARRAY_NAMES
    }
    if "logits" in arrays:
        sample_arrays["probabilities"] = softmax(arrays["logits"].astype(np.float64), axis=1)
    if not set(sample_arrays) - {"labels"}:
        names = ", ".join(arrays) or "nothing"
        raise DuetError(f"{path}: it holds {names}; it must hold one of images, {', '.join(FEATURE_ARRAYS)}")
    _check(path, sample_arrays)
    if "labels" in sample_arrays and not facts.get("conditional") and not sample_arrays["labels"].any():
        del sample_arrays["labels"]
    if kind is None and set(sample_arrays) & set(FEATURE_ARRAYS):
        widths = {name: array.shape[1] for name, array in sample_arrays.items() if name in FEATURE_ARRAYS}
        kind = FeatureKind("given", {"kind": "given", "width": widths})
    if "source" in facts:  # written by `write_features`: the facts of the images from which the features were computed
        return SampleSet(sample_arrays, facts["source"], kind, classes)
    own = {"name": path.stem, "count": len(next(iter(sample_arrays.values()))), "sha256": _hash(sample_arrays)}
    return SampleSet(sample_arrays, own | ({"made": facts} if facts else {}), kind, classes)


def _from_folder(path: Path) -> SampleSet:
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() == ".png")
    if not files:
        raise DuetError(f"{path}: it is not a run with samples/samples.npz and not a folder with PNG files")
    images: NDArray[np.uint8] | None = None
    for k, file in enumerate(files):
        with file_errors(file, "it cannot be read"), open_regular(file), Image.open(file) as image:
            mode, pixels = image.mode, np.asarray(image)
        if mode not in ("L", "RGB"):
            raise DuetError(f"{file}: its mode is {mode}; samples must be grey or RGB with 8 bits")
        pixels = pixels.reshape(*pixels.shape[:2], -1)
        if images is None:
            images = np.empty((len(files), *pixels.shape), np.uint8)
        if pixels.shape != images.shape[1:]:
            raise DuetError(f"{file}: it is {pixels.shape} (h, w, c) and {files[0].name} {images.shape[1:]}")
        images[k] = pixels
    sample_arrays = {"images": images}
    return SampleSet(sample_arrays, {"name": path.name, "count": len(files), "sha256": _hash(sample_arrays)})


def _check(path: Path, sample_arrays: dict[str, NDArray]) -> None:
    for name, array in sample_arrays.items():
        if name == "images":
            fits, what = array.dtype == np.uint8 and array.ndim == 4, "uint8 with shape (N, H, W, C)"
        elif name == "labels":
            fits, what = np.issubdtype(array.dtype, np.integer) and array.ndim == 1, "integers with shape (N,)"
        else:
            fits, what = np.issubdtype(array.dtype, np.floating) and array.ndim == 2, "floating with shape (N, D)"
        if not fits or 0 in array.shape:
            raise DuetError(f"{path}: its {name} are {array.dtype} with shape {array.shape}; they must be {what}")
    if len({len(array) for array in sample_arrays.values()}) > 1:
        counts = ", ".join(f"{len(array)} {name}" for name, array in sample_arrays.items())
        raise DuetError(f"{path}: it holds {counts}; the numbers must be equal")


def _hash(sample_arrays: dict[str, Any]) -> str:
    """Hash the images if there are any, otherwise the features."""
    digest = hashlib.sha256()
    for name in ("images",) if "images" in sample_arrays else sorted(sample_arrays):
        array = np.ascontiguousarray(sample_arrays[name])
        key = "pictures" if name == "images" else name  # hashes in existing files depend on this word
        digest.update(f"{key} {array.dtype.str} {array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()
