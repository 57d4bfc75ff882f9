"""Look at a data set before anything is trained on it: one page, and the same as JSON.

    python3 -m duet inspect data=digits parts=[train,held_out] out=outputs/inspect
    python3 -m duet inspect data=cifar10 out=outputs/inspect       # every part of the prepared store
    python3 -m duet inspect data=image_folder data.options.path=FOLDER out=outputs/inspect

It shows counts per class, sizes, channel means and histograms, the mean image of each class, images drawn by
stream, and pairs of images that are nearly alike, within a part and between parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.data import Dataset
from diffusion_core.data.store import read_names, store_parts
from diffusion_core.data.survey import Pairs, Survey, find_near_pairs, survey
from diffusion_core.files.safe_read import read_json
from diffusion_core.images import render
from diffusion_core.runs.run_directory import describe_environment
from experiments.config.build import load_data
from experiments.config.entry import Config, command
from experiments.report.data import write
from experiments.runtime.progress import Counter

_CLASSES = 64


@command("inspect", result=("report.json", "a report"))
def main(cfg: Config) -> None:
    """Read every part, look at it, compare them, and write the page."""
    out = Path(cfg.out)
    for key in ("max_distance", "pairs", "max_compared", "samples"):
        if cfg[key] < 0:
            raise DuetError(f"{key}: {cfg[key]} was given; it must be at least 0")
    parts = _parts(cfg)
    surveys = {}
    for part, dataset in parts.items():
        with Counter(f"{part}: reading", len(dataset)) as progress:
            surveys[part] = survey(dataset, _CLASSES, progress)
    chosen = {part: _chosen(len(dataset), cfg.max_compared, cfg.seed) for part, dataset in parts.items()}
    near = _near(cfg, parts, surveys, chosen)
    first = next(iter(parts.values()))
    report = {
        "title": f"The data set {first.name}",
        "environment": describe_environment(),
        "parts": {part: _facts(dataset, surveys[part]) for part, dataset in parts.items()},
        "card": _card(cfg),
        "near": {
            "within": cfg.max_distance,
            "compared": {part: len(places) for part, places in chosen.items()},
            "pairs": [_described(pairs, found, parts, chosen, _names(cfg, parts)) for pairs, found in near.items()],
        },
        "seed": cfg.seed,
    }
    sheets = _sheets(cfg, parts, surveys) | _pair_sheets(near, parts, chosen)
    print(f"page: {write(report, {part: s.histograms for part, s in surveys.items()}, sheets, out)}")


def _parts(cfg: Config) -> dict[str, Dataset]:
    """The data sets by part: those that are named, those of the store, or the one that the configuration means."""
    wanted = list(cfg.parts)
    if not wanted and cfg.data.name != "store" and cfg.data.options.get("path", "") is None:
        wanted = store_parts(cfg.data.store or "")
    elif not wanted and cfg.data.name == "store" and cfg.data.options.get("part") is None:
        wanted = store_parts(cfg.data.options.directory)
    if not wanted:
        return {cfg.data.options.get("part") or "all": load_data(cfg.data)}
    found = {}
    for part in wanted:
        data = cfg.data.copy()
        data.options.part = part
        found[part] = load_data(data)
    if len({(d.images.shape[1:], d.class_names) for d in found.values()}) > 1:
        shapes = ", ".join(f"{part}: {d.images.shape[1:]}, {d.num_classes} classes" for part, d in found.items())
        raise DuetError(f"parts: {shapes}; they must be of one shape and the same classes, so look at them one by one")
    return found


def _chosen(count: int, most: int, seed: int) -> NDArray[np.int64]:
    """The images that are compared: all, or so many drawn by stream."""
    return np.arange(count) if count <= most else np.sort(Stream(seed, "inspect/pairs").permutation(count)[:most])


def _near(
    cfg: Config,
    parts: Mapping[str, Dataset],
    surveys: Mapping[str, Survey],
    chosen: Mapping[str, NDArray[np.int64]],
) -> dict[tuple[str, str], Pairs]:
    """Near pairs within each part and between each two."""
    found = {}
    for a, b in combinations_with_replacement(parts, 2):
        first, second = (surveys[part].thumbnails[chosen[part]] for part in (a, b))
        title = f"near pairs within {a}" if a == b else f"near pairs between {a} and {b}"
        with Counter(title, len(first)) as progress:
            found[a, b] = find_near_pairs(first, None if a == b else second, cfg.max_distance, cfg.pairs, progress)
    return found


def _facts(dataset: Dataset, found: Survey) -> dict[str, Any]:
    return {
        "pictures": len(dataset),
        "size": dataset.image_size,
        "channels": dataset.channels,
        "sha256": dataset.sha256,
        "classes": dict(zip(dataset.class_names, found.counts.tolist(), strict=True)),
        "mean": (found.mean / 255).tolist(),
        "std": (found.std / 255).tolist(),
        "histograms": found.histograms.tolist(),
    }


def _store(cfg: Config) -> Path | None:
    """The directory of the stores that were read; None of data from elsewhere, whatever store of theirs there is."""
    options, store = cfg.data.options, cfg.data.store
    if cfg.data.name == "store":
        store = options.directory
    elif options.get("path", "") is not None:
        store = None
    return Path(store).expanduser() if store else None


def _card(cfg: Config) -> dict[str, Any] | None:
    store = _store(cfg)
    return read_json(store / "card.json") if store and (store / "card.json").is_file() else None


def _names(cfg: Config, parts: Mapping[str, Dataset]) -> dict[str, list[str]]:
    """What the images of each part are called."""
    root = _store(cfg)
    return {part: read_names(root and root / part, len(dataset)) for part, dataset in parts.items()}


def _described(
    pair: tuple[str, str],
    found: Pairs,
    parts: Mapping[str, Dataset],
    chosen: Mapping[str, NDArray[np.int64]],
    names: Mapping[str, list[str]],
) -> dict[str, Any]:
    """Near pairs as plain data, the same ones marked, and those whose classes differ."""
    listed = []
    for (i, j), distance in zip(found.indices, found.distances, strict=True):
        (a, b), (i, j) = pair, (chosen[pair[0]][i], chosen[pair[1]][j])
        left, right = parts[a], parts[b]
        listed.append({
            "first": names[a][i], "second": names[b][j], "places": [int(i), int(j)], "distance": float(distance),
            "classes": [left.class_names[left.labels[i]], right.class_names[right.labels[j]]],
            "same": bool(np.array_equal(left.images[i], right.images[j])),
        })  # fmt: skip
    return {"parts": list(pair), "count": found.count, "nearest": listed}


def _sheets(cfg: Config, parts: Mapping[str, Dataset], surveys: Mapping[str, Survey]) -> dict[str, bytes]:
    """Mean images and drawn images, a row for each class."""
    sheets = {}
    for part, dataset in parts.items():
        scale = max(1, 48 // dataset.image_size)
        means, present = surveys[part].class_means, np.flatnonzero(surveys[part].counts[:_CLASSES])
        average = np.floor(means[present] + 0.5).astype(np.uint8)
        sheets[f"means, {part}"] = render.png_bytes(render.grid(average, min(10, len(present)), scale))
        order = Stream(cfg.seed, "inspect/samples").permutation(len(dataset))
        rows = []
        for k in present[:20] if cfg.samples else ():
            places = order[dataset.labels[order] == k][: cfg.samples]
            rows.append((dataset.class_names[k], np.asarray(dataset.images[places])))
        if rows:
            sheets[f"samples, {part}"] = render.png_bytes(render.labelled_rows(rows, scale))
    return sheets


def _pair_sheets(
    near: Mapping[tuple[str, str], Pairs], parts: Mapping[str, Dataset], chosen: Mapping[str, NDArray[np.int64]]
) -> dict[str, bytes]:
    """The nearest pairs, one above the other."""
    sheets = {}
    for (a, b), found in near.items():
        places = found.indices[:12]
        if len(places):
            rows = [
                (part, np.asarray(parts[part].images[chosen[part][places[:, side]]]))
                for side, part in enumerate((a, b))
            ]
            sheets[f"pairs, {a}, {b}"] = render.png_bytes(render.labelled_rows(rows, max(1, 48 // parts[a].image_size)))
    return sheets


if __name__ == "__main__":
    main()
