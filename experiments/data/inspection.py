"""A page about a data set before anything is trained on it, and the same as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.data import Dataset, to_uint8
from diffusion_core.data.card import card_reading
from diffusion_core.data.reading import merge_readings
from diffusion_core.data.store import read_names
from diffusion_core.data.survey import Pairs, Survey, find_near_pairs, survey
from diffusion_core.data.toys import are_points
from diffusion_core.files.safe_read import read_json
from diffusion_core.images import render
from diffusion_core.images.channels import as_pictures
from diffusion_core.images.points import point_coordinates, scatter
from diffusion_core.runs.run_directory import describe_environment
from experiments.report.data import MEAN_CLASSES, write
from experiments.runtime.data import DataSource
from experiments.runtime.progress import Counter

__all__ = ["InspectionSetup", "inspect_dataset"]

_SAMPLED_CLASSES, _SHOWN_PAIRS = 20, 12


@dataclass(frozen=True)
class InspectionSetup:
    """A request for a page about a data set.

    Args:
        data: the data set.
        parts: the parts to inspect; empty means every prepared part, or the part that `data` selects.
        max_distance: images are near if their thumbnails differ by at most this root mean square, in 0..255.
        max_compared: the largest number of images of each part that are compared, drawn by stream.
        pairs: how many near pairs are listed.
        samples: how many images of each class are shown.
        seed: the seed of the streams.

    Raises:
        DuetError: a number is negative.
    """

    data: DataSource
    parts: tuple[str, ...] = ()
    max_distance: float = 4.0
    max_compared: int = 50_000
    pairs: int = 100
    samples: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        for key in ("max_distance", "pairs", "max_compared", "samples"):
            if getattr(self, key) < 0:
                raise DuetError(f"{key}: {getattr(self, key)} was given; it must be at least 0")


@dataclass(frozen=True, eq=False)
class _Part:
    """One part with everything that the page shows of it.

    Args:
        dataset: its images.
        survey: its statistics.
        names: the names of its images.
        compared: the indices of the images that are compared.
    """

    dataset: Dataset
    survey: Survey
    names: list[str]
    compared: NDArray[np.int64]

    @property
    def thumbnails(self) -> NDArray[np.uint8]:
        """The thumbnails that are compared."""
        return self.survey.thumbnails[self.compared]

    @property
    def scale(self) -> int:
        """The magnification at which its images are shown."""
        return max(1, 48 // max(self.dataset.shape[:2]))


def inspect_dataset(setup: InspectionSetup, out: str | Path) -> Path:
    """Read every part, compute its statistics, compare the parts, and write the page.

    Args:
        setup: what to inspect.
        out: the directory to write.

    Returns:
        The path of the page.
    """
    parts = {name: _inspect_part(setup, name, dataset) for name, dataset in _load_parts(setup).items()}
    card = _card(setup.data)
    # Points of the plane are stored as pixels; pictures of them, and near-duplicates, would show nothing.
    are_all_points = all(are_points(part.dataset) for part in parts.values())
    are_pictures = next(iter(parts.values())).dataset.is_pictures
    near = _find_pairs(setup, parts) if are_pictures and not are_all_points else {}
    plains = [part.dataset.reading.plain for part in parts.values()]
    report = {
        "title": f"The data set {next(iter(parts.values())).dataset.name}",
        "environment": describe_environment(),
        "parts": {name: _facts(part) for name, part in parts.items()},
        "card": card,
        "points": are_all_points,
        "are_pictures": are_pictures,
        "reading": card_reading(card) if card else merge_readings(plains),
        "near": {
            "within": setup.max_distance,
            "compared": {name: len(part.compared) if near else 0 for name, part in parts.items()},
            "pairs": [_describe_pairs(names, pairs, parts) for names, pairs in near.items()],
        },
        "seed": setup.seed,
    }
    if are_all_points:
        sheets = {f"samples, {name}": _scatter(part.dataset) for name, part in parts.items()}
    else:
        sheets = {key: png for name, part in parts.items() for key, png in _sheets(setup, name, part).items()}
        sheets |= _pair_sheets(near, parts)
    return write(report, {name: part.survey.histograms for name, part in parts.items()}, sheets, Path(out))


def _load_parts(setup: InspectionSetup) -> dict[str, Dataset]:
    """Return the data sets by part: the requested parts, those of the store, or the one that `data` selects."""
    data, wanted = setup.data, list(setup.parts)
    wanted = wanted or data.parts()
    if not wanted:
        dataset = data.load()
        return {dataset.reading.part or data.options.get("part") or "all": dataset}
    loaded = {part: replace(data, options={**data.options, "part": part}).load() for part in wanted}
    if len({(d.shape, d.is_pictures) for d in loaded.values()}) > 1:
        shapes = ", ".join(f"{part}: {d.shape} {d.images.dtype}" for part, d in loaded.items())
        raise DuetError(f"parts: {shapes}; they must have one shape, so inspect them one by one")
    return loaded


def _inspect_part(setup: InspectionSetup, name: str, dataset: Dataset) -> _Part:
    with Counter(f"{name}: reading", len(dataset)) as progress:
        statistics = survey(dataset, MEAN_CLASSES, progress)
    root, count, most = _store(setup.data), len(dataset), setup.max_compared
    drawn = np.sort(Stream(setup.seed, "inspect/pairs").permutation(count)[:most])
    compared = np.arange(count) if count <= most else drawn
    return _Part(dataset, statistics, read_names(root and root / name, count), compared)


def _find_pairs(setup: InspectionSetup, parts: Mapping[str, _Part]) -> dict[tuple[str, str], Pairs]:
    """Return the near pairs within each part and between each two parts."""
    near = {}
    for a, b in combinations_with_replacement(parts, 2):
        first, second = parts[a].thumbnails, None if a == b else parts[b].thumbnails
        title = f"near-duplicates within {a}" if a == b else f"near-duplicates between {a} and {b}"
        with Counter(title, len(first)) as progress:
            near[a, b] = find_near_pairs(first, second, setup.max_distance, setup.pairs, progress)
    return near


def _facts(part: _Part) -> dict[str, Any]:
    dataset, statistics = part.dataset, part.survey
    scale = 255 if dataset.is_pictures else 1
    size = dataset.image_size
    facts = {
        "pictures": len(dataset),
        "size": size if isinstance(size, int) else list(size),
        "channels": dataset.channels,
        "sha256": dataset.sha256,
        "classes": dict(zip(dataset.class_names, statistics.counts.tolist(), strict=True)),
        "mean": (statistics.mean / scale).tolist(),
        "std": (statistics.std / scale).tolist(),
        "histograms": statistics.histograms.tolist(),
        "type": dataset.images.dtype.name,
        "ends": list(statistics.ends),
    }
    if dataset.conditions is not None:
        means, stds = (
            dataset.conditions.mean(axis=0, dtype=np.float64),
            dataset.conditions.std(axis=0, dtype=np.float64),
        )
        numbers = zip(dataset.condition_names, means.tolist(), stds.tolist(), strict=True)
        facts["conditions"] = {name: {"mean": mean, "std": std} for name, mean, std in numbers}
    return facts


def _store(data: DataSource) -> Path | None:
    """Return the directory of the store from which the data were read; None if they come from elsewhere."""
    store = data.store
    if data.name == "store":
        store = data.options["directory"]
    elif data.options.get("path", "") is not None:
        store = None
    return Path(store).expanduser() if store else None


def _card(data: DataSource) -> dict[str, Any] | None:
    store = _store(data)
    return read_json(store / "card.json") if store and (store / "card.json").is_file() else None


def _describe_pairs(names: tuple[str, str], pairs: Pairs, parts: Mapping[str, _Part]) -> dict[str, Any]:
    """Return near pairs as plain data, with their classes and whether they are identical."""
    left, right = (parts[name] for name in names)
    listed = []
    for (i, j), distance in zip(pairs.indices, pairs.distances, strict=True):
        i, j = left.compared[i], right.compared[j]
        a, b = left.dataset, right.dataset
        listed.append({
            "first": left.names[i], "second": right.names[j], "places": [int(i), int(j)], "distance": float(distance),
            "classes": [a.class_names[a.labels[i]], b.class_names[b.labels[j]]],
            "same": bool(np.array_equal(a.images[i], b.images[j])),
        })  # fmt: skip
    return {"parts": list(names), "count": pairs.count, "nearest": listed}


def _scatter(dataset: Dataset) -> bytes:
    """Draw all points of a data set."""
    names = dict(enumerate(dataset.class_names))
    return render.png_bytes(scatter(point_coordinates(np.asarray(dataset.images)), dataset.labels, names))


def _sheets(setup: InspectionSetup, name: str, part: _Part) -> dict[str, bytes]:
    """Draw the mean image of each class, and sampled images with a row for each class."""
    dataset, present = part.dataset, np.flatnonzero(part.survey.counts[:MEAN_CLASSES])
    if len(dataset.shape) != 3:
        return {}
    sheets = {}
    if dataset.is_pictures:
        means = np.floor(part.survey.class_means[present] + 0.5).astype(np.uint8)
        sheets[f"means, {name}"] = render.png_bytes(render.grid(means, min(10, len(present)), part.scale))
    order = Stream(setup.seed, "inspect/samples").permutation(len(dataset))
    rows = []
    for k in present[:_SAMPLED_CLASSES] if setup.samples else ():
        indices = order[dataset.labels[order] == k][: setup.samples]
        rows.append((dataset.class_names[k], _shown(part, indices)))
    if rows:
        sheets[f"samples, {name}"] = render.png_bytes(render.labelled_rows(rows, part.scale))
    return sheets


def _shown(part: _Part, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return some images as bytes; of data that are no pictures, the first channel between its ends."""
    dataset, (low, high) = part.dataset, part.survey.ends
    if dataset.is_pictures:
        return dataset.pictures(indices)
    values = as_pictures(np.asarray(dataset.images[indices], np.float64))
    return to_uint8(values, (low, high if high > low else low + 1))


def _pair_sheets(near: Mapping[tuple[str, str], Pairs], parts: Mapping[str, _Part]) -> dict[str, bytes]:
    """Draw the nearest pairs, one image above the other."""
    sheets = {}
    for names, pairs in near.items():
        indices = pairs.indices[:_SHOWN_PAIRS]
        if len(indices):
            rows = [
                (name, parts[name].dataset.pictures(parts[name].compared[indices[:, side]]))
                for side, name in enumerate(names)
            ]
            sheets[f"pairs, {names[0]}, {names[1]}"] = render.png_bytes(
                render.labelled_rows(rows, parts[names[0]].scale)
            )
    return sheets
