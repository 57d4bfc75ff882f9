"""The data card of a prepared data set: what it holds and how it was made, for programs and for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray

from diffusion_core.common.text import join_some, pluralize
from diffusion_core.data.archives import DatasetInfo
from diffusion_core.data.dataset import Dataset
from diffusion_core.data.reading import BY_CONTENT, METADATA, UNREADABLE, Reading, merge_readings, reading_lines
from diffusion_core.data.shards import Shards
from diffusion_core.data.source import Source
from diffusion_core.data.transform import ArrayTransform, ImageTransform

__all__ = ["PreparedPart", "card_reading", "card_text", "channel_statistics", "data_card", "part_lines"]

_LISTED, _CHANNELS = 100, 16
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


def channel_statistics(images: NDArray | Shards, value_range: Sequence[float] | None = None) -> dict[str, Any]:
    """Return mean and standard deviation of each channel, of pixels in 0..1, and the sigma_data of EDM.

    ``sigma_data`` is the root mean square of the channels' standard deviations for values in [-1, 1]: twice that of
    pixels in 0..1. They come from the histograms of the 256 values, so they are exact.

    Those of floats are of the values as they are stored; ``sigma_data`` is that of the values in [-1, 1] if there is a
    range, otherwise that of the values. The least and the largest value are "low" and "high".
    """
    step = max(1, _BLOCK_BYTES // images[0].nbytes)
    if images.dtype != np.uint8:
        return _float_statistics(images, step, value_range)
    histograms = np.zeros((images.shape[-1], 256), np.int64)
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


def _float_statistics(images: NDArray | Shards, step: int, value_range: Sequence[float] | None) -> dict[str, Any]:
    """Return the statistics of floats, in blocks: sums about the mean of the first block lose no digits."""
    channels = images.shape[-1]
    centre = np.asarray(images[:step], np.float64).reshape(-1, channels).mean(axis=0)
    total, sums, squares, low, high = 0, np.zeros(channels), np.zeros(channels), np.inf, -np.inf
    for start in range(0, len(images), step):
        block = np.asarray(images[start : start + step], np.float64).reshape(-1, channels) - centre
        total, sums, squares = total + len(block), sums + block.sum(axis=0), squares + (block**2).sum(axis=0)
        low, high = min(low, float((block + centre).min())), max(high, float((block + centre).max()))
    variance = np.maximum(squares / total - (sums / total) ** 2, 0.0)
    scale = 1.0 if value_range is None else 2.0 / (value_range[1] - value_range[0])
    return {
        "mean": (centre + sums / total).tolist(),
        "std": np.sqrt(variance).tolist(),
        "sigma_data": float(scale * np.sqrt(variance.mean())),
        "low": low,
        "high": high,
    }


def data_card(
    parts: Mapping[str, PreparedPart],
    transform: ImageTransform | ArrayTransform,
    info: DatasetInfo,
    extra: dict[str, Any],
) -> dict[str, Any]:
    """Return the data card as plain data."""
    described = {}
    for part, made in parts.items():
        dataset = made.dataset
        described[part] = {
            "pictures": len(dataset),
            "sha256": dataset.sha256,
            "classes": dict(zip(dataset.class_names, dataset.class_counts.tolist(), strict=True)),
            "statistics": channel_statistics(dataset.images, dataset.value_range),
            "sizes_before": {"different": len(made.sizes), "most_common": dict(made.sizes.most_common(10))},
            "unreadable": {"count": len(made.unreadable), "first": dict(made.unreadable[:_LISTED])},
            "damaged_metadata": Reading().with_left_out(METADATA, made.damaged).plain["left_out"].get(METADATA),
        }
        if dataset.conditions is not None:
            described[part]["conditions"] = list(dataset.condition_names)
    first = next(iter(parts.values())).source
    return {
        "name": first.name,
        "title": info.title,
        "homepage": info.homepage,
        "licence": info.licence,
        "citation": info.citation,
        "picture": _picture(transform, first),
        "made": _made(transform),
        "parts": described,
        "reading": first.reading.plain,
    } | extra


def _picture(transform: ImageTransform | ArrayTransform, source: Source) -> dict[str, Any]:
    if isinstance(transform, ArrayTransform):
        picture = {"size": list(transform.shape[:-1]), "channels": transform.shape[-1], "type": transform.dtype.name}
        return picture | ({"value_range": list(source.value_range)} if source.value_range else {})
    size = list(transform.size) if isinstance(transform.size, tuple) else transform.size
    return {"size": size, "channels": transform.channels, "type": "uint8"}


def _made(transform: ImageTransform | ArrayTransform) -> dict[str, Any]:
    if isinstance(transform, ArrayTransform) or transform.crop == "none":
        return {"crop": "no", "resize": "no", "seed": 0}
    what = "square" if isinstance(transform.size, int) else "rectangle of this aspect ratio"
    return {
        "crop": f"the largest {what}, {'at the centre' if transform.crop == 'centre' else 'at a random position'}",
        "resize": f"Lanczos with antialiasing, by Pillow {PIL.__version__}; none if the size already fits",
        "seed": transform.seed,
    }


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
        mean, std = (_numbers(statistics[key], " ", 3) for key in ("mean", "std"))
        lines.append(
            f"{_values(statistics)}: mean {mean}, standard deviation {std}; for EDM, "
            f"process.sigma_data={statistics['sigma_data']:.3f}"
        )
    if names := facts.get("conditions"):
        lines.append(f"{pluralize(len(names), 'condition')} of each image: {join_some(names, 5)}")
    return lines


def _values(statistics: Mapping[str, Any]) -> str:
    if "low" not in statistics:
        return "pixels in 0..1"
    return f"values from {statistics['low']:.4g} to {statistics['high']:.4g}"


def _numbers(values: Sequence[float], separator: str, digits: int) -> str:
    """Return the first numbers of a list, as text."""
    more = f"{separator}..." if len(values) > _CHANNELS else ""
    return separator.join(f"{value:.{digits}f}" for value in values[:_CHANNELS]) + more


def card_text(card: Mapping[str, Any]) -> str:
    """Return the data card in Markdown."""
    picture, made = card["picture"], card["made"]
    lines = [f"# {card['title']}", ""]
    lines += [f"{label}: {card[key]}  " for key, label in _LABELS.items() if card.get(key)]
    sides = picture["size"] if isinstance(picture["size"], list) else [picture["size"]] * 2
    is_bytes = picture["type"] == "uint8"
    kind = {1: "grey", 3: "colour"}.get(picture["channels"]) if len(sides) == 2 and is_bytes else None
    kind = f"pixels, {kind}" if kind else f"values with {picture['channels']} channels"
    kind += (
        f", {picture['value_range'][0]:g} is black and {picture['value_range'][1]:g} white"
        if picture.get("value_range")
        else ""
    )
    lines += [
        "",
        "## Images",
        "",
        f"{' x '.join(map(str, sides)) or 1} {kind}, {picture['type']}.  ",
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
    described = "0..1" if is_bytes else "as stored"
    lines += ["", f"| part | mean of each channel ({described}) | standard deviation | `process.sigma_data` for EDM |"]
    lines += ["| --- | --- | --- | ---: |"]
    for part, facts in card["parts"].items():
        statistics = facts["statistics"]
        mean, std = (_numbers(statistics[key], ", ", 4) for key in ("mean", "std"))
        lines.append(f"| {part} | {mean} | {std} | {statistics['sigma_data']:.4f} |")
    columns = f"| --- |{' ---: |' * len(card['parts'])}"
    lines += ["", "## Classes", "", f"| class | {' | '.join(card['parts'])} |", columns]
    every = dict.fromkeys(name for facts in card["parts"].values() for name in facts["classes"])
    for name in every:
        counts = " | ".join(f"{facts['classes'].get(name, 0):,}" for facts in card["parts"].values())
        lines.append(f"| {name.replace('|', '/')} | {counts} |")
    if names := next(iter(card["parts"].values())).get("conditions"):
        lines += ["", "## Conditions", "", f"{len(names)} numbers for each image: {', '.join(names)}."]
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
    if latents := card.get("latents"):
        shape = " x ".join(map(str, latents["image"]))
        lines += [
            "",
            "## Latents",
            "",
            f"Of images {shape}, by the autoencoder {latents['autoencoder']} (`{latents['sha256']}`), which decodes "
            f"them; a copy is in the folder autoencoder.  ",
            f"{_scaling(latents)}, where z is {latents['z']}.",
        ]
    if card.get("command"):
        lines += ["", "## Made by", "", f"    {card['command']}"]
    return "\n".join(lines) + "\n"


_LABELS = {"homepage": "Source", "licence": "Licence", "citation": "Citation"}


def _scaling(latents: Mapping[str, Any]) -> str:
    """Return the formula of latents."""
    factor = f"{latents['scaling_factor']:g}"
    if mean := latents.get("latents_mean"):
        low, high = latents["image_range"]
        text = f"{factor} (z - m) / s with m = {list(mean)} and s = {list(latents['latents_std'])}"
        return text if (low, high) == (-1, 1) else f"{text}, of images in [{low:g}, {high:g}]"
    return f"{factor} (z - {latents['shift_factor']:g})"
