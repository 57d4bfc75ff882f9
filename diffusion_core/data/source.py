"""A data set as it was published, before its images have one shape.

A source is one part of it (training, test): images of any size, their classes and their names. Reading the files of a
data set returns its parts by name, in order. `gather` loads them into memory; `prepare` writes them to stores.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.common.random import Stream
from diffusion_core.data.dataset import Dataset, class_ids
from diffusion_core.data.layout import split_name
from diffusion_core.data.reading import METADATA, UNREADABLE, Reading, check_unreadable
from diffusion_core.data.transform import ArrayTransform, ImageTransform
from diffusion_core.files.safe_read import read_text
from diffusion_core.images.decode import ImageInput, UnreadableImage, decode

__all__ = [
    "HELD_OUT",
    "Source",
    "check_classes_survive",
    "gather",
    "only_classes",
    "resolve_parts",
    "split_by_file",
    "split_by_stream",
]

HELD_OUT = "held_out"
# How many images of a source say whether it is grey, and which size it has, where nothing is asked for.
_LOOKED_AT = 32


@dataclass(frozen=True, eq=False)
class Source:
    """Labelled images as they were published, or other arrays of one shape.

    Args:
        images: uint8 pixels with shape (N, H, W, C), C = 1 or 3; or a sequence of N files, see `decode.ImageInput`; or
            uint8 or floats of any other shape (N, ..., C), which are kept as they are.
        labels: class ids with shape (N,); stored as int32.
        class_names: the name of each class id.
        name: the name of the data set, for reports.
        names: the names of the images with shape (N,), or None.
        reading: how the images were found.
        value_range: that of floats, as for `Dataset`, like conditions and condition_names.
        conditions: a vector for each image, with shape (N, D), or None.
        condition_names: the name of each number of a condition.
    """

    images: Sequence[ImageInput] | NDArray
    labels: NDArray[np.int32]
    class_names: tuple[str, ...]
    name: str
    names: tuple[str, ...] | None = None
    reading: Reading = field(default_factory=Reading)
    value_range: tuple[float, float] | None = None
    conditions: NDArray[np.float32] | None = None
    condition_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        labels = np.asarray(self.labels)
        if not len(self.images):
            raise DuetError(f"{self.name}: it has no images; there must be at least one")
        if labels.shape != (len(self.images),) or labels.min() < 0 or labels.max() >= len(self.class_names):
            raise DuetError(
                f"{self.name}: labels with shape {labels.shape} in {labels.min(initial=0)}..{labels.max(initial=0)} "
                f"were given for {len(self.images)} images of {len(self.class_names)} classes; there must be one "
                f"in 0..{len(self.class_names) - 1} for each"
            )
        object.__setattr__(self, "labels", labels.astype(np.int32))

    def __repr__(self) -> str:
        return f"Source({self.name!r}: {len(self):,} images, {len(self.class_names)} classes)"

    def __len__(self) -> int:
        return len(self.images)

    def transform(self, transform: ImageTransform) -> ImageTransform | ArrayTransform:
        """Return how its images get one shape: `transform` with a size and channels; arrays that are no pictures stay.

        Raises:
            DuetError: no image can be read, from which the size would be taken.
        """
        if isinstance(self.images, np.ndarray) and not _is_pictures(self.images):
            return ArrayTransform(self.images.shape[1:], self.images.dtype)
        if transform.size is not None and transform.channels is not None:
            return transform
        readable, failed = [], None
        for index in np.unique(np.linspace(0, len(self) - 1, _LOOKED_AT).astype(int)):
            try:
                readable.append(decode(self.images[index]).image)
            except UnreadableImage as error:
                failed = failed or error
        if not readable:
            raise failed
        return transform.resolve(readable)

    def display_name(self, index: int) -> str:
        """Return the name of an image, for lists."""
        return self.names[index] if self.names else f"image {index}"

    def select(self, indices: ArrayLike) -> Source:
        """Return the images at some indices, in that order."""
        indices = np.asarray(indices, np.int64)
        images = self.images
        images = images[indices] if isinstance(images, np.ndarray) else tuple(images[i] for i in indices)
        names = self.names and tuple(self.names[i] for i in indices)
        conditions = None if self.conditions is None else self.conditions[indices]
        return replace(self, images=images, labels=self.labels[indices], names=names, conditions=conditions)

    def select_classes(self, classes: Iterable[int | str]) -> Source:
        """Return the images of some classes, as `Dataset.select_classes`."""
        ids = class_ids(f"data set {self.name!r}", self.class_names, classes)
        new = np.full(len(self.class_names), -1, np.int32)
        new[ids] = np.arange(len(ids))
        kept = np.flatnonzero(new[self.labels] >= 0)
        names = tuple(self.class_names[k] for k in ids)
        if not kept.size:
            raise DuetError(f"data set {self.name!r}: it has no image of class {', '.join(names)}")
        return replace(self.select(kept), labels=new[self.labels[kept]], class_names=names)


def _is_pictures(images: NDArray) -> bool:
    return images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] in (1, 3)


def gather(
    parts: Mapping[str, Source],
    part: str | None,
    transform: ImageTransform,
    classes: Sequence[int | str] | None = None,
    max_unreadable: float = 0.01,
) -> Dataset:
    """Load a part into memory. Images that cannot be read are left out and listed in the reading of the data set.

    Args:
        parts: the parts of a data set.
        part: the name of one, or "all" for all of them, one after another; None for the only one, or for "train".
        transform: how images are cropped and resized.
        classes: class ids or names to keep; other images are not read.
        max_unreadable: the largest fraction of the images that may be unreadable.

    Raises:
        DuetError: the part is unknown or not given, it has no image of these classes, or too many images cannot be
            read.
    """
    what = next(iter(parts.values())).name
    chosen = {name: parts[name] for name in resolve_parts(what, list(parts), part)}
    sources = list((chosen if classes is None else only_classes(chosen, classes)).values())
    first = sources[0]
    if any((s.class_names, s.condition_names) != (first.class_names, first.condition_names) for s in sources):
        raise DuetError(
            f"data.options.part: {part!r} was given, but the parts of {what} have different classes; choose one of "
            f"{', '.join(chosen)}"
        )
    transform = first.transform(transform)
    images = np.empty((sum(map(len, sources)), *transform.shape), transform.dtype)
    labels, conditions, failed, remarked = [], [], [], []
    for source in sources:
        for index, image in enumerate(source.images):
            try:
                made = transform(image, index)
            except UnreadableImage as error:
                failed.append((source.display_name(index), error.reason))
                continue
            images[len(labels)] = made.pixels
            labels.append(source.labels[index])
            if source.conditions is not None:
                conditions.append(source.conditions[index])
            if made.remark:
                remarked.append(f"{source.display_name(index)}: {made.remark}")
    check_unreadable(what, failed, len(images), max_unreadable)
    reading = first.reading.with_left_out(UNREADABLE, [f"{name}: {reason}" for name, reason in failed])
    several = {"part": "+".join(chosen), "parts": tuple(parts)} if len(parts) > 1 else {}
    reading = replace(reading.with_left_out(METADATA, remarked), **several)
    kept = np.array(labels, np.int32)
    check_classes_survive(sources, [kept])
    return Dataset(
        images[: len(kept)], kept, first.class_names, first.name, reading, first.value_range,
        np.stack(conditions) if conditions else None, first.condition_names,
    )  # fmt: skip


def check_classes_survive(sources: Sequence[Source], kept: Sequence[NDArray[np.int32]]) -> None:
    """Refuse to lose every image of a class because none of them can be read.

    Args:
        sources: the parts, with the same classes.
        kept: the labels of the images that could be read.

    Raises:
        DuetError: a class that had images has none left.
    """
    before = np.concatenate([source.labels for source in sources])
    if lost := set(before.tolist()) - set(np.concatenate(kept).tolist()):
        names = ", ".join(sources[0].class_names[k] for k in sorted(lost))
        raise DuetError(
            f"{sources[0].name}: none of the images of class {names} can be read; repair them, or choose the other "
            f"classes with data.options.classes"
        )


def only_classes(parts: Mapping[str, Source], classes: Sequence[int | str]) -> dict[str, Source]:
    """Return the images of some classes of each part, as `Source.select_classes`, without parts that have none.

    Raises:
        DuetError: no class is given, a class is unknown or given twice, or no part has an image of them.
    """
    first = next(iter(parts.values()))
    ids = class_ids(f"data set {first.name!r}", first.class_names, classes)
    nonempty = {
        part: source
        for part, source in parts.items()
        # A part without labels has another class.
        if source.class_names == first.class_names and np.isin(source.labels, ids).any()
    }
    # If no part has any, report the first one.
    return {part: source.select_classes(classes) for part, source in (nonempty or parts).items()}


def resolve_parts(what: str, parts: Sequence[str], part: str | None) -> list[str]:
    """Return the parts that a name selects.

    Args:
        what: the name of the data set, for errors.
        parts: the names of its parts.
        part: the name of one; ``"all"`` for every part; None for the only one, or else for ``"train"``.

    Raises:
        DuetError: there is no such part, or None was given and there are several, none of them "train".
    """
    if part is None and len(parts) == 1:
        return list(parts)
    if part is None and "train" in parts:
        return ["train"]
    if part is None:
        raise DuetError(
            f"data.options.part: none was given for {what}; choose one of {', '.join(parts)}, or all of them with all"
        )
    if part in parts:
        return [part]
    named = split_name(part)  # "val" is the part "validation", as the folder of that name is
    if named and not named[1] and named[0] in parts:
        return [named[0]]
    if part != "all":
        raise one_of("data.options.part", part, [*parts, "all"])
    return list(parts)


def split_by_stream(parts: Mapping[str, Source], fraction: float, seed: int) -> dict[str, Source]:
    """Hold out a fraction of the first part, drawn by stream ``"data/split"``, as a last part "held_out".

    The rest of a part "all" is called "train".

    Args:
        parts: the parts of a data set.
        fraction: the fraction to hold out, rounded to whole images.
        seed: the seed of the stream.

    Raises:
        DuetError: a part would be empty, or there is already a part "held_out".
    """
    first, source = next(iter(parts.items()))
    count = round(fraction * len(source)) if 0 < fraction < 1 else 0
    if not 0 < count < len(source) or HELD_OUT in parts:
        raise DuetError(
            f"split.fraction: {fraction} of {len(source)} images was given, with the parts {', '.join(parts)}; it must "
            f"lie between 0 and 1 and leave an image on each side, and there must be no part {HELD_OUT!r} yet"
        )
    order = Stream(seed, "data/split").permutation(len(source))
    kept, held_out = source.select(np.sort(order[count:])), source.select(np.sort(order[:count]))
    others = {part: other for part, other in parts.items() if part != first}
    return {"train" if first == "all" else first: kept, **others, HELD_OUT: held_out}


def split_by_file(parts: Mapping[str, Source], file: str | Path) -> dict[str, Source]:
    """Split the first part as a text file says, one line per image: its name, white space, its part.

    Args:
        parts: the parts of a data set. The parts that the file names replace the first; the others stay.
        file: every image must be in it once, by its name in the source; empty lines are ignored.

    Raises:
        DuetError: the file cannot be read; an image is missing, unknown or listed twice; or a part has an invalid name.
    """
    (_, source), *others = parts.items()
    if source.names is None:
        raise DuetError(f"split: a file was given, but the images of {source.name} have no names; use split=stream")
    lines = [line for line in read_text(Path(file).expanduser()).splitlines() if line.strip()]
    names, part_by_name = set(source.names), {}
    for line in lines:
        *name, part = line.strip().rsplit(maxsplit=1)
        name = "".join(name)
        if name not in names or name in part_by_name:
            what = (
                "is listed twice"
                if name in part_by_name
                else f"is no image of {source.name}, as {source.names[0]!r} is"
            )
            raise DuetError(f"split: {str(file)!r}: {name or line!r} {what}; each line must be NAME PART")
        if not re.fullmatch(r"\w[\w-]*", part) or part == "all":  # it becomes a folder, and "all" means every part
            raise DuetError(
                f"split: {str(file)!r}: {name} is in part {part!r}; the name of a part must be a word of letters, "
                f"digits, _ and -, other than 'all'"
            )
        part_by_name[name] = part
    if len(part_by_name) < len(names):
        missing = next(name for name in source.names if name not in part_by_name)
        raise DuetError(
            f"split: {str(file)!r} has no line for {missing!r} and {len(names) - len(part_by_name) - 1} more"
        )
    part_of = np.array([part_by_name[name] for name in source.names])
    sources = {part: source.select(np.flatnonzero(part_of == part)) for part in dict.fromkeys(part_by_name.values())}
    return sources | {name: other for name, other in others if name not in sources}
