"""A run as its manifest recorded it, and what contradicts itself in it without computing anything.

A run has parts, one for each start and each resume, with a configuration of its own; and moments, whose states the
manifest has the hashes of. The state of a moment is available if its checkpoint still exists.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusion_core.common.errors import DuetError
from diffusion_core.common.text import pluralize
from diffusion_core.files.safe_read import read_json, read_text
from diffusion_core.runs.checkpoint import list_checkpoints
from diffusion_core.runs.manifest import (
    MANIFEST,
    Entry,
    chain_problem,
    checkpoint_hashes,
    entries_that_count,
    file_hash,
    metrics_hash,
    read_manifest,
)

__all__ = ["Finding", "Moment", "Part", "RecordedRun", "read_run"]


@dataclass(frozen=True)
class Finding:
    """Something that differs from what was recorded, or that was not checked.

    Args:
        what: the file, the entry or the quantity.
        detail: how it differs, as a part of a sentence.
    """

    what: str
    detail: str

    def __str__(self) -> str:
        return f"{self.what}: {self.detail}"


@dataclass(frozen=True)
class Part:
    """A part of a run: from its start or a resume, with one configuration."""

    number: int
    entry: Entry

    @property
    def content(self) -> Mapping[str, Any]:
        """What the manifest says of the beginning of the part."""
        return self.entry.content

    @property
    def is_fresh(self) -> bool:
        """Whether the part starts from new weights, which follow from the configuration."""
        return self.entry.kind == "start"

    @property
    def setup(self) -> Mapping[str, Any]:
        """What the numbers of the part follow from; see `experiments.training.manifest.setup_facts`."""
        return self.content["setup"]


@dataclass(frozen=True)
class Moment:
    """A moment whose state the manifest knows.

    Args:
        images_seen: the moment.
        part: the number of the part that ends here, or begins here for the first moment of a run.
        state: what the manifest says of the state: the hashes of the files of its arrays.
        checkpoint: the path of its state; None if it is not there.
        is_fresh: whether the state follows from the configuration.
    """

    images_seen: int
    part: int
    state: Mapping[str, Any] = field(hash=False)
    checkpoint: Path | None = None
    is_fresh: bool = False

    @property
    def is_available(self) -> bool:
        """Whether the state can be had without computing it."""
        return self.is_fresh or self.checkpoint is not None


@dataclass(frozen=True, eq=False)
class RecordedRun:
    """A run, or a certificate of one.

    Args:
        name: its path, as it was given.
        directory: the run directory; None for a certificate alone.
        entries: all entries of the manifest.
    """

    name: str
    directory: Path | None
    entries: Sequence[Entry]

    @property
    def counting(self) -> list[Entry]:
        """The entries of the run as it is."""
        return entries_that_count(self.entries)

    @property
    def parts(self) -> list[Part]:
        """The parts in order."""
        return [Part(number, entry) for number, entry in enumerate(one for one in self.counting if one.begins)]

    @property
    def last(self) -> Part:
        """The last part, whose configuration the run directory has."""
        return self.parts[-1]

    @property
    def end(self) -> Entry | None:
        """The entry of the end of the run; None if it did not end."""
        last = self.counting[-1]
        return last if last.kind == "end" else None

    @property
    def images_seen(self) -> int:
        """The last moment of the manifest."""
        return self.counting[-1].images_seen

    def moments(self) -> list[Moment]:
        """Return the moments with a known state, in order; the first one is that which the run began from."""
        moments: list[Moment] = []
        part = -1
        for entry in self.counting:
            seen, state = entry.images_seen, entry.content.get("state") or entry.content
            if entry.begins:
                part += 1
            if entry.kind == "start":
                moments = [Moment(seen, part, state, is_fresh=True)]
            elif entry.kind == "resume" and not moments:
                moments.append(Moment(seen, part, state, self._source(entry)))
            elif entry.kind == "resume" and seen > moments[-1].images_seen:  # killed between checkpoint and entry
                moments.append(Moment(seen, part - 1, state, self._checkpoint(seen)))
            elif entry.kind == "checkpoint" and seen > moments[-1].images_seen:
                moments.append(Moment(seen, part, state, self._checkpoint(seen)))
        return moments

    def _checkpoint(self, images_seen: int) -> Path | None:
        path = self.directory and self.directory / "checkpoints" / f"{images_seen:012d}"
        return path if path is not None and (path / "state.json").is_file() else None

    def _source(self, entry: Entry) -> Path | None:
        """Return the checkpoint of another run that this one began from; None if it is not there."""
        source = (entry.content["environment"].get("resumed_from") or {}).get("source")
        path = Path(source) if source else None
        return path if path is not None and (path / "state.json").is_file() else None

    def problems(self) -> Iterator[Finding]:
        """Yield what contradicts itself: broken chain, changed files. Everything that is found is wrong."""
        broken = chain_problem(self.entries)
        if broken:
            yield Finding("manifest", broken)
            return
        checks = [self._resumes]
        if self.directory is not None:
            checks += [self._configuration, self._states, self._metrics, self._results]
        for check in checks:
            try:
                yield from check()
            except DuetError as error:  # a file that cannot be read any more
                yield Finding("files", str(error))

    def _resumes(self) -> Iterator[Finding]:
        states: dict[int, Any] = {}
        for entry in self.counting:
            state = (entry.content.get("state") or entry.content).get("files")
            if entry.kind == "resume" and states.get(entry.images_seen, state) != state:
                yield Finding(
                    f"manifest, entry {entry.number}",
                    f"the run was resumed at {entry.images_seen:,} images from another state than it had there",
                )
            states[entry.images_seen] = state

    def _configuration(self) -> Iterator[Finding]:
        content, directory = self.last.content, self.directory
        if read_text(directory / "config.yaml") != content["config"]:
            yield Finding("config.yaml", "it is another configuration than that of the manifest")
        if read_json(directory / "environment.json") != content["environment"]:
            yield Finding("environment.json", "it differs from what the manifest has")

    def _states(self) -> Iterator[Finding]:
        for moment in self.moments():
            path = moment.checkpoint
            if path is None or self.directory not in path.parents:
                continue
            name = f"checkpoints/{path.name}"
            try:
                found = checkpoint_hashes(path)
            except DuetError as error:
                yield Finding(f"{name}/state.json", str(error))
                continue
            for file, sha256 in found["files"].items():
                recorded = moment.state["files"].get(file)
                if not (path / file).is_file():
                    yield Finding(f"{name}/{file}", "it is missing")
                elif recorded != sha256 or file_hash(path / file) != sha256:
                    yield Finding(f"{name}/{file}", "its hash is not that of the manifest")
            if found["state_sha256"] != moment.state["state_sha256"]:
                yield Finding(f"{name}/state.json", "its hash is not that of the manifest")

    def _metrics(self) -> Iterator[Finding]:
        before = 0
        for entry in self.counting:
            if entry.begins and (entry.kind == "start" or not before):
                before = entry.images_seen
                continue
            recorded, after = entry.content["metrics"], before
            before = max(before, entry.images_seen)
            found = metrics_hash(self.directory / "metrics.jsonl", after, entry.images_seen)
            if found != recorded:
                lines = f"{pluralize(found['lines'], 'line')}, recorded {recorded['lines']}; " * (
                    found["lines"] != recorded["lines"]
                )
                yield Finding(
                    "metrics.jsonl",
                    f"from {after:,} to {entry.images_seen:,} images: {lines}its hash is not that of the manifest",
                )

    def _results(self) -> Iterator[Finding]:
        for name, sha256 in (self.end.content["files"] if self.end else {}).items():
            path = self.directory / name
            if not path.is_file():
                yield Finding(name, "it is missing")
            elif file_hash(path) != sha256:
                yield Finding(name, "its hash is not that of the manifest")

    def uncovered(self) -> Iterator[Finding]:
        """Yield what the manifest says nothing of, which no check covers."""
        first = self.counting[0]
        if first.kind == "resume" and first.images_seen:
            yield Finding(
                f"the first {first.images_seen:,} images", "the manifest begins after them; they are of another run"
            )
        kept = {entry.number for entry in self.counting}
        left = [entry for entry in self.entries if entry.number not in kept and entry.kind == "checkpoint"]
        if left:
            what = f"{pluralize(len(left), 'checkpoint')} from {left[0].images_seen:,} images on"
            yield Finding(what, "abandoned, as the run was resumed before them")
        if self.end is None:
            yield Finding("the end of the run", "the run has not ended; its last entry is that of a checkpoint")
        for part in self.parts:
            own = part.setup.get("own_network")
            if own:
                known = (
                    "the hash of its file is recorded, what that imports is not" if own["sha256"] else "not recorded"
                )
                yield Finding(f"the code of the own network {own['reference']}", known)
        if self.directory is None:
            yield Finding("the files of the run", "a certificate alone was given; add run=RUN to check them")
            return
        for name in ("snapshots", "non_finite"):
            if (self.directory / name).is_dir():
                yield Finding(f"{name}/", "not in the manifest")
        known = {moment.images_seen for moment in self.moments()}
        for path in list_checkpoints(self.directory / "checkpoints"):
            if int(path.name) not in known:
                yield Finding(f"checkpoints/{path.name}", "it is not in the manifest")
        rest = metrics_hash(self.directory / "metrics.jsonl", self.images_seen, 1 << 62)["lines"]
        if rest:
            yield Finding("metrics.jsonl", f"{pluralize(rest, 'line')} after the last entry of the manifest")


def read_run(path: str | Path, certificate: Sequence[Entry] | None = None) -> RecordedRun:
    """Return a run as it was recorded.

    Args:
        path: the run directory.
        certificate: the entries of a certificate, in place of a run.

    Raises:
        DuetError: if there is no such run, or it has no manifest.
    """
    if certificate is not None:
        return RecordedRun(str(path), None, certificate)
    directory = Path(path).expanduser()
    if not (directory / MANIFEST).is_file():
        held = "it is not the directory of a run"
        if (directory / "metrics.jsonl").exists() or list_checkpoints(directory / "checkpoints"):
            held = f"it has no {MANIFEST}: an earlier version of Duet wrote it, or it is an import"
        raise DuetError(f"run: {path} was given; {held if directory.exists() else 'it does not exist'}")
    return RecordedRun(str(path), directory, read_manifest(directory / MANIFEST))
