"""Write a data set once, as a directory of stores that every process and both frameworks read::

    README.md    the data card, for people
    card.json    the same, for programs
    train/ ...   a store for each part, see `store`

The work is cut into shards at borders that depend on the source alone, so the bytes do not depend on the number of
processes. Each shard is written completely or not at all. Until everything is written, the directory is
called ``.NAME.unfinished``; calling `prepare` again with the same source and request resumes it.

Images that cannot be read are skipped, counted and listed, up to a maximum fraction of each part. The pixels are a
function of the source, the request and the version of Pillow, which resizes; the card records all three.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from diffusion_core.common.errors import DuetError
from diffusion_core.data.archives import DatasetInfo
from diffusion_core.data.card import PreparedPart, card_text, data_card
from diffusion_core.data.identity import (
    content_digest,
    describe_difference,
    differs_by_times,
    fingerprint,
    same_content,
    total_digest,
)
from diffusion_core.data.reading import check_max_unreadable, check_unreadable
from diffusion_core.data.source import Source, check_classes_survive
from diffusion_core.data.store import finish_store, open_store, shard_length, shard_name, write_array
from diffusion_core.data.transform import ArrayTransform, ImageTransform
from diffusion_core.files.atomic import write_atomically
from diffusion_core.files.safe_read import read_json
from diffusion_core.images.decode import ImageInput, UnreadableImage
from diffusion_core.runtime.process_pool import spawn_pool

__all__ = ["prepare"]

_LOCK = ".lock"


@dataclass(frozen=True, eq=False)
class _Job:
    """One shard to write."""

    images: Sequence[ImageInput] | np.ndarray
    first: int  # the index of the first image in its source
    transform: ImageTransform | ArrayTransform
    file: Path


def prepare(
    parts: Mapping[str, Source],
    directory: str | Path,
    transform: ImageTransform,
    info: DatasetInfo,
    extra: Mapping[str, Any] | None = None,
    workers: int | None = None,
    max_unreadable: float = 0.01,
    progress: Callable[[str, int, int], None] = lambda part, done, total: None,
) -> dict[str, Any]:
    """Write a data set to a new directory; do nothing if it is already there.

    Args:
        parts: the source of each part.
        directory: the directory to write.
        transform: how images are cropped and resized.
        info: facts about the data set, for the card.
        extra: further plain data for the card.
        workers: the number of processes; None means one per core.
        max_unreadable: the largest fraction of a part that may be unreadable.
        progress: called with a part, the number of its images that are done, and its total.

    Returns:
        The card, as plain data.

    Raises:
        DuetError: the directory holds something else, too many images are unreadable, or another process writes to it.
    """
    final = Path(directory).expanduser()
    if workers is not None and workers < 1:
        raise DuetError(f"workers: {workers} was given; it must be at least 1, or null for one per core")
    check_max_unreadable(max_unreadable)
    request = {
        "square": asdict(transform),
        "parts": {part: {"count": len(source), "sha256": fingerprint(source)} for part, source in parts.items()},
        "pillow": PIL.__version__,
    }
    if (card := _existing_card(final, request, parts)) is not None:
        return card
    unfinished = final.with_name(f".{final.name}.unfinished")
    with _exclusive(unfinished):
        if (card := _existing_card(final, request, parts)) is not None:  # another process has just finished it
            shutil.rmtree(unfinished, ignore_errors=True)
            return card
        if not _is_request(unfinished / "request.json", request):
            for old in unfinished.iterdir():
                if old.name != _LOCK:
                    shutil.rmtree(old) if old.is_dir() else old.unlink()
            write_atomically(unfinished / "request.json", json.dumps(request).encode())
        made, contents = {}, {}
        transform = next(iter(parts.values())).transform(transform)
        for part, source in parts.items():
            records = _write_part(source, part, unfinished / part, transform, workers, max_unreadable, progress)
            made[part] = _finish_part(source, unfinished / part, records)
            if all("digests" in record for record in records) and not isinstance(source.images, np.ndarray):
                contents[part] = total_digest(source, (digest for record in records for digest in record["digests"]))
        for classes in dict.fromkeys(source.class_names for source in parts.values()):
            same = [part for part in made.values() if part.source.class_names == classes]
            check_classes_survive([part.source for part in same], [part.dataset.labels for part in same])
        card = data_card(made, transform, info, dict(extra or {})) | {"request": request}
        card |= {"contents": contents} if contents else {}
        write_atomically(unfinished / "card.json", (json.dumps(card, indent=2) + "\n").encode())
        write_atomically(unfinished / "README.md", card_text(card).encode())
        for part in parts:
            for record in (unfinished / part).glob("*.record.json"):
                record.unlink()
        if final.is_dir():  # it is empty
            final.rmdir()
        unfinished.rename(final)
        # Last, because the next call starts anew in an unfinished directory that has no request.
        for name in ("request.json", _LOCK):
            (final / name).unlink()
    return card


def _existing_card(final: Path, request: Mapping[str, Any], parts: Mapping[str, Source]) -> dict[str, Any] | None:
    """Return the card of a directory that the same request made; None if the directory is missing or empty."""
    if not final.exists() or (final.is_dir() and not any(final.iterdir())):
        return None
    try:
        card = read_json(final / "card.json")
        wanted = json.loads(json.dumps(request))
        same = card["request"] == wanted or (differs_by_times(card, wanted) and same_content(card["contents"], parts))
    except (DuetError, KeyError, TypeError):
        raise DuetError(f"out: {str(final)!r} is not a prepared data set; choose another directory") from None
    if not same:
        raise DuetError(
            f"out: {str(final)!r} was prepared {describe_difference(card['request'], wanted)}; "
            f"choose another directory, or delete it"
        )
    for part, kept in card["parts"].items():
        if open_store(final / part).sha256 != kept["sha256"]:
            raise DuetError(f"out: {str(final / part)!r} differs from its card; delete it and prepare it again")
    return card


def _is_request(file: Path, request: Mapping[str, Any]) -> bool:
    try:
        return read_json(file) == json.loads(json.dumps(request))
    except DuetError:
        return False


@contextlib.contextmanager
def _exclusive(directory: Path) -> Iterator[None]:
    """Keep other processes out of the directory. The lock ends with the process that holds it."""
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / _LOCK, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DuetError(f"out: another process is writing {str(directory)!r}; wait until it has finished") from None
        yield


def _write_part(
    source: Source,
    part: str,
    directory: Path,
    transform: ImageTransform | ArrayTransform,
    workers: int | None,
    max_unreadable: float,
    progress: Callable[[str, int, int], None],
) -> list[dict[str, Any]]:
    """Write every shard of a part that is not there yet, and return the records of all in order."""
    directory.mkdir(exist_ok=True)
    total, step = len(source), shard_length(math.prod(transform.shape) * transform.dtype.itemsize)
    records: dict[int, dict[str, Any]] = {}
    missing = []
    for number, first in enumerate(range(0, total, step)):
        record = directory / f"{shard_name(number)}.record.json"
        if record.exists():
            records[number] = read_json(record)
        else:
            missing.append((number, first))

    def job(first: int, number: int) -> _Job:
        images = source.images[first : first + step]
        images = np.ascontiguousarray(images) if isinstance(images, np.ndarray) else tuple(images)
        return _Job(images, first, transform, directory / shard_name(number))

    def done(number: int, record: dict[str, Any]) -> None:
        records[number] = record
        failed = [
            (source.display_name(index), reason) for n in sorted(records) for index, reason in records[n]["failed"]
        ]
        check_unreadable(part, failed, total, max_unreadable)
        progress(part, sum(record["seen"] for record in records.values()), total)

    progress(part, sum(record["seen"] for record in records.values()), total)
    for number in sorted(records):  # shards of an earlier call count against max_unreadable too
        done(number, records[number])
    workers = min(workers or len(os.sched_getaffinity(0)), max(1, len(missing)))
    if workers == 1:
        for number, first in missing:
            done(number, _write_shard(job(first, number)))
        return [records[number] for number in sorted(records)]
    with spawn_pool(workers) as processes:
        running: dict[Future, int] = {}
        try:
            while missing or running:
                while missing and len(running) < workers + 1:  # bounds the memory
                    number, first = missing.pop(0)
                    running[processes.submit(_write_shard, job(first, number))] = number
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    done(running.pop(future), future.result())
        except BrokenExecutor as error:
            raise DuetError(
                f"{part}: a worker process died, perhaps out of memory; run it again with fewer workers to resume"
            ) from error
        finally:
            for future in running:
                future.cancel()
    return [records[number] for number in sorted(records)]


def _write_shard(job: _Job) -> dict[str, Any]:
    """Write one shard and its record."""
    images, kept, failed, remarks, sizes = [], [], [], [], Counter()
    for index, image in enumerate(job.images, job.first):
        try:
            pixels, original, remark = job.transform(image, index)
        except UnreadableImage as error:
            failed.append((index, error.reason))
            continue
        images.append(pixels)
        kept.append(index)
        sizes[original] += 1
        if remark:
            remarks.append((index, remark))
    part = job.file.with_suffix(".part")
    if images:
        write_array(part, np.stack(images))
        part.rename(job.file)
    record = {"seen": len(job.images), "kept": kept, "failed": failed, "remarks": remarks, "sizes": dict(sizes)}
    if not isinstance(job.images, np.ndarray):
        record["digests"] = [content_digest(image) for image in job.images]
    write_atomically(job.file.with_name(f"{job.file.name}.record.json"), json.dumps(record).encode())
    return record


def _finish_part(source: Source, directory: Path, records: Sequence[Mapping[str, Any]]) -> PreparedPart:
    """Make a store of the shards of a part."""
    kept = np.concatenate([np.array(record["kept"], np.int64) for record in records])
    if not kept.size:
        raise DuetError(f"{source.name}: none of its {len(source)} images can be read")
    names = None if source.names is None else [source.names[index] for index in kept]
    lengths = [len(record["kept"]) for record in records]
    conditions = None if source.conditions is None else source.conditions[kept]
    dataset = finish_store(
        directory, lengths, source.labels[kept], source.class_names, source.name, names, source.value_range, conditions,
        source.condition_names,
    )  # fmt: skip
    failed = [(source.display_name(index), reason) for record in records for index, reason in record["failed"]]
    # Records of earlier versions have no remarks.
    remarks = [(index, text) for record in records for index, text in record.get("remarks", ())]
    damaged = [f"{source.display_name(index)}: {text}" for index, text in remarks]
    sizes = sum((Counter(record["sizes"]) for record in records), Counter())
    return PreparedPart(source, dataset, failed, damaged, sizes)
