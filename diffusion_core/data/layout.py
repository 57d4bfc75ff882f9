"""Which folders of a folder of images are parts (train, test), and which are classes.

These layouts are recognised, with any further folder around them that holds nothing else:

    flat            images alone: one class
    classes         CLASS/...: the images in a folder, at any depth, are a class
    splits          PART/CLASS/... or PART/...: every folder is named after a split, as "train", "Validation Data",
                    "seg_test" or "TEST"
    inner splits    CLASS/PART/...: in every class, every folder is named after a split

A class has one id in all parts; its name decides, without regard to case and to the composition of its characters. The
classes of all parts together are the classes. A layout with two plausible readings is refused, with both, and the
option `layout` chooses one.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.common.text import join_some, pluralize
from diffusion_core.images.files import Folder, natural_order, readable_name

__all__ = ["LAYOUTS", "UNLABELLED", "Layout", "read_layout", "split_name"]

# The class of a part without class folders, beside parts with them.
UNLABELLED = "unlabelled"
LAYOUTS = ("auto", "flat", "classes", "splits")
_KINDS = ("train", "validation", "test", "held_out", "unlabelled")
_WORDS = {
    "train": ("train", "training", "trainval", "trn"),
    "validation": ("val", "valid", "validation", "validate", "dev", "eval", "evaluation", "minival"),
    "test": ("test", "testing", "tst"),
    "held_out": ("heldout", "holdout"),
    "unlabelled": ("unlabelled", "unlabeled", "pred", "predict", "prediction"),
}
_KIND_OF = {word: kind for kind, words in _WORDS.items() for word in words}
# Words that say nothing about the content of a folder.
_NEUTRAL = {
    "data", "dataset", "datasets", "dir", "files", "folder", "image", "images", "img", "imgs", "part", "photo",
    "photos", "pic", "pics", "picture", "pictures", "sample", "samples", "seg", "set", "sets", "split", "splits",
}  # fmt: skip
_LOOSE, _EMPTY = "images beside the folders that are read", "folders without images"


@dataclass(frozen=True, eq=False)
class Layout:
    """The images of each part, with their classes.

    Args:
        files: by part, in order.
        labels: the class id of each image, by part.
        class_names: by part; a part without class folders beside labelled ones has a single class of its own.
        remarks: how the folders were read.
        left_out: names that are no part of the data set, by kind.
    """

    files: dict[str, list[Path]]
    labels: dict[str, list[int]]
    class_names: dict[str, tuple[str, ...]]
    remarks: tuple[str, ...]
    left_out: dict[str, list[str]]


def split_name(name: str) -> tuple[str, tuple[str, ...]] | None:
    """Return the kind of split that a folder is named after, and the other words of its name; None if none.

    Example:
        >>> split_name("Validation Data"), split_name("cats_test"), split_name("Coast")
        (('validation', ()), ('test', ('cats',)), None)
    """
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = re.findall(r"[^\W\d_]+", re.sub(r"(?i)(held|hold)[\W_]*out", "heldout", spaced).lower())
    kinds, others = [], []
    for word in words:
        stem = next((w for w in _KIND_OF if word.startswith(w) and word[len(w) :] in _NEUTRAL), word)
        if stem in _KIND_OF:
            kinds.append(_KIND_OF[stem])
        elif word not in _NEUTRAL:
            others.append(word)
    return (kinds[0], tuple(others)) if len(kinds) == 1 else None


def read_layout(root: Folder, layout: str = "auto") -> Layout:
    """Return the parts and classes of a folder that holds images.

    Args:
        root: the folder.
        layout: one of `LAYOUTS`; "auto" recognises it.

    Raises:
        DuetError: the layout has two plausible readings, or does not have the one that was chosen.
    """
    check_choice("data.options.layout", layout, LAYOUTS)
    reader = _Reader(root)
    if layout == "flat":
        return reader.build({"all": [(None, root)]})
    if layout == "classes":
        return reader.build({"all": reader.classes(root)})
    node = root
    while not node.images and len(node.filled) == 1 and not split_name(node.filled[0].name):
        inner = node.filled[0]
        if inner.images:
            break
        reader.remarks.append(f"the folder {inner.name!r}, which alone holds images, is the one that is read")
        node = inner
    if layout == "splits":
        return reader.build(reader.splits(node, _part_names(node)))
    return reader.build(reader.recognised(node))


class _Reader:
    """The remarks and omissions that reading one folder makes."""

    def __init__(self, root: Folder) -> None:
        self.root, self.remarks, self.left_out = root, [], {}

    def recognised(self, node: Folder) -> dict[str, list[tuple[str | None, Folder]]]:
        """Return the folders of each part with their classes, as the names of the folders suggest."""
        folders = node.filled
        named = [split_name(folder.name) for folder in folders]
        if node.images and folders:
            beside = f"and {pluralize(len(node.images), 'image')} beside them left out"
            readings = {"flat": f"all {node.count:,} images are of one class"}
            if all(named):
                readings["splits"] = f"the parts are {', '.join(_part_names(node))}, {beside}"
            raise self._ambiguous(
                f"{str(node.path)!r} holds {node.images[0].name!r} and the folder {folders[0].name!r}",
                **readings,
                classes=f"the classes are {_names(folders)}, {beside}",
            )
        if node.images:
            return {"all": self.classes(node)}
        if all(named) and self._are_splits(folders, named):
            return self.splits(node, [kind for kind, _ in named])
        kinds = {name[0] for name in named if name}
        holds_classes = [not folder.images for folder in folders]
        if kinds and (
            all(named)
            or len(kinds) > 1
            or any(name and inner and not all(holds_classes) for name, inner in zip(named, holds_classes, strict=True))
        ):
            raise self._two_readings(node, "some folders are named after splits")
        inner = [[split_name(f.name) for f in folder.filled] for folder in folders]
        if all(holds_classes) and all(_clean(names) for names in inner):
            parts = [part for folder in folders for part in folder.filled]
            if len(folders) > 1 and len(parts) > 1 and not any(part.images for part in parts) and _are_alike(parts):
                raise self._ambiguous(
                    f"the folders in {_names(folders)} are splits ({_names(parts)}), and these hold folders of equal "
                    f"names ({_names([inner for part in parts for inner in part.filled])})",
                    classes=f"the classes are {_names(folders)}, with the images of all splits",
                )
            return self._inner_splits(folders)
        if any(len(names) > 1 and _clean(names) for names in inner):
            raise self._two_readings(node, "some of its folders hold folders named after splits")
        if len(folders) > 1 and all(holds_classes) and _are_alike(folders):
            raise self._two_readings(node, f"the folders in {_names(folders)} have equal names")
        return {"all": self.classes(node)}

    def splits(self, node: Folder, parts: Sequence[str]) -> dict[str, list[tuple[str | None, Folder]]]:
        """Return the classes of each part, whose folders are directly in a folder."""
        if not node.filled:
            raise DuetError(
                f"data.options.layout: splits was given, but {str(node.path)!r} holds no folders of images; use flat"
            )
        self._note_loose(node)
        self._note_empty(node)
        found = {}
        for part, folder in sorted(zip(parts, node.filled, strict=True), key=lambda pair: _part_order(pair[0])):
            found[part] = self.classes(_unwrapped(folder, part), nested=True)
        read = ", ".join(
            f"{folder.name!r} is {part} ({pluralize(folder.count, 'image')})"
            for part, folder in zip(parts, node.filled, strict=True)
        )
        self.remarks.append(f"the folders are splits: {read}; data.options.part chooses one")
        return found

    def classes(self, node: Folder, nested: bool = False) -> list[tuple[str | None, Folder]]:
        """Return the class folders of a folder; without any, the folder itself, of no named class."""
        if not node.filled:
            self._note_empty(node)
            return [(None, node)]
        if node.images and nested:
            raise self._ambiguous(
                f"{str(node.path)!r} holds {node.images[0].name!r} and the folder {node.filled[0].name!r}",
                flat=f"all {self.root.count:,} images are of one class, whatever their folder",
            )
        self._note_loose(node)
        self._note_empty(node)
        return [(folder.name, folder) for folder in node.filled]

    def _note_loose(self, node: Folder) -> None:
        if node.images:
            self.left_out.setdefault(_LOOSE, []).extend(readable_name(image.name) for image in node.images)

    def _note_empty(self, node: Folder) -> None:
        if empty := [folder.name for folder in node.folders if not folder.count]:
            self.left_out.setdefault(_EMPTY, []).extend(empty)

    def build(self, parts: dict[str, list[tuple[str | None, Folder]]]) -> Layout:
        """Number the classes of all parts together, and list the images of each part."""
        # Two folders of one part are two classes, however alike their names.
        spelled = [[_compared(name) for name, _ in groups if name is not None] for groups in parts.values()]
        compare = _compared if all(len(set(part)) == len(part) for part in spelled) else str
        names: dict[str, str] = {}  # the first spelling of each class, by how names are compared
        for groups in parts.values():
            for name, _ in groups:
                if name is not None:
                    names.setdefault(compare(name), name)
        order = sorted(names, key=lambda key: self.root.key(names[key]))
        number = {key: k for k, key in enumerate(order)}
        classes = tuple(names[key] for key in order)
        own = (readable_name(self.root.path.resolve().name) or "images",)
        files, labels, class_names = {}, {}, {}
        for part, groups in parts.items():
            files[part], labels[part] = [], []
            for name, folder in groups:
                images = list(folder.every_image())
                files[part] += images
                labels[part] += [0 if name is None else number[compare(name)]] * len(images)
            class_names[part] = classes
            if groups[0][0] is None:
                class_names[part] = (UNLABELLED,) if classes else own
                if classes:
                    self.remarks.append(f"{part} has no class folders; its one class is called {UNLABELLED!r}")
            elif missing := [classes[k] for k in range(len(classes)) if k not in set(labels[part])]:
                self.remarks.append(f"{part} has no image of {', '.join(missing)}")
        return Layout(files, labels, class_names, tuple(self.remarks), self.left_out)

    def _are_splits(self, folders: Sequence[Folder], named: Sequence[tuple[str, tuple[str, ...]]]) -> bool:
        """Return whether folders that are all named after splits are those of one data set."""
        if len({kind for kind, _ in named}) < len(named):
            return False
        return len({others for _, others in named if others}) <= 1 or _are_alike(folders)

    def _inner_splits(self, folders: Sequence[Folder]) -> dict[str, list[tuple[str | None, Folder]]]:
        found: dict[str, list[tuple[str | None, Folder]]] = {}
        for folder in folders:
            for inner in folder.filled:
                found.setdefault(split_name(inner.name)[0], []).append((folder.name, inner))
        parts = sorted(found, key=_part_order)
        self.remarks.append(
            f"the folders in {_names(folders)} are splits: {', '.join(parts)}; data.options.part chooses one"
        )
        return {part: found[part] for part in parts}

    def _two_readings(self, node: Folder, why: str) -> DuetError:
        inner = [f for folder in node.filled for f in folder.filled]
        return self._ambiguous(
            f"{str(node.path)!r} can be read in two ways, because {why}",
            classes=f"the classes are {_names(node.filled)}, with the images at any depth",
            splits=f"the parts are {', '.join(_part_names(node))}"
            + (f", of the classes {_names(inner)}" if inner else ""),
        )

    def _ambiguous(self, problem: str, **readings: str) -> DuetError:
        """Return the error for several readings, by the layout that chooses each."""
        choices = "; ".join(f"data.options.layout={layout}: {reading}" for layout, reading in readings.items())
        return DuetError(
            f"image folder: {problem}; it must hold images, or one folder of images per class, or one folder per "
            f"split; choose ({choices}), or give one of the folders as data.options.path"
        )


def _clean(names: Sequence[tuple[str, tuple[str, ...]] | None]) -> bool:
    """Return whether folders are named after different splits and nothing else."""
    return bool(names) and all(name and not name[1] for name in names) and len({n[0] for n in names}) == len(names)


def _are_alike(folders: Sequence[Folder]) -> bool:
    """Return whether folders hold folders of mostly equal names, which say something about their content."""
    sets = [{_compared(inner.name) for inner in folder.filled} for folder in folders]
    common, every = set.intersection(*sets), set.union(*sets)
    neutral = all(set(re.findall(r"[^\W\d_]+", name)) <= _NEUTRAL for name in common)
    return bool(common) and not (len(common) == 1 and neutral) and 2 * len(common) >= len(every)


def _unwrapped(folder: Folder, part: str) -> Folder:
    """Return the folder in which the classes of a part are: `seg_train/seg_train/...`, `train/images/...`."""
    while not folder.images and len(folder.filled) == 1:
        inner = folder.filled[0]
        named = split_name(inner.name)
        words = re.findall(r"[^\W\d_]+", inner.name.lower())
        repeats = _compared(inner.name) == _compared(folder.name) or (named is not None and named[0] == part)
        if not repeats and not (words and set(words) <= _NEUTRAL):
            break
        folder = inner
    return folder


def _part_names(node: Folder) -> list[str]:
    """Return a part name for each folder: that of its split if it alone has it, otherwise its own as a word."""
    named = [split_name(folder.name) for folder in node.filled]
    kinds = [name[0] for name in named if name]
    parts = []
    for folder, name in zip(node.filled, named, strict=True):
        own = re.sub(r"\W+", "_", folder.name).strip("_") or "part"
        own = f"{own}_" if own == "all" else own
        part = name[0] if name and kinds.count(name[0]) == 1 else own
        while part in parts:
            part += "_"
        parts.append(part)
    return parts


def _part_order(part: str) -> tuple[int, object]:
    return (_KINDS.index(part), "") if part in _KINDS else (len(_KINDS), natural_order(part))


def _compared(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold().strip()


def _names(folders: Sequence[Folder]) -> str:
    return join_some(list(dict.fromkeys(folder.name for folder in folders)), 5)
