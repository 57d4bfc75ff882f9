"""The choice of a data set: by name, from its files or its prepared store, or a fallback if neither exists."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from diffusion_core.common.errors import DuetError
from diffusion_core.data import Dataset, load_dataset
from diffusion_core.data.store import store_parts
from diffusion_core.networks import NetworkSpec

__all__ = ["DataSource", "check_data"]


@dataclass(frozen=True)
class DataSource:
    """Where a data set comes from.

    Args:
        name: of the data set, as in `diffusion_core.data.DATASETS`.
        options: of that data set. ``path: None`` means that the files have to be prepared in `store`.
        store: the directory that `experiments.prepare` writes.
        fallback: name and options of the data set to use if there is no store; empty for none.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    store: str | None = None
    fallback: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> Dataset:
        """Load the data set; the name of a fallback says what it replaces.

        Raises:
            DuetError: if there are no such files, or an option does not fit.
        """
        options, fallback = dict(self.options), dict(self.fallback)
        if options.get("path") == "":
            raise DuetError("data.options.path: an empty text was given; it is a file or a folder")
        if options.get("path", "") is not None:
            return load_dataset(self.name, **options)
        if self.store and store_parts(self.store):
            selected = {"directory": self.store, "part": options.get("part"), "classes": options.get("classes")}
            return self._check_shape(load_dataset("store", **selected))
        if not fallback:
            raise DuetError(
                f"data {self.name}: {self.store} holds no store, and data.options.path is null; make the store once "
                f"with python3 -m duet prepare data={self.name}, or name the files with data.options.path=PATH"
            )
        dataset = load_dataset(fallback.pop("name"), **fallback)
        return replace(dataset, name=f"{dataset.name}, in place of {self.name}")

    def _check_shape(self, dataset: Dataset) -> Dataset:
        """Refuse a prepared data set whose images do not have the shape that the options name."""
        for key, prepared in (("size", dataset.image_size), ("channels", dataset.channels)):
            if self.options.get(key, prepared) != prepared:
                raise DuetError(
                    f"data.options.{key}: {self.options[key]} was given, but {self.store} was prepared with "
                    f"{prepared}; give that, or prepare it again with another data.store"
                )
        return dataset


def check_data(dataset: Dataset, spec: NetworkSpec) -> None:
    """Refuse a data set whose image shape or classes do not fit the network."""
    shape = (dataset.image_size, dataset.image_size, dataset.channels)
    if shape != spec.image_shape:
        raise DuetError(
            f"data {dataset.name}: its images are {shape}, but the network takes {spec.image_shape} (h, w, c); "
            f"set model.image_size={shape[0]} model.in_channels={shape[2]} model.out_channels={shape[2]}, "
            f"or choose other data"
        )
    if spec.num_classes and spec.num_classes != dataset.num_classes:
        raise DuetError(
            f"data {dataset.name}: it has {dataset.num_classes} classes, but the network has {spec.num_classes}; "
            f"set model.num_classes={dataset.num_classes}"
        )
