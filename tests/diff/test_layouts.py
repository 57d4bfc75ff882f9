"""Layouts: two arrays of the same numbers are found to be so, in whatever order, and no others are."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion_core.parity.diff import layouts
from diffusion_core.parity.diff.layouts import Lookup, close, find_layout, find_permutation, typical_size

IMAGE = np.random.default_rng(0).standard_normal((2, 12, 4, 4))
RELU = np.maximum(IMAGE, 0)

REORDERED = {
    "the same": lambda x: x,
    "channels last": lambda x: x.transpose(0, 2, 3, 1),
    "tokens": lambda x: x.reshape(2, 12, 16).transpose(0, 2, 1),
    "tokens of the batch": lambda x: x.transpose(0, 2, 3, 1).reshape(32, 12),
    "heads": lambda x: x.reshape(2, 3, 4, 16).transpose(0, 1, 3, 2),
    "heads of the batch": lambda x: x.reshape(2, 3, 4, 16).transpose(0, 1, 3, 2).reshape(6, 16, 4),
    "heads inside": lambda x: x.reshape(2, 4, 3, 16).transpose(0, 2, 3, 1).reshape(6, 16, 4),
    "groups": lambda x: x.transpose(0, 2, 3, 1).reshape(2, 4, 4, 4, 3),
    "flat, channels last": lambda x: x.transpose(0, 2, 3, 1).reshape(2, -1),
    "axes of length 1": lambda x: x.transpose(0, 2, 3, 1)[:, None, :, :, :, None],
    "patches": lambda x: x.reshape(2, 12, 2, 2, 2, 2).transpose(0, 2, 4, 3, 5, 1).reshape(2, 4, 48),
}


@pytest.mark.parametrize("values", [IMAGE, RELU], ids=["normal", "relu"])
@pytest.mark.parametrize("reorder", REORDERED.values(), ids=list(REORDERED))
def test_an_array_in_another_order_is_found_and_put_back(reorder, values):
    other = np.array(reorder(values)) * (1 + 1e-15)
    layout = find_layout(values, other, 1e-13)
    assert layout is not None
    # A layout found on one array leads another to the same place.
    place = np.arange(values.size, dtype=float).reshape(values.shape)
    assert np.array_equal(layout.to_b(place), reorder(place))
    assert np.array_equal(layout.to_a(reorder(place)), place)
    assert np.array_equal(layout.reverse.to_b(reorder(place)), place)
    assert layout.describe()


@pytest.mark.parametrize("reorder", REORDERED.values(), ids=list(REORDERED))
def test_one_other_number_is_no_layout(reorder):
    other = np.ascontiguousarray(reorder(IMAGE)).copy()
    other.reshape(-1)[77] += 1e-9
    assert find_layout(IMAGE, other, 1e-13) is None


def test_a_repeated_array_is_found_and_its_copies_are_made_again():
    bias = np.random.default_rng(1).standard_normal((2, 12))
    image = np.broadcast_to(bias[:, None, None, :], (2, 4, 4, 12))
    layout = find_layout(bias, image, 1e-13)
    assert layout is not None
    assert np.array_equal(layout.to_b(bias), image)
    assert np.array_equal(layout.to_a(image), bias)
    back = find_layout(image, bias, 1e-13)
    assert back is not None
    assert np.array_equal(back.to_b(image), bias)


def test_equal_numbers_keep_their_order():
    ones = np.ones((2, 3, 4, 4))
    layout = find_layout(ones, np.ones((2, 4, 4, 3)), 0)
    place = np.arange(96.0).reshape(ones.shape)
    assert np.array_equal(layout.to_b(place), place.transpose(0, 2, 3, 1))


def test_a_mask_does_not_hide_the_scores_beside_it():
    scores = np.random.default_rng(2).standard_normal((4, 8))
    scores[:, 5:] = -1e9
    assert find_layout(scores, np.where(scores > -5, scores + 1e-6, scores), 1e-12) is None
    assert typical_size(scores) < 10


def test_numbers_that_are_not_finite_are_equal_to_themselves_only():
    a = np.array([np.nan, np.inf, -np.inf, 1.0])
    assert close(a, a.copy(), 1e-12)
    assert not close(a, np.array([np.nan, np.inf, np.inf, 1.0]), 1e-12)
    assert not close(a, np.array([0.0, np.inf, -np.inf, 1.0]), 1e-12)
    assert not close(a, np.array([np.nan, 2.0, -np.inf, 1.0]), 1e-12)


def test_integers_are_compared_exactly():
    a = np.arange(10)
    assert find_layout(a, a + (a == 9), 0.5) is None
    assert find_layout(a, a.astype(float), 0.0) is not None


def test_permuted_channels_are_no_layout_but_a_permutation():
    order = np.random.default_rng(3).permutation(12)
    other = IMAGE[:, order].transpose(0, 2, 3, 1)
    assert find_layout(IMAGE, other, 1e-13) is None
    layout, axis, found = find_permutation(IMAGE, other, 1e-13)
    assert axis == 3
    assert np.array_equal(found, order)
    assert np.array_equal(layout.to_b(IMAGE).take(found, axis), other)


def test_the_lookup_returns_what_holds_the_same_numbers():
    rng = np.random.default_rng(4)
    arrays = {i: rng.standard_normal((3, int(n))) for i, n in enumerate(rng.integers(1, 30, 200))}
    lookup = Lookup()
    for key, array in arrays.items():
        lookup.add(key, array)
    for key, array in arrays.items():
        wanted = array.T * (1 + 1e-15 * rng.standard_normal(array.T.shape))
        assert lookup.find(wanted, 1e-13) == [key]
        assert key in lookup.find(np.repeat(wanted[None], 5, 0), 1e-13)
    assert len(lookup) == 200


def test_orders_are_not_tried_where_the_numbers_differ(monkeypatch):
    tried = []
    monkeypatch.setattr(layouts, "_search", lambda *args: tried.append(args) or iter(()))
    a = np.random.default_rng(0).normal(size=(4, 6, 8))
    b = np.sort(a, axis=None).reshape(4, 6, 8)
    assert find_layout(a, b, 1e-12) is None and len(tried) == 1
    b[1, 1, 1] += 1e-6
    assert find_layout(a, b, 1e-12) is None and len(tried) == 1
    b = np.where(np.arange(b.size).reshape(b.shape) == 3, np.inf, b)
    assert find_layout(a, b, 1e-12) is None
