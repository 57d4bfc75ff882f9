"""Arrays, iterables and data sets of other libraries as data sets: one content, whatever holds it."""

from __future__ import annotations

import io
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from diffusion_core.common.errors import DuetError
from diffusion_core.data import Dataset, Loader, load_dataset
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks import PlainSpec
from diffusion_core.training.loop import make_batch
from diffusion_core.training.objective import Objective
from diffusion_core.training.validation import Validation

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 6, 8, 3), np.uint8)
NAMES = ["cat", "dog", "eel"] * 4
PETS = Dataset(IMAGES, np.arange(12) % 3, ("cat", "dog", "eel"), "pets")
FLOATS = np.random.default_rng(1).normal(size=(12, 4, 4, 5))


class Indexed:
    """As torch.utils.data.Dataset: an index and a length, and no iteration of its own."""

    classes = ("cat", "dog", "eel")

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, k: int) -> tuple[Image.Image, int]:
        return Image.fromarray(IMAGES[k]), k % 3


class Stream:
    """As tf.data.Dataset."""

    def __init__(self, batch: int | None, size: int = 12) -> None:
        self.batch, self.size = batch, size

    def cardinality(self) -> np.int64:
        return np.int64(self.size)

    def as_numpy_iterator(self):
        texts = np.array([name.encode() for name in NAMES])
        if self.batch is None:
            yield from zip(IMAGES, texts, strict=True)
        else:
            for k in range(0, 12, self.batch):
                yield IMAGES[k : k + self.batch], texts[k : k + self.batch]


def png(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "png")
    return out.getvalue()


