"""Tables in the files of Apache Arrow and Parquet, one cell or one column at a time.

An Arrow file (a stream, as Hugging Face's `datasets` saves it, or a file with an index) is mapped into memory; of a
Parquet file, the row groups that are asked for are read, and the last few are kept. Nothing is unpickled: the formats
hold plain numbers, texts and bytes.

pyarrow is an optional package; it is imported when a file is opened.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.files.safe_read import file_errors

__all__ = ["ArrowTable", "open_table", "stacked_column"]

_ARROW = (".arrow", ".feather", ".ipc")
_GROUPS = 2


@dataclass(frozen=True, eq=False)
class ArrowTable:
    """The table in a file.

    Args:
        path: the file.
        source: a `pyarrow.Table`, or a `pyarrow.parquet.ParquetFile`.
    """

    path: Path
    source: Any

    @property
    def schema(self) -> Any:
        """The names and types of the columns, a `pyarrow.Schema`."""
        return self.source.schema_arrow if self._is_parquet else self.source.schema

    @cached_property
    def rows(self) -> int:
        """The number of rows."""
        return self.source.metadata.num_rows if self._is_parquet else self.source.num_rows

    def column(self, name: str) -> Any:
        """Return a whole column, a `pyarrow.ChunkedArray`; "a.b" is the field b of a column a."""
        outer, _, inner = name.partition(".")
        if name in self.schema.names:
            outer, inner = name, ""
        with file_errors(self.path):
            table = self.source.read(columns=[name]) if self._is_parquet else self.source
            column = table.column(outer)
            return column if not inner else _field(column, inner)

    def cell(self, name: str, row: int) -> Any:
        """Return one value as a Python object."""
        with file_errors(self.path):
            if not self._is_parquet:
                return self.source.column(name)[row].as_py()
            group = bisect_right(self._group_ends, row)
            first = self._group_ends[group - 1] if group else 0
            return _row_group(self, group, name)[row - first].as_py()

    @property
    def _is_parquet(self) -> bool:
        return hasattr(self.source, "num_row_groups")

    @cached_property
    def _group_ends(self) -> Sequence[int]:
        groups = self.source.metadata
        return np.cumsum([groups.row_group(k).num_rows for k in range(self.source.num_row_groups)]).tolist()


@lru_cache(maxsize=_GROUPS)
def _row_group(table: ArrowTable, group: int, column: str) -> Any:
    return table.source.read_row_group(group, columns=[column]).column(column)


def _field(column: Any, name: str) -> Any:
    import pyarrow

    return pyarrow.chunked_array([chunk.field(name) for chunk in column.chunks], column.type.field(name).type)


def open_table(path: str | Path) -> ArrowTable:
    """Open an Arrow or Parquet file, once for each state of it.

    Raises:
        DuetError: pyarrow is not installed, or the file is none of these.
    """
    if find_spec("pyarrow") is None:
        raise DuetError(
            f"{path}: reading Arrow and Parquet files needs pyarrow, which is not installed; run `pip install "
            f"pyarrow`, or python3 -m duet setup --extra arrow"
        )
    with file_errors(path):
        state = Path(path).stat()
    return _open(Path(path), state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=64)
def _open(path: Path, modified: int, size: int) -> ArrowTable:
    import pyarrow
    import pyarrow.parquet

    with file_errors(path, "it is not an Arrow or Parquet file"):
        if path.suffix.lower() not in _ARROW:
            return ArrowTable(path, pyarrow.parquet.ParquetFile(path))
        mapped = pyarrow.memory_map(str(path))
        try:
            return ArrowTable(path, pyarrow.ipc.open_stream(mapped).read_all())
        except pyarrow.ArrowInvalid:
            mapped.seek(0)
            return ArrowTable(path, pyarrow.ipc.open_file(mapped).read_all())


def stacked_column(what: str, columns: Sequence[Any]) -> NDArray:
    """Return columns of numbers, or of nested lists of numbers of one length, as one array with shape (N, ...).

    Args:
        what: the column, with which errors begin.
        columns: of several files, one after another.

    Raises:
        DuetError: lists differ in length, or a value is missing or no number.
    """
    arrays = [_stacked(what, chunk) for column in columns for chunk in column.chunks if len(chunk)]
    if not arrays or len({array.shape[1:] for array in arrays}) > 1:
        shapes = ", ".join(sorted({str(array.shape[1:]) for array in arrays})) or "none"
        raise DuetError(f"{what}: its values have the shapes {shapes}; all must have one")
    return np.concatenate(arrays)


def _stacked(what: str, array: Any) -> NDArray:
    import pyarrow

    if isinstance(array, pyarrow.ExtensionArray):
        array = array.storage
    if array.null_count:
        raise DuetError(f"{what}: {array.null_count} of {len(array)} values are missing; fill or remove these rows")
    kind = array.type
    if pyarrow.types.is_fixed_size_list(kind):
        inner = array.flatten()
        return _stacked(what, inner).reshape(len(array), kind.list_size, *_stacked(what, inner).shape[1:])
    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
        lengths = np.diff(array.offsets.to_numpy())
        if len(set(lengths.tolist())) > 1:
            raise DuetError(
                f"{what}: its lists have {lengths.min()} to {lengths.max()} values; all must have one length"
            )
        inner = _stacked(what, array.flatten())
        return inner.reshape(len(array), int(lengths[0]), *inner.shape[1:])
    if not (pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind) or pyarrow.types.is_boolean(kind)):
        raise DuetError(f"{what}: its values are {kind}; they must be numbers, or lists of numbers")
    return array.to_numpy(zero_copy_only=False)
