"""Sets of samples in files: saved samples, folders of images, and features that were computed elsewhere.

An `.npz` file may hold any arrays of a set (`metrics.metric`) under their own names. uint8 images may also be called
`pictures` or `arr_0`, labels `arr_1` (as in the reference batches of guided-diffusion), and `logits` can replace
probabilities. `facts` is JSON text about the file, with the kind of its features under "kind".

A file without samples may hold `mu` (D,) and `sigma` (D, D), the mean and the covariance of the features of a
reference, as Fréchet distances are published with; `mu_s` and `sigma_s` are those of spatial features.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from diffusion_core.common.errors import DuetError
from diffusion_core.data.reading import UNREADABLE
from diffusion_core.files.atomic import write_atomically
from diffusion_core.files.safe_read import file_errors, open_npz, parse_json
from diffusion_core.images.files import natural_order
from diffusion_core.metrics.frechet import gaussian_from_statistics
from diffusion_core.metrics.image_files import read_image_files
from diffusion_core.metrics.metric import ARRAY_NAMES, FEATURE_ARRAYS, STATISTICS, FeatureKind, SampleSet

__all__ = ["align_labels", "join", "read_sample_set", "write_features", "write_statistics"]

_ALIASES = {"pictures": "images", "arr_0": "images", "arr_1": "labels", "logits": "probabilities"}


def read_sample_set(path: str | Path, max_unreadable: float = 0.01) -> SampleSet:
    """Read the samples of a file, a folder of images, or a run; or the published statistics of a reference.

    Labels that are all 0 are ignored, unless the file says that its samples are conditional. Images in class folders
    have those classes as labels.

    Args:
        path: of a run, a folder of images, or an `.npz` file.
        max_unreadable: the largest fraction of the images of a folder that may be unreadable.

    Raises:
        DuetError: the path does not exist, or its content is not as described above.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        files = [path / "samples" / "samples.npz", path / "samples.npz"]
        existing = next((file for file in files if file.is_file()), None)
        return _from_file(existing) if existing else _from_folder(path, max_unreadable)
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
    classes = first.classes
    if any(source.classes != classes for source in sources) and all(source.classes for source in sources):
        names = sorted({name for source in sources for name in source.classes}, key=natural_order)
        classes = tuple(names)
        sources = [align_labels(source, replace(first, classes=classes))[0] for source in sources]
    elif any(source.classes != classes for source in sources):
        classes = ()
    sample_arrays = {}
    for name in first.arrays:
        arrays = [source.arrays[name] for source in sources if name in source.arrays]
        if len(arrays) < len(sources):
            continue
        if len({(array.shape[1:], array.dtype.kind) for array in arrays}) > 1:
            shapes = ", ".join(str(array.shape[1:]) for array in arrays)
            raise DuetError(f"samples: {name} of shapes {shapes} were given; all sets must have one shape")
        sample_arrays[name] = np.concatenate(arrays)
    return SampleSet(
        sample_arrays, {"count": sum(map(len, sources)), "sets": [dict(s.facts) for s in sources]}, first.kind, classes,
        tuple(remark for source in sources for remark in source.remarks),
    )  # fmt: skip


def align_labels(samples: SampleSet, reference: SampleSet) -> tuple[SampleSet, str | None]:
    """Return samples whose labels are the class ids of a reference, by name, and a remark if that is impossible.

    Class ids of two sets may differ: one may begin at 1, lack a class, or have another order. If both name their
    classes, the names decide. "class 3", the name of a class without one, stands for its number. Samples of classes
    that the reference does not have lose their labels.
    """
    names, ids = samples.classes, reference.classes
    if "labels" not in samples.arrays or not names or names == ids:
        return samples, None
    labels = samples.arrays["labels"]
    used = {label: names[label] if label < len(names) else "" for label in np.unique(labels).tolist()}
    numbers = {name: int(match[1]) for name in used.values() if (match := re.fullmatch(r"(?:class )?(\d+)", name))}
    if set(used.values()) <= set(ids):
        new = {label: ids.index(name) for label, name in used.items()}
    elif len(numbers) == len(used) and (not ids or max(numbers.values()) < len(ids)):
        new = {label: numbers[name] for label, name in used.items()}
    elif not ids:
        return samples, None
    else:
        arrays = {name: array for name, array in samples.arrays.items() if name != "labels"}
        listed = ", ".join(repr(name) for name in [name for name in used.values() if name not in ids][:3])
        remark = f"the labels of the samples are not used: the reference has no class {listed}"
        return replace(samples, arrays=arrays, classes=()), remark
    table = np.zeros(max(new) + 1, np.int32)
    table[list(new)] = list(new.values())
    return replace(samples, arrays={**samples.arrays, "labels": table[labels]}, classes=ids), None


