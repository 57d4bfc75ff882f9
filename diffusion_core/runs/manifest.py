"""The manifest of a run: a hash chain over its configuration, its data, its states and its metrics.

    manifest.jsonl    one entry per line
        start         a new run: configuration, environment, hashes of data and program, hash of the first weights
        resume        the same, where a run was resumed, from its own checkpoint or from that of another run
        checkpoint    the hashes of the files of a checkpoint, and of the lines of metrics since the entry before
        end           the hashes of the results, and what they say

Each entry holds the hash of the entry before and its own,

    sha256_k = SHA-256(entry_k, with previous = sha256_(k-1)),

so that no entry can be changed, left out or put elsewhere without a change of every later hash. The last hash, the head
of the chain, therefore stands for the whole run. A chain shows that a record was not changed since its head was known.
It does not show that the record is true: whoever recomputes every hash has a valid chain of something else. Replaying
the run from its own states shows that; see `experiments.verification`.

Where a run was resumed at an earlier moment than its last entry, the later entries stay in the file and count no more.
Keys are only ever added. Paths in an entry are relative to the directory of the run.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusion_core.common.errors import DuetError
from diffusion_core.files.safe_read import file_errors, open_regular, parse_json, read_json
from diffusion_core.runs.checkpoint import hash_entries
from diffusion_core.runs.run_directory import plain_data

__all__ = [
    "MANIFEST",
    "Entry",
    "Manifest",
    "chain_problem",
    "checkpoint_hashes",
    "entries_that_count",
    "file_hash",
    "head",
    "metrics_hash",
    "read_manifest",
]

MANIFEST = "manifest.jsonl"
FORMAT = 1
KINDS = ("start", "resume", "checkpoint", "end")
BEGINNINGS = ("start", "resume")
_MAX_LINE_BYTES = 1 << 24  # longer than any entry, which may hold a long configuration


@dataclass(frozen=True, repr=False)
class Entry:
    """One entry of a manifest.

    Args:
        number: 0, 1, 2 ... of all entries of the file.
        kind: one of `KINDS`.
        images_seen: the moment.
        content: all of its keys, those above among them.
    """

    number: int
    kind: str
    images_seen: int
    content: Mapping[str, Any] = field(hash=False)

    def __repr__(self) -> str:
        return f"Entry({self.number}, {self.kind!r}, images_seen={self.images_seen}, {self.sha256[:12]})"

    @property
    def sha256(self) -> str:
        """The hash of the chain up to this entry."""
        return str(self.content["sha256"])

    @property
    def begins(self) -> bool:
        """Whether a part of the run begins here: with a configuration and an environment of its own."""
        return self.kind in BEGINNINGS

    @staticmethod
    def from_content(content: Any, where: str) -> Entry:
        """Return the entry with this content.

        Raises:
            DuetError: if it is no entry of a manifest.
        """
        known = {"number": int, "kind": str, "images_seen": int, "sha256": str, "format": int}
        if not isinstance(content, dict) or any(type(content.get(key)) is not kind for key, kind in known.items()):
            raise DuetError(f"{where} is no entry of a manifest")
        if content["format"] != FORMAT:
            raise DuetError(f"{where} has format {content['format']}; this version of Duet reads format {FORMAT}")
        if content["kind"] not in KINDS:
            raise DuetError(f"{where} has the kind {content['kind']!r}; it must be one of {', '.join(KINDS)}")
        return Entry(content["number"], content["kind"], content["images_seen"], content)


def read_manifest(path: Path) -> list[Entry]:
    """Return the entries of a manifest, without a last line that a killed process left incomplete.

    Raises:
        DuetError: if the file is missing, or any other line is no entry. The hashes are not checked.
    """
    entries: list[Entry] = []
    with file_errors(path, "it is no manifest"), open_regular(path) as file:
        lines = file.read().split(b"\n")
        for number, line in enumerate(lines[:-1], 1):
            if len(line) > _MAX_LINE_BYTES:
                raise DuetError(f"{path}: line {number} is too long")
            try:
                content = parse_json(line)
            except (ValueError, RecursionError) as error:
                raise DuetError(f"{path}: line {number} is not JSON ({error})") from error
            entries.append(Entry.from_content(content, f"{path}: line {number}"))
    return entries


def chain_problem(entries: Sequence[Entry]) -> str | None:
    """Return where a chain is broken, and None if it is not.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as directory:
        ...     manifest = Manifest(Path(directory))
        ...     manifest.begin("start", 0, {"seed": 1})
        ...     manifest.append("end", 0, {})
        ...     entries = read_manifest(Path(directory) / MANIFEST)
        >>> chain_problem(entries)
        >>> chain_problem(entries[1:])
        'entry 0 is missing'
        >>> changed = Entry.from_content({**entries[0].content, "seed": 2}, "entry")
        >>> chain_problem([changed, entries[1]])
        'entry 0 (start at 0 images) was changed: its content does not have its hash'
    """
    previous = None
    for number, entry in enumerate(entries):
        name = f"entry {number} ({entry.kind} at {entry.images_seen:,} images)"
        if entry.number != number:
            return f"entry {number} is missing"
        if hash_entries(entry.content) != entry.sha256:
            return f"{name} was changed: its content does not have its hash"
        if entry.content.get("previous") != previous:
            return f"{name} does not follow the entry before: the chain is broken between them"
        if not number and not entry.begins:
            return f"{name} is the first one, which must be a start"
        previous = entry.sha256
    return None if entries else "there is no entry"


def head(entries: Sequence[Entry]) -> str:
    """Return the hash of the last entry, which stands for the whole chain."""
    return entries[-1].sha256


def entries_that_count(entries: Iterable[Entry]) -> list[Entry]:
    """Return the entries of the run as it is: those after the moment of a later resume count no more.

    Example:
        >>> def entry(number, kind, images_seen):
        ...     return Entry(number, kind, images_seen, {"sha256": ""})
        >>> moments = [("start", 0), ("checkpoint", 64), ("checkpoint", 128), ("resume", 64)]
        >>> chain = [entry(number, *moment) for number, moment in enumerate(moments)]
        >>> [one.number for one in entries_that_count(chain)]
        [0, 1, 3]
    """
    kept: list[Entry] = []
    for entry in entries:
        if entry.begins:
            kept = [one for one in kept if one.images_seen <= entry.images_seen and one.kind != "end"]
        kept.append(entry)
    return kept


def metrics_hash(path: Path, after: int, last: int) -> dict[str, Any]:
    """Return number and hash of the lines of metrics of the steps that end after `after` images and at most at `last`.

    The hash is that of the records and not of how they are written.
    """
    digest, lines = hashlib.sha256(), 0
    if path.exists():
        with open_regular(path) as file:
            lines = _add_lines(digest, file.read(), after, last)
    return {"lines": lines, "sha256": digest.hexdigest()}


def _add_lines(digest: Any, content: bytes, after: int, last: int) -> int:
    """Add the lines of these steps to a hash, and return their number."""
    count = 0
    for line in content.split(b"\n"):
        try:
            record = parse_json(line)
        except (ValueError, RecursionError):  # the line that a killed process was writing
            continue
        seen = record.get("images_seen") if isinstance(record, dict) else None
        if type(seen) is int and after < seen <= last:
            digest.update(json.dumps(record, sort_keys=True).encode() + b"\n")
            count += 1
    return count


def file_hash(path: Path) -> str:
    """Return the SHA-256 hash of a file."""
    with file_errors(path), open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checkpoint_hashes(path: Path) -> dict[str, Any]:
    """Return what an entry holds of a checkpoint: the hashes of its arrays, and that of all it says of them.

    Raises:
        DuetError: if it cannot be read, or was changed.
    """
    state = read_json(path / "state.json")
    with file_errors(path / "state.json"):
        if state["sha256"] != hash_entries(state):
            raise DuetError("it was changed: its content does not have its hash")
        return {"updates": state["updates"], "files": dict(state["files"]), "state_sha256": state["sha256"]}


class Manifest:
    """The manifest of a run that is being written.

    Args:
        directory: of the run.

    Raises:
        DuetError: if the directory holds a manifest that cannot be read.
    """

    def __init__(self, directory: Path) -> None:
        self.path, self._metrics = Path(directory) / MANIFEST, Path(directory) / "metrics.jsonl"
        entries = read_manifest(self.path) if self.path.exists() else []
        self._previous = entries[-1].sha256 if entries else None
        self._number, self._entries = len(entries), entries
        self._images_seen, self._offset = 0, 0

    def __repr__(self) -> str:
        return f"Manifest({str(self.path)!r}, {self._number} entries)"

    def begin(self, kind: str, images_seen: int, content: Mapping[str, Any]) -> None:
        """Append the entry of a part of the run; metrics that no entry covers yet belong to it."""
        counting = [one for one in entries_that_count(self._entries) if one.images_seen <= images_seen]
        covered = counting[-1].images_seen if counting else 0
        metrics = metrics_hash(self._metrics, covered, images_seen)
        self._offset = self._metrics.stat().st_size if self._metrics.exists() else 0
        self._images_seen = images_seen
        self._write(kind, images_seen, {"metrics": metrics, **content})

    def append(self, kind: str, images_seen: int, content: Mapping[str, Any]) -> None:
        """Append an entry with the hash of the metrics since the entry before."""
        digest, lines = hashlib.sha256(), 0
        if self._metrics.exists():
            with open_regular(self._metrics) as file:
                file.seek(self._offset)
                added = file.read()
            lines = _add_lines(digest, added, self._images_seen, images_seen)
            self._offset += len(added)
        self._images_seen = images_seen
        self._write(kind, images_seen, {"metrics": {"lines": lines, "sha256": digest.hexdigest()}, **content})

    def _write(self, kind: str, images_seen: int, content: Mapping[str, Any]) -> None:
        entry = {"format": FORMAT, "number": self._number, "kind": kind, "images_seen": images_seen}
        entry |= {"previous": self._previous, **plain_data(content)}
        entry["sha256"] = hash_entries(entry)
        try:
            self._drop_incomplete_line()
            with open(self.path, "ab") as file:
                file.write(json.dumps(entry).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise DuetError(f"{self.path}: it cannot be written ({error.strerror})") from error
        self._previous, self._number = entry["sha256"], self._number + 1

    def _drop_incomplete_line(self) -> None:
        """Remove what a killed process left of a line."""
        if not self.path.exists():
            return
        with open(self.path, "rb+") as file:
            size = file.seek(0, os.SEEK_END)
            if not size:
                return
            file.seek(size - 1)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