HOLDERS = {
    "an array": lambda: (IMAGES, {"labels": NAMES}),
    "an array with the channels first": lambda: (IMAGES.transpose(0, 3, 1, 2), {"labels": NAMES}),
    "ids with names": lambda: (IMAGES, {"labels": PETS.labels, "class_names": PETS.class_names}),
    "ids with names by id": lambda: (
        IMAGES,
        {"labels": PETS.labels, "class_names": {2: "eel", 0: "cat", 1: "dog"}},
    ),
    "one-hot rows with names": lambda: (IMAGES, {"labels": np.eye(3)[PETS.labels], "class_names": PETS.class_names}),
    "a pair": lambda: ((IMAGES, NAMES), {}),
    "a dict": lambda: ({"image": IMAGES, "label": NAMES}, {}),
    "a dict with names of its own": lambda: (
        {"photo": IMAGES, "kind": NAMES, "id": np.arange(12)},
        {"images": "photo", "labels": "kind"},
    ),
    "a list of pairs": lambda: (list(zip(IMAGES, NAMES, strict=True)), {}),
    "a list of dicts": lambda: ([{"image": i, "label": n} for i, n in zip(IMAGES, NAMES, strict=True)], {}),
    "a generator": lambda: (((i, n) for i, n in zip(IMAGES, NAMES, strict=True)), {}),
    "an endless iterable": lambda: (itertools.cycle(zip(IMAGES, NAMES, strict=True)), {"count": 12}),
    "files as bytes": lambda: ([(png(i), n) for i, n in zip(IMAGES, NAMES, strict=True)], {}),
    "PIL images by index": lambda: (Indexed(), {}),
    "items of tf.data": lambda: (Stream(None), {}),
    "batches of tf.data": lambda: (Stream(5), {}),
    "a data set": lambda: (PETS, {}),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_one_content_has_one_hash_and_one_order_whatever_holds_it(holder):
    data, options = HOLDERS[holder]()
    found = load_dataset(data, **options)
    assert found.sha256 == PETS.sha256
    ours, theirs = (Loader(one, seed=3, flip=True).batch(7, 9) for one in (PETS, found))
    np.testing.assert_array_equal(ours.pixels, theirs.pixels)
    np.testing.assert_array_equal(ours.labels, theirs.labels)


def test_what_an_iterable_cannot_promise_is_said_and_what_has_a_length_promises_it():
    generator = load_dataset(image for image in IMAGES)
    (line,) = generator.reading.lines
    assert "read once, 12 items in" in line and "their hash tells" in line
    assert not load_dataset(list(IMAGES)).reading.lines and not load_dataset(Indexed()).reading.lines
    loader = SimpleNamespace(transform=np.flip)
    with pytest.raises(DuetError, match="must be arrays, an iterable of images, or have an index and a length"):
        load_dataset(loader)


def test_labels_keep_their_numbers_where_the_number_of_classes_is_given():
    assert load_dataset(IMAGES, labels=[1] * 12).class_names == ("class 1",)
    kept = load_dataset(IMAGES, labels=[1] * 12, num_classes=3)
    assert kept.labels.tolist() == [1] * 12 and kept.empty_classes == ("class 0", "class 2")


def test_the_first_items_of_a_holder_are_its_count():
    for data in (IMAGES, (IMAGES, NAMES), {"image": IMAGES, "label": NAMES}, list(IMAGES), iter(IMAGES), Stream(5)):
        found = load_dataset(data, count=7)
        np.testing.assert_array_equal(found.images, IMAGES[:7])


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (Stream(None, -1), {}, "it has no end; say how many items to take, as in count="),
        (iter(IMAGES), {"count": 13}, "count: 13 was given, but generator|count: 13 was given, but .* ends after 12"),
        (iter(IMAGES), {"max_bytes": 300}, "3 items are more than the .* take the first with count=N"),
        (((IMAGES, NAMES), (IMAGES, NAMES)), {}, r"2 pairs .* give one of them, as data\[0\]"),
        ([IMAGES[0], IMAGES[1, :5]], {}, r"image 0 has shape \(6, 8, 3\), image 1 has \(5, 8, 3\)"),
        ([(IMAGES[0], 1), (IMAGES[1],)], {}, "item 1 has no label"),
        ([1, 2], {}, "an item is int; it must be an image"),
        ([], {}, "list: it yields no items"),
        (7, {}, "7 was given; it must be the name of a data set, a path, arrays"),
        (lambda: IMAGES, {}, "give what it returns"),
        ({"a": IMAGES, "b": NAMES}, {}, "images: the keys are a, b; name that of the images, as in images='a'"),
        ({"image": IMAGES, "label": NAMES, "fine_label": NAMES}, {}, "labels: the keys are .* name that of the labels"),
        ({"image": IMAGES}, {"labels": "kind"}, "labels: 'kind' was given; the keys are image"),
        ([(np.zeros((12, 8, 3), np.uint8), np.zeros(12))], {}, "batched=True or batched=False"),
        ("/no/such/pets.zip", {}, "is no data set and no file or folder that exists"),
        ("digts", {}, "Did you mean 'digits'"),
        ("huggingface", {}, "Did you mean 'hf_folder'"),
        ("edm", {}, "Did you mean 'zip'"),
        (IMAGES, {"labels": [0] * 12, "class_names": {1: "a"}}, "the ids must be 0, 1, ... without gaps"),
        (IMAGES, {"labels": [0] * 12, "class_names": "cat"}, "it must be a list of names"),
        (np.ma.masked_greater(IMAGES, 100), {}, "a masked array was given.* as in array.filled"),
        ([(i, 0, "a name") for i in IMAGES], {}, "third value of an item is read as its conditions.*a str was found"),
        (IMAGES, {"labels": [0.5] * 12}, "numbers that describe an image are conditions"),
        (PETS, {"labels": NAMES}, "a data set has its labels and values already"),
        (IMAGES, {"lables": NAMES}, "lables.*labels"),
        (IMAGES, {"labels": NAMES[:5]}, "one per image"),
        (IMAGES, {"labels": ["cat"] * 11 + ["owl"], "class_names": ["cat", "dog"]}, "'owl' was given, which is not"),
        (IMAGES, {"labels": [0] * 11 + [2], "class_names": ["cat", "dog"]}, "num_classes: 2 was given, but .* label 2"),
        (IMAGES, {"value_range": (0, 1)}, "is uint8, which is 0 to 255"),
        (IMAGES.astype(np.int64), {}, r"give images\.astype\(np\.uint8\), or set data\.options\.value_range"),
        (IMAGES > 99, {}, r"array of bool .* images\.astype\(np\.uint8\) \* 255"),
        (np.full((3, 8, 8, 3), np.nan), {}, "NaN or infinite"),
        (np.zeros((0, 8, 8, 3), np.uint8), {}, "the array is empty"),
        (np.zeros(12), {}, "with two to five axes"),
        (IMAGES / 255, {}, r"value_range=\[0, 1\] for pixels, or data\.options\.value_range=\[-1, 1\] to take them as"),
        (IMAGES * 1.0, {}, r"value_range=\[0, 255\] for pixels"),
        # Two readings each.
        (np.zeros((9, 3, 3, 3)), {}, "channels_last for items of 3 x 3 with 3 channels, or channels_first for items"),
        (np.zeros((9, 8, 8, 8)), {}, "channels_last for items of 8 x 8 with 8 channels, or channels_first for items"),
        (np.zeros((9, 28, 28)), {}, "grey for 9 grey images of 28 x 28; channels_last for sequences of length 28"),
        (IMAGES[0], {}, r"it looks like one image, which is given as images\[None\]"),
        (np.zeros((9, 8, 8, 4), np.uint8), {}, r"of RGBA, give images\[\.\.\., :3\]; four channels"),
        (IMAGES, {"layout": "nchw"}, "it must be one of channels_last, channels_first, grey"),
        (IMAGES, {"layout": "grey"}, r"it must be \(N, H, W\)"),
    ],
)  # fmt: skip
def test_what_has_no_reading_or_two_is_refused_with_what_to_give(data, options, message):
    with pytest.raises(DuetError, match=message):
        load_dataset(data, **options)


