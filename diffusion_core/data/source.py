"""What a data set was published as, before its images are brought to one shape.

A source is one part of it (training, test): images of any size, their classes and their names. Reading a data set's
files gives its parts by name, in order; they are then gathered in memory (`gather`) or written to a store (`prepare`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.common.random import Stream
from diffusion_core.data.dataset import Dataset, class_ids
from diffusion_core.data.square import ImageInput, Square
from diffusion_core.files.safe_read import read_text

__all__ = ["HELD_OUT", "Source", "chosen_parts", "gather", "only_classes", "split_by_file", "split_by_stream"]

HELD_OUT = "held_out"


@dataclass(frozen=True, eq=False)
class Source:
    """Labelled images as they were published.

    Args:
        images: uint8 pixels with shape (N, H, W, C), C being 1 or 3; or a sequence of N files, see `square.ImageInput`.
        labels: class ids with shape (N,); kept as int32.
        class_names: the name of each class id.
        name: what to call the data set in reports.
        names: of the images, where they have any, with shape (N,).
    """

    images: Sequence[ImageInput] | NDArray[np.uint8]
    labels: NDArray[np.int32]
    class_names: tuple[str, ...]
    name: str
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        labels = np.asarray(self.labels)
        if not len(self.images):
            raise DuetError(f"{self.name}: it holds no images; there must be at least one")
        if labels.shape != (len(self.images),) or labels.min() < 0 or labels.max() >= len(self.class_names):
            raise DuetError(
                f"{self.name}: labels with shape {labels.shape} in {labels.min(initial=0)}..{labels.max(initial=0)} "
                f"were given for {len(self.images)} images of {len(self.class_names)} classes; there must be one "
                f"in 0..{len(self.class_names) - 1} for each"
            )
        object.__setattr__(self, "labels", labels.astype(np.int32))

    def __len__(self) -> int:
        return len(self.images)

    def called(self, place: int) -> str:
        """What to call an image where it is listed."""
        return self.names[place] if self.names else f"image {place}"

    def take(self, places: ArrayLike) -> Source:
        """The images at some places, in that order."""
        places = np.asarray(places, np.int64)
        images = self.images
        images = images[places] if isinstance(images, np.ndarray) else tuple(images[i] for i in places)
        names = self.names and tuple(self.names[i] for i in places)
        return replace(self, images=images, labels=self.labels[places], names=names)

    def only(self, classes: Iterable[int | str]) -> Source:
        """The images of some classes, as `Dataset.only`."""
        ids = class_ids(f"data set {self.name!r}", self.class_names, classes)
        new = np.full(len(self.class_names), -1, np.int32)
        new[ids] = np.arange(len(ids))
        kept = np.flatnonzero(new[self.labels] >= 0)
        names = tuple(self.class_names[k] for k in ids)
        if not kept.size:
            raise DuetError(f"data set {self.name!r}: it has no image of class {', '.join(names)}")
        return replace(self.take(kept), labels=new[self.labels[kept]], class_names=names)


def gather(
    parts: Mapping[str, Source], part: str | None, square: Square, classes: Sequence[int | str] | None = None
) -> Dataset:
    """A part in memory; "all" is all of them, one after another, and none need be named where there is one alone.

    Classes are chosen before images are read, as where they are written to a store.

    Raises:
        DuetError: there is no such part, none was named of several, it has no image of these classes, or one that
            cannot be read.
    """
    chosen = {name: parts[name] for name in chosen_parts(next(iter(parts.values())).name, list(parts), part)}
    sources = list((chosen if classes is None else only_classes(chosen, classes)).values())
    images = np.empty((sum(map(len, sources)), square.size, square.size, square.channels), np.uint8)
    place = 0
    for source in sources:
        for index, image in enumerate(source.images):
            images[place], _ = square(image, index)
            place += 1
    labels = np.concatenate([source.labels for source in sources])
    return Dataset(images, labels, sources[0].class_names, sources[0].name)


def only_classes(parts: Mapping[str, Source], classes: Sequence[int | str]) -> dict[str, Source]:
    """The images of some classes of each part, as `Source.only`, without the parts that have none.

    Raises:
        DuetError: there are no classes, one does not exist or is given twice, or no part has an image of them.
    """
    first = next(iter(parts.values()))
    ids = class_ids(f"data set {first.name!r}", first.class_names, classes)
    having = {part: source for part, source in parts.items() if np.isin(source.labels, ids).any()}
    # That the first has none is what is said where none has any.
    return {part: source.only(classes) for part, source in (having or parts).items()}


def chosen_parts(what: str, parts: Sequence[str], part: str | None) -> list[str]:
    """The parts that a name means: itself, every one for ``"all"``, the only one for None.

    Args:
        what: whose they are; errors name it.
        parts: that there are.
        part: the name.

    Raises:
        DuetError: there is no such part, or none was named of several.
    """
    if part is None and len(parts) > 1:
        raise DuetError(f"part of {what}: none was named; it has {', '.join(parts)}, and all is them all")
    if part in parts or part is None:
        return [parts[0] if part is None else part]
    if part != "all":
        raise one_of(f"part of {what}", part, [*parts, "all"])
    return list(parts)


def split_by_stream(parts: Mapping[str, Source], fraction: float, seed: int) -> dict[str, Source]:
    """The parts with a share of the first drawn from it, by stream ``"data/split"``, as a last part "held_out".

    What is left of a part "all" is called "train".

    Args:
        parts: of a data set.
        fraction: the share that is held out, rounded to whole images.
        seed: of the stream.

    Raises:
        DuetError: a part would be empty, or there is a part of that name.
    """
    first, source = next(iter(parts.items()))
    count = round(fraction * len(source)) if 0 < fraction < 1 else 0
    if not 0 < count < len(source) or HELD_OUT in parts:
        raise DuetError(
            f"split: a share of {fraction} of {len(source)} images was given, with the parts {', '.join(parts)}; it "
            f"must lie between 0 and 1, leave an image on each side, and there may be no part {HELD_OUT!r} yet"
        )
    order = Stream(seed, "data/split").permutation(len(source))
    kept, held_out = source.take(np.sort(order[count:])), source.take(np.sort(order[:count]))
    others = {part: other for part, other in parts.items() if part != first}
    return {"train" if first == "all" else first: kept, **others, HELD_OUT: held_out}


def split_by_file(parts: Mapping[str, Source], file: str | Path) -> dict[str, Source]:
    """The first part cut as a text file says, one line per image: its name, white space, and its part.

    Args:
        parts: of a data set; the first takes the place of those that the file makes of it, the others stay.
        file: every image must be in it once, by its name in the source; empty lines are left out.

    Raises:
        DuetError: the file cannot be read, an image is missing, unknown or named twice, or a part's name is no word.
    """
    (_, source), *others = parts.items()
    if source.names is None:
        raise DuetError(f"split: a file was given, but the images of {source.name} have no names; split by a share")
    lines = [line for line in read_text(Path(file).expanduser()).splitlines() if line.strip()]
    place, found = {name: i for i, name in enumerate(source.names)}, {}
    for line in lines:
        *name, part = line.strip().rsplit(maxsplit=1)
        name = "".join(name)
        if name not in place or name in found:
            what = "is in it twice" if name in found else f"is no image of {source.name}, as {source.names[0]!r} is"
            raise DuetError(f"split: {str(file)!r}: {name or line!r} {what}; a line is NAME PART")
        if not re.fullmatch(r"\w[\w-]*", part) or part == "all":  # it names a folder, and all of them are "all"
            raise DuetError(
                f"split: {str(file)!r}: {name} is in part {part!r}; the name of a part is a word of letters, digits, _ "
                f"and -, and not 'all'"
            )
        found[name] = part
    if len(found) < len(place):
        lost = next(name for name in source.names if name not in found)
        raise DuetError(f"split: {str(file)!r} names no part for {lost!r} and {len(place) - len(found) - 1} more")
    wanted = np.array([found[name] for name in source.names])
    made = {part: source.take(np.flatnonzero(wanted == part)) for part in dict.fromkeys(found.values())}
    return made | {name: other for name, other in others if name not in made}
