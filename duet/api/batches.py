"""The images of a run, batch by batch, for a training loop of one's own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError, check_choice, one_of
from diffusion_core.data.loader import Loader
from diffusion_core.data.pixels import VALUE_RANGE
from diffusion_core.networks.own_call import LAYOUTS
from duet.api.data import as_loaded
from duet.api.options import check_types

__all__ = ["Batch", "batches"]


class Batch(NamedTuple):
    """The images of one training step.

    Args:
        images: in the value range, with shape (B, ...).
        labels: class ids, int32 with shape (B,).
        conditions: the conditions of each image, with shape (B, F); None for data without them.
        step: number of the step, from 0.
        noise: of pairs, the noise of each image, with the shape of the images, for `duet.loss`; None otherwise.

    Example:
        >>> Batch(np.zeros((2, 8, 8, 1)), np.zeros(2, np.int32), None, step=3).step
        3
    """

    images: NDArray
    labels: NDArray[np.int32]
    conditions: NDArray | None
    step: int
    noise: NDArray | None = None


@check_types
def batches(
    dataset: Any,
    *,
    batch: int = 128,
    images: int = 128_000,
    first_step: int = 0,
    seed: int = 0,
    flip: bool = False,
    layout: str = "channels_last",
    value_range: tuple[float, float] = VALUE_RANGE,
    precision: str = "float32",
) -> Iterator[Batch]:
    """Return the batches of a training run in the order of `duet.train`, for a loop of your own.

    Args:
        dataset: a data set, or what `duet.load_dataset` takes.
        batch: images per step.
        images: length of the run in images seen; a multiple of `batch`.
        first_step: the step to start with, to continue a run.
        seed: of the order.
        flip: whether to mirror half of the images.
        layout: ``"channels_last"``, or ``"channels_first"`` for PyTorch.
        value_range: of the images.
        precision: ``"float32"`` or ``"float64"``.

    Raises:
        DuetError: for a length that is no multiple of the batch, or an option that does not exist.

    Example:
        >>> import numpy as np
        >>> data = np.zeros((6, 4, 4, 3), np.uint8)
        >>> for one in batches(data, batch=4, images=8, layout="channels_first"):
        ...     print(one.step, one.images.shape, one.labels.tolist())
        0 (4, 3, 4, 4) [0, 0, 0, 0]
        1 (4, 3, 4, 4) [0, 0, 0, 0]

        A training loop in PyTorch::

            for one in duet.batches(data, batch=64, images=64_000, layout="channels_first"):
                loss = duet.loss(module, torch.from_numpy(one.images), process, step=one.step)
                loss.backward()
    """
    check_choice("layout", layout, LAYOUTS)
    if precision not in ("float32", "float64"):
        raise one_of("precision", precision, ("float32", "float64"))
    if batch < 1 or images < 1 or images % batch:
        raise DuetError(
            f"images: {images} was given with batch={batch}; it must be a multiple of batch, which is at least 1"
        )
    if first_step < 0:
        raise DuetError(f"first_step: {first_step} was given; steps count from 0")
    data = as_loaded(dataset)
    loader = Loader(data, seed, flip=flip, dtype=np.dtype(precision), value_range=value_range)

    def arranged(array: NDArray) -> NDArray:
        return np.ascontiguousarray(np.moveaxis(array, -1, 1) if layout == "channels_first" else array)

    def generate() -> Iterator[Batch]:
        for step in range(first_step, images // batch):
            read = loader.batch(step * batch, batch)
            pixels, noise = (None if a is None else arranged(a) for a in (read.pixels, read.noise))
            yield Batch(pixels, read.labels, read.features, step, noise)

    return generate()