@pytest.mark.parametrize(
    ("shape", "layout", "stored"),
    [
        ((9, 3, 32, 48), None, (9, 32, 48, 3)),
        ((9, 1, 28, 28), None, (9, 28, 28, 1)),
        ((9, 28, 28, 1), None, (9, 28, 28, 1)),
        ((9, 1, 1, 3), None, (9, 1, 1, 3)),
        ((9, 4, 8, 8), None, (9, 8, 8, 4)),
        ((9, 8, 8, 4), None, (9, 8, 8, 4)),
        ((9, 8, 8, 8), "channels_first", (9, 8, 8, 8)),
        ((9, 16, 16, 16, 1), None, (9, 16, 16, 16, 1)),
        ((9, 2, 16, 16, 16), None, (9, 16, 16, 16, 2)),
        ((9, 7), None, (9, 7)),
        ((9, 7, 5), "channels_last", (9, 7, 5)),
        ((9, 7, 5), "channels_first", (9, 5, 7)),
        ((9, 7, 5), "grey", (9, 7, 5, 1)),
    ],
)
def test_axes_are_decided_by_the_shape_or_by_the_layout(shape, layout, stored):
    values = np.random.default_rng(2).normal(size=shape)
    data = load_dataset(values, layout=layout)
    assert data.images.shape == stored
    if values.ndim > 2 and stored != shape and layout != "grey":
        np.testing.assert_array_equal(data.images, np.moveaxis(values, 1, -1))


def test_floats_reach_the_network_unrounded():
    own = load_dataset(FLOATS)
    batch = Loader(own, seed=0, dtype=np.float64).batch(0, 12)
    np.testing.assert_array_equal(batch.pixels, FLOATS[batch.indices])
    *_, line = own.reading.lines
    assert "are network values, taken as they are" in line
    # A range of their own is mapped to that of the network, exactly at its ends.
    pixels = np.linspace(0, 1, 12 * 16).reshape(12, 4, 4, 1).astype(np.float32)
    mapped = Loader(load_dataset(pixels, value_range=(0, 1)), seed=0, value_range=(-1, 3), dtype=np.float64)
    np.testing.assert_allclose(mapped.batch(0, 12).pixels, pixels[batch.indices].astype(float) * 4 - 1, rtol=1e-15)
    same = Loader(load_dataset(pixels, value_range=(-1, 1)), seed=0).batch(0, 12)
    np.testing.assert_array_equal(same.pixels, pixels[batch.indices])
    # The same pixels as bytes and as floats differ by the rounding of float32 alone.
    floats = Loader(load_dataset((IMAGES / 255).astype(np.float32), value_range=(0, 1)), seed=0, flip=True)
    np.testing.assert_allclose(floats.batch(5, 9).pixels, Loader(PETS, 0, flip=True).batch(5, 9).pixels, atol=2e-7)


def test_hash_of_floats_and_conditions_depends_on_everything_that_a_network_sees():
    base = {"labels": NAMES, "conditions": np.arange(24.0).reshape(12, 2)}
    changed = [
        load_dataset(FLOATS, **base),
        load_dataset(FLOATS.astype(np.float32), **base),
        load_dataset(FLOATS, **base, value_range=(-5, 5)),
        load_dataset(FLOATS, **base, condition_names=["x", "y"]),
        load_dataset(FLOATS, labels=NAMES),
        load_dataset(FLOATS, labels=NAMES, conditions=base["conditions"] + 1),
        load_dataset(FLOATS[::-1], **base),
    ]
    assert len({data.sha256 for data in changed}) == len(changed)
    assert load_dataset(np.asfortranarray(FLOATS), **base).sha256 == changed[0].sha256
    assert load_dataset(FLOATS.astype(">f8"), **base).sha256 == changed[0].sha256


