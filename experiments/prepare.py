"""Make a data set once, as a store that both frameworks read, with its data card.

    python3 -m duet prepare data=cifar10
    python3 -m duet prepare data=image_folder data.options.path=FOLDER data.options.size=64
    python3 -m duet prepare data=celeba data.options.path=FOLDER split=stream
    python3 -m duet prepare data=image_folder data.options.path=FOLDER split=file split.path=parts.txt

Files that are at data.options.path, or, without one, in the folder of archives, are used as they are; others are
fetched there. Where it was interrupted, the same command goes on. Every part is made, whatever data.options.part says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.common.registry import build
from diffusion_core.data import read_options
from diffusion_core.data.archives import sha256_file
from diffusion_core.data.prepare import prepare
from diffusion_core.data.source import Source, only_classes, split_by_file, split_by_stream
from diffusion_core.data.sources import DATASET_INFO, SOURCES
from diffusion_core.data.square import SquareTransform
from diffusion_core.runs.run_directory import describe_environment
from downloads import fetch
from experiments.config.convert import plain
from experiments.config.entry import Config, command
from experiments.runtime.progress import Counter

__all__ = ["SPLITS"]


def _unsplit(parts: dict[str, Source]) -> dict[str, Source]:
    return parts


def _by_stream(parts: dict[str, Source], *, fraction: float = 0.1, seed: int = 0) -> dict[str, Source]:
    return split_by_stream(parts, fraction, seed)


def _by_file(parts: dict[str, Source], *, path: str) -> dict[str, Source]:
    return split_by_file(parts, path)


# By name; each takes the parts of a data set and its options.
SPLITS = {"none": _unsplit, "stream": _by_stream, "file": _by_file}


@command("prepare", options={"split": SPLITS})
def main(cfg: Config) -> None:
    """Find or fetch the files, read them, and write the stores and the card."""
    name, options = cfg.data.name, plain(cfg.data.options)
    if name not in SOURCES:
        raise one_of("data to prepare", name, SOURCES)
    if not cfg.out:
        raise DuetError("out: nothing was given; it is the directory to write")
    about, (squares, _) = DATASET_INFO[name], read_options(name)
    square = build("data", {name: SquareTransform}, name, {k: v for k, v in options.items() if k in squares})
    split = plain(cfg.split)
    where = _files(name, options.get("path"), Path(cfg.archives).expanduser(), cfg.download)
    kept = {key: value for key, value in options.items() if key not in squares | {"path", "part", "classes"}}
    parts = every = build("data", SOURCES, name, kept, where)
    if options.get("classes") is not None:
        parts = only_classes(every, options["classes"])
    without = [part for part in every if part not in parts]
    parts = build("split", SPLITS, split.pop("name", "none"), split, parts)
    files = [] if not about.archives else [_described(file) for file in about.found(where) if file.is_file()]
    facts = {"files": files, "command": describe_environment()["command"]}
    with _Progress(name) as progress:
        card = prepare(parts, cfg.out, square, about, facts, cfg.workers, cfg.max_unreadable, progress)
    for part, made in card["parts"].items():
        left_out = made["unreadable"]["count"]
        note = f", {left_out:,} unreadable ones left out (README.md lists them)" if left_out else ""
        print(f"{part}: {made['pictures']:,} images in {len(made['classes'])} classes{note}, sha256 {made['sha256']}")
    for part in without:
        print(f"{part}: no image of these classes, left out")
    print(f"prepared: {cfg.out}")


def _files(name: str, path: str | None, archives: Path, download: bool) -> Path:
    """Where the files of a data set are; those that are nowhere are fetched."""
    about = DATASET_INFO[name]
    if path == "":
        raise DuetError("data.options.path: an empty text was given; it is a file or a folder")
    if path is not None:
        return Path(path).expanduser()  # whoever names a place means what is there
    if not about.archives:
        raise DuetError(f"data.options.path: no value was given; data {name} is read from files, so name them")
    folder = archives / name
    for archive in about.missing(folder):
        if not download:
            raise DuetError(
                f"{name}: {folder} holds no {archive.names[0]}, and download=false was given; bring it there from "
                f"{about.homepage}, or name its folder with data.options.path=FOLDER"
            )
        if archive.url:
            print(f"{name}: fetching {archive.names[0]}", flush=True)
        fetch(name, archive, folder, about.homepage)
    return folder


def _described(file: Path) -> dict[str, Any]:
    return {"name": file.name, "bytes": file.stat().st_size, "sha256": sha256_file(file)}


class _Progress:
    """One bar for each part in turn."""

    def __init__(self, name: str) -> None:
        self.name, self.part, self.counter = name, None, None

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *error: object) -> None:
        if self.counter:
            self.counter.__exit__(None, None, None)

    def __call__(self, part: str, done: int, total: int) -> None:
        if part != self.part:
            self.__exit__()
            self.part, self.counter = part, Counter(f"{self.name}, {part}", total, start=done).__enter__()
        self.counter(done)


if __name__ == "__main__":
    main()
