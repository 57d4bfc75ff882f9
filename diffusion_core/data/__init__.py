"""Data sets as arrays, and the order in which a run sees them.

`load_dataset` makes a data set by name; `prepare` writes one to disk, from which any process can read it; `Loader`
returns its batches; `to_uint8` and `from_uint8` convert between stored pixels and network values.

May import: images, files, runtime, diffusion and below.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from diffusion_core.common.registry import build
from diffusion_core.data import digits, shapes, store, toys
from diffusion_core.data.dataset import Dataset
from diffusion_core.data.loader import Images, Loader
from diffusion_core.data.pixels import from_uint8, to_uint8
from diffusion_core.data.source import gather
from diffusion_core.data.sources import DATASET_INFO, SOURCES
from diffusion_core.data.square import Square

__all__ = ["DATASETS", "Dataset", "Images", "Loader", "from_uint8", "load_dataset", "read_options", "to_uint8"]


def read_options(name: str) -> tuple[set[str], set[str]]:
    """The options of a published data set: those of `square.Square`, and those of reading its files."""
    own = inspect.signature(SOURCES[name]).parameters
    return set(inspect.signature(Square).parameters), set(own) - {"path"}


def _reader(name: str) -> Callable[..., Dataset]:
    """A function that reads the files of a published data set into memory, with the options of all that it takes."""
    source, about = SOURCES[name], DATASET_INFO[name]
    squares, own = read_options(name)
    usual = {"size": about.size, "channels": about.channels}

    def read(path: str, part: str | None = None, classes: Any = None, **options: Any) -> Dataset:
        square = Square(**usual | {key: value for key, value in options.items() if key in squares})
        parts = source(Path(path).expanduser(), **{key: value for key, value in options.items() if key in own})
        return gather(parts, part, square, classes)

    # The signature names every option, so that one that does not exist, or has another type, is refused.
    made = {key: p for key, p in inspect.signature(read).parameters.items() if p.kind is not p.VAR_KEYWORD}
    for function in (Square, source):
        hints = get_type_hints(function)
        for key, p in inspect.signature(function).parameters.items():
            if key not in made:
                made[key] = p.replace(kind=p.KEYWORD_ONLY, default=usual.get(key, p.default))
                read.__annotations__[key] = hints[key]
    read.__signature__ = inspect.Signature(list(made.values()))
    return read


DATASETS: dict[str, Callable[..., Dataset]] = {
    "digits": digits.digits,
    "shapes": shapes.shapes,
    "toy": toys.toy,
    "gaussian_mixture": toys.gaussian_mixture,
    "store": store.open_store,
    **{name: _reader(name) for name in SOURCES},
}


def load_dataset(name: str, *, classes: Sequence[int | str] | None = None, **options: object) -> Dataset:
    """The data set called `name`, made with the options of its function in `DATASETS`.

    Args:
        name: which one.
        classes: the classes to keep, of any data set, see `Dataset.only`; None keeps all.
        options: of its function.

    Raises:
        DuetError: the name is unknown, an option is unknown or missing, or the function refuses its value.
    """
    if name in SOURCES:
        return build("data", DATASETS, name, options | {"classes": classes})
    dataset = build("data", DATASETS, name, options)
    return dataset if classes is None else dataset.only(classes)