@pytest.mark.parametrize(
    ("labels", "options", "names"),
    [
        ([["a", "b"], ["a"], [], ["c"]] * 3, {}, ("a", "b", "c")),
        ([[0, 1], [0], [], [2]] * 3, {"class_names": ["a", "b", "c"]}, ("a", "b", "c")),
        (np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 1]] * 3), {"class_names": ["a", "b", "c"]}, ("a", "b", "c")),
        ([[0, 7], [0], [], [9]] * 3, {}, ("label 0", "label 7", "label 9")),
    ],
)
def test_several_labels_are_a_condition_of_zeros_and_ones(labels, options, names):
    data = load_dataset(IMAGES, labels=labels, **options)
    assert data.class_names == ("all",) and data.condition_names == names
    np.testing.assert_array_equal(data.conditions, [[1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 1]] * 3)
    assert "several labels (0 to 2 of 3)" in data.reading.lines[0]


def test_conditions_follow_their_images():
    vectors = np.arange(24.0).reshape(12, 2)
    for data in (
        load_dataset((IMAGES, NAMES, vectors)),
        load_dataset(zip(IMAGES, NAMES, vectors, strict=True)),
        load_dataset({"image": IMAGES, "label": NAMES, "conditions": vectors}),
    ):
        np.testing.assert_array_equal(data.conditions, vectors)
        np.testing.assert_array_equal(data.select([5, 2]).conditions, vectors[[5, 2]])
        np.testing.assert_array_equal(data.select_classes(["dog"]).conditions, vectors[1::3])
        batch = Loader(data, seed=1).batch(3, 20)
        np.testing.assert_array_equal(batch.features, vectors[batch.indices])
    with pytest.raises(DuetError, match="labels that are conditions; give one of them"):
        load_dataset(IMAGES, labels=vectors, conditions=vectors)


def test_a_network_of_so_many_features_is_told_the_conditions_in_training_and_validation():
    data = load_dataset(FLOATS[..., :1], conditions=np.arange(24.0).reshape(12, 2))
    model = DiffusionModel(PlainSpec(4, 1, 1, channels=(4,), bottleneck=4), "cosine", "v")
    plain = Objective.for_model(model)
    told = Objective(plain.process, 0, features=2)
    batch = make_batch(Loader(data, seed=0), told, 0, 5)
    order = Loader(data, seed=0).batch(0, 5).indices
    np.testing.assert_array_equal(batch.features, data.conditions[order])
    np.testing.assert_array_equal(batch.images, FLOATS[order][..., :1].astype(np.float32))
    assert make_batch(Loader(data, seed=0), plain, 0, 5).features.shape == (5, 0)
    validation = Validation(model, told, data, count=10, batch=5)
    np.testing.assert_array_equal(validation._batch(5).features, data.conditions[validation.indices[5:]])
    wrong = Objective(plain.process, 0, features=3)
    with pytest.raises(DuetError, match="the network takes shape"):
        make_batch(Loader(data, seed=0), wrong, 0, 5)


def test_flips_need_a_left_and_a_right_and_edm_augmentation_needs_images():
    vectors = load_dataset(FLOATS.reshape(12, -1))
    with pytest.raises(DuetError, match=r"data\.flip: true was given, but .* has no left and right"):
        Loader(vectors, seed=0, flip=True)
    with pytest.raises(DuetError, match=r"data\.augment: 0\.1 was given, but .* it needs \(height, width, channels\)"):
        Loader(vectors, seed=0, augment=0.1)
    volumes = load_dataset(np.random.default_rng(0).normal(size=(4, 4, 5, 6, 1)))
    batch = Loader(volumes, seed=0, flip=True, dtype=np.float64).batch(0, 40)
    plain = volumes.images[batch.indices]
    mirrored = np.array([np.array_equal(a, b[:, :, ::-1]) for a, b in zip(batch.pixels, plain, strict=True)])
    same = np.array([np.array_equal(a, b) for a, b in zip(batch.pixels, plain, strict=True)])
    assert (mirrored ^ same).all() and 0 < mirrored.sum() < 40
