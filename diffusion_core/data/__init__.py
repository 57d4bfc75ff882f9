"""Data sets as arrays, and the order in which a run sees them.

`load_dataset` makes one by name; `Loader` shows it; `to_uint8` and `from_uint8` go between stored
pixels and network values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from diffusion_core.data import cifar, digits, folder, shapes, store
from diffusion_core.data.dataset import Dataset
from diffusion_core.data.loader import Images, Loader
from diffusion_core.data.pixels import from_uint8, to_uint8
from diffusion_core.registry import build

__all__ = ["DATASETS", "Dataset", "Images", "Loader", "from_uint8", "load_dataset", "to_uint8"]

DATASETS: dict[str, Callable[..., Dataset]] = {
    "cifar10": cifar.cifar10,
    "digits": digits.digits,
    "shapes": shapes.shapes,
    "image_folder": folder.image_folder,
    "store": store.open_store,
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
    dataset = build("data", DATASETS, name, options)
    return dataset if classes is None else dataset.only(classes)