def write_statistics(
    path: Path, arrays: Mapping[str, NDArray], kind: FeatureKind | None = None, source: Mapping[str, Any] | None = None
) -> None:
    """Write mean and covariance of features, and of spatial features if there are any, for `read_sample_set`.

    Args:
        path: the `.npz` file.
        arrays: `features` with shape (N, D), and optionally `spatial`.
        kind: the feature network, which a later evaluation must use too.
        source: facts about the images.
    """
    found = {}
    for name, mean, covariance in (("features", *STATISTICS[:2]), ("spatial", *STATISTICS[2:])):
        if name in arrays:
            values = np.asarray(arrays[name], np.float64)
            found |= {mean: values.mean(axis=0), covariance: np.atleast_2d(np.cov(values, rowvar=False))}
    facts = {"kind": kind and kind.plain, "source": dict(source or {})}
    buffer = io.BytesIO()
    np.savez(buffer, **found, facts=np.array(json.dumps(facts)))
    write_atomically(path, buffer.getvalue())


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
        by_label = {int(label): name for label, name in facts.pop("class_names", {}).items()}
        classes = classes or tuple(by_label.get(k, "") for k in range(max(by_label, default=-1) + 1))
    sample_arrays = {
        _ALIASES.get(name, name): array for name, array in arrays.items() if _ALIASES.get(name, name) in ARRAY_NAMES
    }
    if "values" in sample_arrays and not _are_pictures(sample_arrays["values"]):
        sample_arrays.pop("images", None)  # they show the first channel alone
    if "logits" in arrays:
        sample_arrays["probabilities"] = softmax(arrays["logits"].astype(np.float64), axis=1)
    statistics = [name for name in STATISTICS if name in arrays]
    if statistics and not set(sample_arrays) - {"labels"}:
        return _from_statistics(path, arrays, kind, facts.get("source", {}))
    if not set(sample_arrays) - {"labels"}:
        names = ", ".join(arrays) or "nothing"
        raise DuetError(
            f"{path}: it holds {names}; it must hold one of images, {', '.join(FEATURE_ARRAYS)}, or mu and sigma"
        )
    _check(path, sample_arrays)
    if "labels" in sample_arrays and not facts.get("conditional") and not sample_arrays["labels"].any():
        del sample_arrays["labels"]
    if kind is None and set(sample_arrays) & set(FEATURE_ARRAYS):
        widths = {name: array.shape[1] for name, array in sample_arrays.items() if name in FEATURE_ARRAYS}
        kind = FeatureKind("given", {"kind": "given", "width": widths})
    if "source" in facts:  # written by `write_features`: the facts of the images from which the features were computed
        return SampleSet(sample_arrays, facts["source"], kind, classes)
    remarks = (f"{path.name}: its images are used, and not its {' and '.join(statistics)}",) if statistics else ()
    own = {"name": path.stem, "count": len(next(iter(sample_arrays.values()))), "sha256": _hash(sample_arrays)}
    return SampleSet(sample_arrays, own | ({"made": facts} if facts else {}), kind, classes, remarks)


def _from_folder(path: Path, max_unreadable: float) -> SampleSet:
    read = read_image_files(path, max_unreadable)
    sample_arrays = {"images": read.images} | ({} if read.labels is None else {"labels": read.labels})
    facts = {"name": path.name, "count": len(read.images), "sha256": _hash(sample_arrays)}
    left_out = {kind: count for kind, count in read.reading.counts.items() if kind == UNREADABLE}
    facts |= {"left_out": left_out} if left_out else {}
    return SampleSet(sample_arrays, facts, classes=read.classes, remarks=read.reading.lines)


def _from_statistics(
    path: Path, arrays: Mapping[str, NDArray], kind: FeatureKind | None, source: Mapping[str, Any]
) -> SampleSet:
    """Return a reference of which only the mean and the covariance of features are known."""
    found = {name: arrays[name] for name in STATISTICS if name in arrays}
    for mean, covariance in (STATISTICS[:2], STATISTICS[2:]):
        if mean in found or covariance in found:
            if mean not in found or covariance not in found:
                raise DuetError(f"{path}: it holds {', '.join(found)}; {mean} and {covariance} belong together")
            with file_errors(path, "it is not a file of statistics"):
                found[mean] = found[mean].reshape(-1) if found[mean].ndim == 2 else found[mean]
                gaussian_from_statistics(found[mean], found[covariance], f"{mean} and {covariance}")
    widths = {name: len(found[name]) for name in STATISTICS[::2] if name in found}
    facts = {"name": path.stem, "sha256": _hash(found)} | source | {"statistics": widths}
    of = f"{kind.name} features" if kind else "features of a network that the file does not name"
    remark = (
        f"mean and covariance of {' and '.join(map(str, widths.values()))} {of}; Fréchet distances are all that can be "
        f"computed from them"
    )
    return SampleSet(found, facts, kind, remarks=(remark,))


def _check(path: Path, sample_arrays: dict[str, NDArray]) -> None:
    for name, array in sample_arrays.items():
        if name == "images":
            fits, what = array.dtype == np.uint8 and array.ndim == 4, "uint8 with shape (N, H, W, C)"
        elif name == "values":
            fits, what = np.issubdtype(array.dtype, np.floating) and array.ndim > 1, "floating with shape (N, ...)"
        elif name == "labels":
            fits, what = np.issubdtype(array.dtype, np.integer) and array.ndim == 1, "integers with shape (N,)"
        else:
            fits, what = np.issubdtype(array.dtype, np.floating) and array.ndim == 2, "floating with shape (N, D)"
        if not fits or 0 in array.shape:
            raise DuetError(f"{path}: its {name} are {array.dtype} with shape {array.shape}; they must be {what}")
    if len({len(array) for array in sample_arrays.values()}) > 1:
        counts = ", ".join(f"{len(array)} {name}" for name, array in sample_arrays.items())
        raise DuetError(f"{path}: it holds {counts}; the numbers must be equal")


def _are_pictures(values: NDArray) -> bool:
    return values.ndim == 4 and values.shape[3] in (1, 3)


def _hash(sample_arrays: dict[str, Any]) -> str:
    """Hash the images if there are any, otherwise the features."""
    digest = hashlib.sha256()
    for name in ("images",) if "images" in sample_arrays else sorted(sample_arrays):
        array = np.ascontiguousarray(sample_arrays[name])
        key = "pictures" if name == "images" else name  # hashes in existing files depend on this word
        digest.update(f"{key} {array.dtype.str} {array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()
