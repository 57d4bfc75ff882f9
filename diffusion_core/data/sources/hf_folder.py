"""A data set of Hugging Face: what `datasets` saves to disk, or Parquet files as the hub has them.

    FOLDER/dataset_dict.json, FOLDER/train/data-00000-of-00001.arrow ...    `DatasetDict.save_to_disk`
    FOLDER/data-00000-of-00001.arrow, FOLDER/state.json                     `Dataset.save_to_disk`
    FOLDER/data/train-00000-of-00002.parquet ...                            a snapshot of the hub
    FILE.parquet, FILE.arrow                                                one file

A column of images has the bytes of image files, {"bytes", "path"}; or arrays of numbers, as latents. The types of the
columns come from the files themselves, where `datasets` writes them: images, and the names of the classes. Images stay
in the files until they are read.

References:
    Datasets: A Community Library for Natural Language Processing (Lhoest et al., 2021),
    https://arxiv.org/abs/2109.02846
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError, check_choice, one_of
from diffusion_core.data.archives import DatasetInfo
from diffusion_core.data.arrays import arrange, store_values
from diffusion_core.data.labels import UNNAMED, Labels, read_labels
from diffusion_core.data.layout import UNLABELLED, split_name
from diffusion_core.data.reading import Reading
from diffusion_core.data.source import Source
from diffusion_core.files.arrow import ArrowTable, open_table, stacked_column
from diffusion_core.files.safe_read import parse_json, read_bytes, read_json
from diffusion_core.images.decode import Packed
from diffusion_core.images.files import readable_name

__all__ = ["HF_FOLDER", "hf_folder", "is_hf_folder"]

HF_FOLDER = DatasetInfo("A data set of Hugging Face", size=None, channels=None)
_SUFFIXES = (".parquet", ".arrow")
_IMAGES = ("image", "img", "images", "pixel_values", "jpg", "png", "latent", "latents", "data", "x")
_LABELS = ("label", "labels", "class", "class_label", "target", "y", "category")
_SHARD = re.compile(r"(?:^|.*-)(?P<part>\w+)-\d{5}-of-\d{5}$")


@dataclass(frozen=True)
class Cell(Packed):
    """An image in a column of a table.

    Args:
        archive: the file.
        column: the name of the column.
        row: the number of the row.
    """

    archive: Path
    column: str
    row: int

    @property
    def name(self) -> str:
        """Where it is in the file."""
        return f"{self.column}[{self.row}]"

    def __str__(self) -> str:
        return f"{self.archive}, {self.name}"

    def read(self) -> bytes:
        """Return the bytes of the image file.

        Raises:
            DuetError: the cell is empty, or names a file that is not there.
        """
        value = open_table(self.archive).cell(self.column, self.row)
        if isinstance(value, Mapping):
            value, path = value.get("bytes"), value.get("path")
            if value is None and path:
                return self._beside(path)
        if value is None:
            raise DuetError("it is empty")
        return value

    def _beside(self, path: str) -> bytes:
        """Return a file that the table names: next to the table, or in a folder above it, and nowhere else."""
        folders = [self.archive.parent, self.archive.parent.parent]
        for folder in folders:
            file = (folder / path).resolve()
            if file.is_relative_to(folder.resolve()) and file.is_file():
                return read_bytes(file)
        raise DuetError(f"it names the file {path!r}, which is not in {str(folders[0])!r} or {str(folders[1])!r}")


def is_hf_folder(path: Path) -> bool:
    """Return whether a folder looks like one that this module reads."""
    if any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return True
    return any(next(path.glob(pattern), None) for pattern in ("*.parquet", "*.arrow", "*/*.parquet", "*/*.arrow"))


def hf_folder(
    path: Path,
    *,
    image: str | None = None,
    label: str | None = None,
    conditions: str | Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    layout: str | None = None,
    value_range: Sequence[float] | None = None,
) -> dict[str, Source]:
    """Return the parts by the names of their splits, or the only part "all".

    Args:
        path: the folder, or a file.
        image: the column of images; None finds it.
        label: the column of labels; None finds it, "none" reads none.
        conditions: columns of numbers, which become the conditions of the images.
        class_names: the names of the classes, if the files do not name them.
        layout: of arrays, as for data=arrays, like value_range.
        value_range: the values of black and white of floats.

    Raises:
        DuetError: pyarrow is not installed, there are no files of the kinds above, or a column has two readings.
    """
    files = _files(path)
    tables = {part: [open_table(file) for file in found] for part, found in files.items()}
    empty = [part for part, found in tables.items() if not sum(table.rows for table in found)]
    tables = {part: [t for t in found if t.rows] for part, found in tables.items() if part not in empty}
    if not tables:
        raise DuetError(f"hf_folder: {str(path)!r} has no rows; there must be at least one")
    first = next(iter(tables.values()))[0]
    features = _features(path, first)
    what = f"hf_folder {str(path)!r}"
    image_column = _image_column(what, first, features, image)
    label_column = _label_column(what, first, features, label, image_column)
    every = [table for found in tables.values() for table in found]
    for table in every:
        if image_column not in table.schema.names:
            raise DuetError(f"{what}: {table.path.name} has no column {image_column}, unlike {first.path.name}")
    read, unlabelled, remarks = _read_labels(what, tables, features, label_column, class_names)
    vectors, names = _condition_columns(what, every, conditions)
    name = readable_name(path.resolve().name if path.is_dir() else path.stem)
    remarks += [f"left out: parts without rows: {', '.join(empty)}"] if empty else []
    sources, row, labelled = {}, 0, 0
    for part, found in tables.items():
        count = sum(table.rows for table in found)
        images, shown, kept_range, said = _images(f"{what}, {part}", found, image_column, layout, value_range)
        own = None if vectors is None else vectors[row : row + count]
        row += count
        ids, classes, own_names = np.zeros(count, np.int32), (UNLABELLED,), names
        if part not in unlabelled:
            here = slice(labelled, labelled + count)
            ids, classes, labelled = read.ids[here], read.class_names, here.stop
            if read.conditions is not None:
                if own is not None:
                    raise DuetError(
                        f"{what}: conditions were given, and labels that are conditions; set data.options.label=none"
                    )
                own, own_names = read.conditions[here], read.condition_names
        reading = Reading(tuple([*remarks, *said]), parts=tuple(tables) if len(tables) > 1 else ())
        sources[part] = Source(images, ids, classes, name, shown, reading, kept_range, own, own_names)
    return sources


def _files(path: Path) -> dict[str, list[Path]]:
    """Return the files of each part, in order."""
    if path.is_file():
        return {"all": [path]}
    if not path.is_dir():
        raise DuetError(
            f"hf_folder: {str(path)!r} does not exist; it must be a folder of Hugging Face, or a file of one"
        )
    if (path / "dataset_dict.json").is_file():
        splits = read_json(path / "dataset_dict.json")["splits"]
        return {_part(split): _saved(path / split) for split in splits}
    if (path / "state.json").is_file():
        return {"all": _saved(path)}
    found = sorted(file for file in path.rglob("*") if file.suffix.lower() in _SUFFIXES and not _is_cache(path, file))
    if not found:
        raise DuetError(
            f"hf_folder: {str(path)!r} holds no .parquet or .arrow files; it must be what `save_to_disk` of datasets "
            f"writes, or a folder of Parquet files as the hub has them"
        )
    files: dict[str, list[Path]] = {}
    for file in found:
        files.setdefault(_part_of_file(path, file), []).append(file)
    for part, several in files.items():
        folders = sorted({file.parent for file in several})
        if len(folders) > 1 and not _are_shards(several):
            shown = ", ".join(str(folder.relative_to(path)) for folder in folders[:4])
            raise DuetError(
                f"hf_folder: {str(path)!r} has the part {part} in several folders ({shown}), which may be other "
                f"versions of the data set; give one of them as data.options.path"
            )
    order = ("train", "validation", "test")
    return dict(sorted(files.items(), key=lambda item: (order.index(item[0]) if item[0] in order else 3, item[0])))


def _is_cache(root: Path, file: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(root).parts) or file.name.startswith("cache-")


def _saved(folder: Path) -> list[Path]:
    """Return the files that `save_to_disk` lists, in their order."""
    if not (folder / "state.json").is_file():
        raise DuetError(f"hf_folder: {str(folder)!r} has no state.json; save the data set again with save_to_disk")
    names = [entry["filename"] for entry in read_json(folder / "state.json").get("_data_files", ())]
    if any("/" in name or "\\" in name for name in names):
        raise DuetError(f"hf_folder: {str(folder / 'state.json')!r} names files outside its folder")
    return [folder / name for name in names]


def _part(name: str) -> str:
    """Return the name of a part: "valid" is the part validation, "train_extra" keeps its name."""
    named = split_name(name)
    return named[0] if named and not named[1] else name


def _part_of_file(root: Path, file: Path) -> str:
    """Return the part that a file belongs to, by its name, or by that of its folder."""
    if match := _SHARD.match(file.stem):
        return _part(match["part"])
    if named := split_name(file.stem):
        return named[0]
    return _part(file.parent.name) if file.parent != root and split_name(file.parent.name) else "all"


def _are_shards(files: Sequence[Path]) -> bool:
    return len({file.name for file in files}) == len(files) and all(_SHARD.match(file.stem) for file in files)


def _features(path: Path, table: ArrowTable) -> Mapping[str, Any]:
    """Return what `datasets` notes of the columns: in the file, or in dataset_info.json; {} if there is nothing."""
    noted = (table.schema.metadata or {}).get(b"huggingface")
    if noted:
        return parse_json(noted).get("info", {}).get("features") or {}
    for folder in (table.path.parent, path):
        if (folder / "dataset_info.json").is_file():
            return read_json(folder / "dataset_info.json").get("features") or {}
    return {}


def _is_image(table: ArrowTable, features: Mapping[str, Any], name: str) -> bool:
    import pyarrow

    kind, noted = table.schema.field(name).type, features.get(name)
    if isinstance(noted, Mapping) and noted.get("_type") == "Image":
        return True
    return pyarrow.types.is_struct(kind) and "bytes" in [field.name for field in kind]


def _is_listed(table: ArrowTable, name: str) -> bool:
    """Return whether a column holds bytes or arrays of numbers, which can be images."""
    import pyarrow

    kind = table.schema.field(name).type
    kind = kind.storage_type if isinstance(kind, pyarrow.BaseExtensionType) else kind
    return (
        pyarrow.types.is_binary(kind)
        or pyarrow.types.is_large_binary(kind)
        or pyarrow.types.is_list(kind)
        or pyarrow.types.is_large_list(kind)
        or pyarrow.types.is_fixed_size_list(kind)
    )


def _image_column(what: str, table: ArrowTable, features: Mapping[str, Any], given: str | None) -> str:
    columns = table.schema.names
    if given is not None:
        check_choice("data.options.image", given, columns)
        return given
    found = [name for name in columns if _is_image(table, features, name)]
    found = found or [name for name in columns if name.lower() in _IMAGES and _is_listed(table, name)]
    if len(found) != 1:
        which = f"several columns of images ({', '.join(found)})" if found else f"the columns {', '.join(columns)}"
        raise DuetError(f"{what}: it has {which}; choose that of the images with data.options.image=NAME")
    return found[0]


def _label_column(
    what: str, table: ArrowTable, features: Mapping[str, Any], given: str | None, image: str
) -> str | None:
    columns = [name for name in table.schema.names if name != image]
    if given == "none":
        return None
    if given is not None:
        if given not in columns:
            raise one_of("data.options.label", given, [*columns, "none"])
        return given
    found = [name for name in columns if _names(features, name) is not None]
    found = found or [name for name in columns if name.lower() in _LABELS]
    if len(found) > 1:
        raise DuetError(
            f"{what}: it has several columns of labels ({', '.join(found)}); choose one with data.options.label=NAME, "
            f"or none"
        )
    return found[0] if found else None


def _names(features: Mapping[str, Any], column: str) -> list[str] | None:
    """Return the names of the classes of a column, also of lists of classes; None if it has none."""
    noted = features.get(column)
    while isinstance(noted, list | Mapping):
        if isinstance(noted, list):
            noted = noted[0] if noted else None
        elif noted.get("_type") == "ClassLabel":
            return [str(name) for name in noted.get("names") or ()] or None
        else:
            noted = noted.get("feature")
    return None


def _read_labels(
    what: str, tables: Mapping[str, Sequence[ArrowTable]], features: Mapping[str, Any], column: str | None,
    class_names: Sequence[str] | None,
) -> tuple[Labels, list[str], list[str]]:  # fmt: skip
    """Return the labels of the rows of all labelled parts, the parts without labels, and remarks.

    The labels of a part are missing if it has no such column, or nothing but -1 in it, as the test parts of contests.
    """
    count = sum(table.rows for found in tables.values() for table in found)
    if column is None:
        remark = "there are no labels, so all images are of one class"
        return Labels(np.zeros(count, np.int32), (UNNAMED,)), [], [remark]
    values, unlabelled = [], []
    for part, found in tables.items():
        has_column = all(column in table.schema.names for table in found)
        own = [value for table in found for value in table.column(column).to_pylist()] if has_column else [None]
        missing = sum(value is None or (isinstance(value, int) and value == -1) for value in own)
        if missing == len(own):
            unlabelled.append(part)
        elif missing:
            raise DuetError(
                f"{what}: {missing} of {len(own)} values of the column {column} are missing or -1 in part {part}; "
                f"remove these rows, or read without labels: data.options.label=none"
            )
        else:
            values += own
    if not values:
        remark = f"the column {column} holds no labels, so all images are of one class"
        return Labels(np.zeros(count, np.int32), (UNNAMED,)), [], [remark]
    read = read_labels(what, values, len(values), class_names or _names(features, column))
    remarks = [read.remark] if read.remark else []
    if unlabelled:
        remarks.append(f"{', '.join(unlabelled)} has no labels; its one class is called {UNLABELLED!r}")
    return read, unlabelled, remarks


def _condition_columns(
    what: str, tables: Sequence[ArrowTable], columns: str | Sequence[str] | None
) -> tuple[NDArray | None, tuple[str, ...]]:
    """Return the conditions of all rows from their columns, and their names."""
    if columns is None:
        return None, ()
    values, names = [], []
    for column in [columns] if isinstance(columns, str) else columns:
        if column not in tables[0].schema.names:
            raise one_of("data.options.conditions", column, tables[0].schema.names)
        array = stacked_column(f"{what}, column {column}", [table.column(column) for table in tables])
        array = array.reshape(len(array), -1)
        values.append(array)
        names += [column] if array.shape[1] == 1 else [f"{column} {k}" for k in range(array.shape[1])]
    return np.concatenate(values, axis=1), tuple(names)


def _images(
    what: str, tables: Sequence[ArrowTable], column: str, layout: str | None, value_range: Sequence[float] | None
) -> tuple[Any, tuple[str, ...] | None, tuple[float, float] | None, list[str]]:
    """Return images, their names, the range of floats, and remarks."""
    import pyarrow

    kind = tables[0].schema.field(column).type
    if pyarrow.types.is_struct(kind) or pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind):
        if layout is not None or value_range is not None:
            raise DuetError(
                f"{what}: layout and value_range are those of arrays; the column {column} holds image files"
            )
        cells = tuple(Cell(table.path, column, row) for table in tables for row in range(table.rows))
        return cells, _image_names(tables, column, kind), None, []
    array = stacked_column(f"{what}, column {column}", [table.column(column) for table in tables])
    array, moved = arrange(what, array, layout)
    array, value_range, said = store_values(what, array, value_range)
    return array, None, value_range, [text for text in (moved, said) if text]


def _image_names(tables: Sequence[ArrowTable], column: str, kind: Any) -> tuple[str, ...] | None:
    """Return the paths that the images had, if each has one of its own."""
    if kind.num_fields == 0 or "path" not in [field.name for field in kind]:
        return None
    names = [name for table in tables for name in table.column(f"{column}.path").to_pylist()]
    return tuple(map(readable_name, names)) if all(names) and len(set(names)) == len(names) else None
