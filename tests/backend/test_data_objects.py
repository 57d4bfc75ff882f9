"""Tensors and data sets of the framework itself become the same data set as the arrays that they hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from diffusion_core.common.errors import DuetError
from diffusion_core.data import Dataset, Loader, load_dataset

pytestmark = pytest.mark.backend

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 6, 8, 3), np.uint8)
PETS = Dataset(IMAGES, np.arange(12) % 3, ("cat", "dog", "eel"), "pets")
FLOATS = np.random.default_rng(1).normal(size=(12, 4, 4, 5)).astype(np.float32)
NAMED = {"class_names": PETS.class_names}


def torch_holders() -> dict[str, tuple[Any, dict[str, Any]]]:
    import torch
    from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset
    from torch.utils.data import Dataset as MapDataset

    images, labels = torch.from_numpy(IMAGES), torch.from_numpy(PETS.labels)
    first = images.permute(0, 3, 1, 2)

    class Pets(MapDataset):
        classes = PETS.class_names

        def __len__(self) -> int:
            return 12

        def __getitem__(self, k: int) -> tuple[torch.Tensor, int]:
            return first[k], k % 3

    class Flow(IterableDataset):
        def __iter__(self):
            return ((first[k], k % 3) for k in range(12))

        def __len__(self) -> int:  # an iterable may have a length, and no index all the same
            return 12

    return {
        "a tensor": (images, {"labels": labels, **NAMED}),
        "a view with the channels first": (first, {"labels": labels, **NAMED}),
        "a pair of tensors": ((first, labels), NAMED),
        "TensorDataset": (TensorDataset(first, labels), NAMED),
        "Dataset": (Pets(), {}),
        "Subset": (Subset(Pets(), range(12)), {}),
        "IterableDataset": (Flow(), NAMED),
        "DataLoader": (DataLoader(Pets(), batch_size=5), {}),
        "DataLoader without batches": (DataLoader(Pets(), batch_size=None), {}),
    }


def tf_holders() -> dict[str, tuple[Any, dict[str, Any]]]:
    import tensorflow as tf

    names = [PETS.class_names[k] for k in PETS.labels]
    slices = tf.data.Dataset.from_tensor_slices((IMAGES, PETS.labels))
    dicts = tf.data.Dataset.from_tensor_slices({"image": IMAGES, "label": names})
    return {
        "a tensor": (tf.constant(IMAGES), {"labels": tf.constant(PETS.labels), **NAMED}),
        "a pair of tensors": ((tf.constant(IMAGES), tf.constant(names)), {}),
        "tf.data": (slices, NAMED),
        "batches": (slices.batch(5), NAMED),
        "batches of images alone": (tf.data.Dataset.from_tensor_slices(IMAGES).batch(5), {"labels": names}),
        "dicts with texts": (dicts, {}),
        "an endless one": (slices.repeat(), {"count": 12, **NAMED}),
        "a generator": (
            tf.data.Dataset.from_generator(
                lambda: zip(IMAGES, PETS.labels, strict=True),
                output_signature=(tf.TensorSpec((6, 8, 3), tf.uint8), tf.TensorSpec((), tf.int32)),
            ),
            NAMED,
        ),
    }


def holders(backend_name: str) -> dict[str, tuple[Any, dict[str, Any]]]:
    return {"torch": torch_holders, "tf": tf_holders}[backend_name]()


def test_each_holder_of_the_framework_has_the_content_of_the_array(backend_name):
    ours = Loader(PETS, seed=3, flip=True).batch(7, 9)
    for name, (data, options) in holders(backend_name).items():
        found = load_dataset(data, **options)
        assert found.sha256 == PETS.sha256, name
        theirs = Loader(found, seed=3, flip=True).batch(7, 9)
        np.testing.assert_array_equal(ours.pixels, theirs.pixels)
        np.testing.assert_array_equal(ours.labels, theirs.labels)


def test_floats_keep_every_bit_and_small_floats_become_float32(backend_name):
    if backend_name == "torch":
        import torch

        tensor = torch.from_numpy(FLOATS).requires_grad_()
        small = tensor.to(torch.bfloat16)
    else:
        import tensorflow as tf

        tensor = tf.Variable(FLOATS)
        small = tf.cast(tensor, tf.bfloat16)
    np.testing.assert_array_equal(load_dataset(tensor).images, FLOATS)
    rounded = load_dataset(small).images
    assert rounded.dtype == np.float32
    np.testing.assert_allclose(rounded, FLOATS, rtol=2.0**-8)


def test_what_has_no_end_or_another_order_next_time_is_said(backend_name):
    if backend_name == "torch":
        from torch.utils.data import DataLoader, TensorDataset

        pairs = torch_holders()["TensorDataset"][0]
        assert isinstance(pairs, TensorDataset)
        assert not load_dataset(pairs).reading.lines
        shuffled = load_dataset(DataLoader(pairs, batch_size=4, shuffle=True))
        assert "it was read once, 12 items" in shuffled.reading.lines[0]
    else:
        endless = tf_holders()["an endless one"][0]
        with pytest.raises(DuetError, match="it has no end; say how many items to take"):
            load_dataset(endless)
        assert "their hash tells" not in " ".join(load_dataset(tf_holders()["tf.data"][0]).reading.lines)
