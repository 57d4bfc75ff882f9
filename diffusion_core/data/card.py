"""The data card of a prepared data set: what it holds and how it was made, for programs and for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray

from diffusion_core.data.archives import DatasetInfo
from diffusion_core.data.dataset import Dataset
from diffusion_core.data.reading import BY_CONTENT, METADATA, UNREADABLE, Reading, merge_readings, reading_lines
from diffusion_core.data.shards import Shards
from diffusion_core.data.source import Source
from diffusion_core.data.square import SquareTransform

__all__ = ["PreparedPart", "card_reading", "card_text", "channel_statistics", "data_card", "part_lines"]

_LISTED = 100
_BLOCK_BYTES = 1 << 24


@dataclass(frozen=True, eq=False)
class PreparedPart:
    """A part that was written as a store.

    Args:
        source: where its images come from.
        dataset: its images.
        unreadable: names and reasons of the images that were skipped.
        damaged: names of images with damaged metadata, with the damage.
        sizes: how many images had each original size.
    """

    source: Source
    dataset: Dataset
    unreadable: Sequence[tuple[str, str]]
    damaged: Sequence[str]
    sizes: Counter


def channel_statistics(images: NDArray[np.uint8] | Shards) -> dict[str, Any]:
    """Return mean and standard deviation of each channel, of pixels in 0..1, and the sigma_data of EDM.

    ``sigma_data`` is the root mean square of the channels' standard deviations for values in [-1, 1]: twice that of
    pixels in 0..1. They come from the histograms of the 256 values, so they are exact.
    """
    histograms = np.zeros((images.shape[3], 256), np.int64)
    step = max(1, _BLOCK_BYTES // images[0].size)
    for start in range(0, len(images), step):
        block = np.asarray(images[start : start + step])
        for c, histogram in enumerate(histograms):
            histogram += np.bincount(block[..., c].reshape(-1), minlength=256)
    levels, total = np.arange(256.0) / 255, histograms.sum(axis=1)
    mean = histograms @ levels / total
    variance = np.maximum(histograms @ levels**2 / total - mean**2, 0.0)
    return {
        "mean": mean.tolist(),
        "std": np.sqrt(variance).tolist(),
        "sigma_data": float(2 * np.sqrt(variance.mean())),
    }


def data_card(
    parts: Mapping[str, PreparedPart], transform: SquareTransform, info: DatasetInfo, extra: dict[str, Any]
) -> dict[str, Any]:
    """Return the data card as plain data."""
    described = {}
    for part, made in parts.items():
        dataset = made.dataset
        described[part] = {
            "pictures": len(dataset),
            "sha256": dataset.sha256,
            "classes": dict(zip(dataset.class_names, dataset.class_counts.tolist(), strict=True)),
            "statistics": channel_statistics(dataset.images),
            "sizes_before": {"different": len(made.sizes), "most_common": dict(made.sizes.most_common(10))},
            "unreadable": {"count": len(made.unreadable), "first": dict(made.unreadable[:_LISTED])},
            "damaged_metadata": Reading().with_left_out(METADATA, made.damaged).plain["left_out"].get(METADATA),
        }
    first = next(iter(parts.values())).source
    return {
        "name": first.name,
        "title": info.title,
        "homepage": info.homepage,
        "licence": info.licence,
        "citation": info.citation,
        "picture": {"size": transform.size, "channels": transform.channels, "type": "uint8"},
        "made": {
            "crop": f"the largest square, {'at the centre' if transform.crop == 'centre' else 'at a random position'}",
            "resize": f"Lanczos with antialiasing, by Pillow {PIL.__version__}; none if the size already fits",
            "seed": transform.seed,
        },
        "parts": described,
        "reading": first.reading.plain,
    } | extra


def card_reading(card: Mapping[str, Any]) -> dict[str, Any]:
    """Return how the images of a card were found, as the plain data of a `Reading`; earlier cards know less of it."""
    plains = [card.get("reading", {})]
    for facts in card["parts"].values():
        skipped, damaged = facts["unreadable"], facts.get("damaged_metadata")
        names = [f"{name}: {reason}" for name, reason in skipped["first"].items()]
        found = {UNREADABLE: {"count": skipped["count"], "first": names}} if skipped["count"] else {}
        plains.append({"left_out": found | ({METADATA: damaged} if damaged else {})})
    return merge_readings(plains)


def part_lines(facts: Mapping[str, Any]) -> list[str]:
    """Return what a person should know of a part of a card, besides its size: empty classes, statistics, metadata."""
    lines = []
    if empty := [name for name, count in facts["classes"].items() if not count]:
        lines.append(f"{len(empty)} of {len(facts['classes'])} classes have no image: {', '.join(empty[:5])}")
    if damaged := facts.get("damaged_metadata"):
        lines += reading_lines({"left_out": {METADATA: damaged}})
    statistics = facts.get("statistics")  # cards of earlier versions have none
    if statistics and statistics["sigma_data"]:
        mean, std = (" ".join(f"{value:.3f}" for value in statistics[key]) for key in ("mean", "std"))
        lines.append(
            f"pixels in 0..1: mean {mean}, standard deviation {std}; for EDM, "
            f"process.sigma_data={statistics['sigma_data']:.3f}"
        )
    return lines


def card_text(card: Mapping[str, Any]) -> str:
    """Return the data card in Markdown."""
    picture, made = card["picture"], card["made"]
    lines = [f"# {card['title']}", ""]
    lines += [f"{label}: {card[key]}  " for key, label in _LABELS.items() if card.get(key)]
    kind = "colour" if picture["channels"] == 3 else "grey"
    lines += [
        "",
        "## Images",
        "",
        f"{picture['size']} x {picture['size']} pixels, {kind}, {picture['type']}.  ",
        f"Cropped: {made['crop']}.  ",
        f"Resized: {made['resize']}.",
        "",
        "| part | images | classes | skipped as unreadable | original sizes | SHA-256 of the content |",
        "| --- | ---: | ---: | ---: | --- | --- |",
    ]
    for part, facts in card["parts"].items():
        different, unreadable = facts["sizes_before"]["different"], facts["unreadable"]["count"]
        before = f"{different} different" if different > 3 else ", ".join(facts["sizes_before"]["most_common"])
        lines.append(
            f"| {part} | {facts['pictures']:,} | {len(facts['classes'])} | {unreadable:,} | {before} | "
            f"`{facts['sha256']}` |"
        )
    lines += ["", "| part | mean of each channel (0..1) | standard deviation | `process.sigma_data` for EDM |"]
    lines += ["| --- | --- | --- | ---: |"]
    for part, facts in card["parts"].items():
        statistics = facts["statistics"]
        mean, std = (", ".join(f"{value:.4f}" for value in statistics[key]) for key in ("mean", "std"))
        lines.append(f"| {part} | {mean} | {std} | {statistics['sigma_data']:.4f} |")
    columns = f"| --- |{' ---: |' * len(card['parts'])}"
    lines += ["", "## Classes", "", f"| class | {' | '.join(card['parts'])} |", columns]
    every = dict.fromkeys(name for facts in card["parts"].values() for name in facts["classes"])
    for name in every:
        counts = " | ".join(f"{facts['classes'].get(name, 0):,}" for facts in card["parts"].values())
        lines.append(f"| {name.replace('|', '/')} | {counts} |")
    for part, facts in card["parts"].items():
        if facts["unreadable"]["count"]:
            lines += ["", f"## Skipped in {part}", ""]
            lines += [f"- `{name}`: {reason}" for name, reason in facts["unreadable"]["first"].items()]
    reading = card_reading(card)
    if reading["remarks"]:
        lines += ["", "## How the folders were read", "", *(f"- {remark}" for remark in reading["remarks"])]
    for kind, kept in reading["left_out"].items():
        if kind != UNREADABLE:  # listed above, by part
            title = kind if kind in (METADATA, BY_CONTENT) else f"left out: {kind}"
            lines += ["", f"## {title[0].upper()}{title[1:]}: {kept['count']:,}", ""]
            lines += [f"- `{name}`" for name in kept["first"]]
    if card.get("files"):
        lines += ["", "## Source files", "", "| file | bytes | SHA-256 |", "| --- | ---: | --- |"]
        lines += [f"| {file['name']} | {file['bytes']:,} | `{file['sha256']}` |" for file in card["files"]]
    if card.get("command"):
        lines += ["", "## Made by", "", f"    {card['command']}"]
    return "\n".join(lines) + "\n"


_LABELS = {"homepage": "Source", "licence": "Licence", "citation": "Citation"}
