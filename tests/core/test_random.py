"""Streams: known answers, independence of order and batch, and their distributions."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_core.common.random import Stream, philox4x32, random_words

SEEDS = st.integers(0, 2**63)
NAMES = st.text(st.characters(min_codepoint=97, max_codepoint=122), min_size=1, max_size=8)
INDICES = st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=8)


def parsed(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


# The known answers of the authors' Random123 library, kat_vectors, philox4x32 10.
KNOWN = {
    "zeros": ("0 0 0 0", "0 0", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    "ones": ("ffffffff " * 4, "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    "pi": ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
}


@pytest.mark.parametrize("case", KNOWN)
def test_philox_returns_the_known_answers(case):
    counter, key, answer = (parsed(text) for text in KNOWN[case])
    got = philox4x32(tuple(np.array([c], np.uint64) for c in counter), tuple(key))
    assert [int(word[0]) for word in got] == answer


def test_first_words_of_a_stream_never_change():
    # Checkpoints, initial weights and published images all depend on these.
    assert Stream(0, "train/noise").bits([0], 5).tolist() == [
        [2712271109, 2949622306, 911257537, 4134042877, 2158409040]
    ]
    assert Stream(20, "weights/conv_in.weight").bits([2**33 + 1], 4, row=3).tolist() == [
        [2370917512, 2588626589, 2289512919, 2464638069]
    ]
    np.testing.assert_allclose(
        Stream(0, "train/noise").normal([0], (4,))[0],
        [-0.3710214661753495, -0.884114410106264, 1.7123225278254126, -0.4107297053079413],
        rtol=4e-16,
        atol=4e-16,
    )


@given(SEEDS, NAMES, st.integers(0, 2**63 - 1), st.integers(0, 2**32 - 1), st.integers(1, 9))
def test_bits_are_philox_of_the_documented_counter_and_key(seed, name, index, row, n):
    digest = hashlib.blake2b(f"duet:{seed}:{name}".encode(), digest_size=8).digest()
    key = [int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")]
    expected = []
    for block in range(math.ceil(n / 4)):
        expected += python_philox([block, row, index & 0xFFFFFFFF, index >> 32], key)
    assert Stream(seed, name).bits([index], n, row)[0].tolist() == expected[:n]


def python_philox(counter: list[int], key: list[int]) -> list[int]:
    (a, b, c, d), (k, m) = counter, key
    for _ in range(10):
        x, y = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (y >> 32) ^ b ^ k, y % 2**32, (x >> 32) ^ d ^ m, x % 2**32
        k, m = (k + 0x9E3779B9) % 2**32, (m + 0xBB67AE85) % 2**32
    return [a, b, c, d]


WORDS = st.integers(0, 2**32 - 1)


@given(WORDS, WORDS, st.integers(0, 2**64 - 1), WORDS, st.integers(1, 9))
def test_random_words_are_philox_for_any_key(low, high, index, row, n):
    """A backend must draw the same words from the key and the positions of a batch."""
    expected = []
    for block in range(math.ceil(n / 4)):
        expected += python_philox([block, row, index & 0xFFFFFFFF, index >> 32], [low, high])
    got = random_words((low, high), [index], n, row)
    assert got.dtype == np.uint32 and got[0].tolist() == expected[:n]


def test_random_words_of_the_zero_key_are_a_known_answer():
    assert random_words((0, 0), [0], 4)[0].tolist() == parsed(KNOWN["zeros"][2])


@given(INDICES, st.integers(0, 1000), st.randoms(use_true_random=False))
def test_a_value_depends_only_on_its_index_and_row(indices, row, random):
    stream = Stream(7, "law")
    together = stream.normal(indices, (3, 2), row)
    alone = [stream.normal([i], (3, 2), row)[0] for i in indices]
    np.testing.assert_array_equal(together, alone)
    order = random.sample(range(len(indices)), len(indices))
    np.testing.assert_array_equal(stream.normal([indices[i] for i in order], (3, 2), row), together[order])


@given(INDICES, st.integers(0, 1000))
def test_each_item_may_have_its_own_row(indices, first):
    rows = first + 3 * np.arange(len(indices))
    alone = [Stream(7, "law").normal([i], (3, 2), row)[0] for i, row in zip(indices, rows.tolist(), strict=True)]
    np.testing.assert_array_equal(Stream(7, "law").normal(indices, (3, 2), rows), alone)


@given(st.integers(0, 2**40), st.integers(1, 30), st.integers(1, 30))
def test_a_shorter_request_is_the_start_of_a_longer_one(index, n, more):
    stream = Stream(1, "prefix")
    np.testing.assert_array_equal(stream.bits([index], n), stream.bits([index], n + more)[:, :n])
    np.testing.assert_array_equal(stream.normal([index], (n,)), stream.normal([index], (n + more,))[:, :n])


@pytest.mark.parametrize(
    "other",
    [Stream(0, "b").bits([0], 40_000), Stream(1, "a").bits([0], 40_000), Stream(0, "a").bits([1], 40_000),
     Stream(0, "a").bits([0], 40_000, row=1), Stream(0, "a").bits([2**32], 40_000)],
    ids=["name", "seed", "index", "row", "high word of the index"],
)  # fmt: skip
def test_streams_with_another_name_seed_index_or_row_are_independent(other):
    mine = Stream(0, "a").bits([0], 40_000)
    assert np.count_nonzero(mine == other) <= 1
    correlation = np.corrcoef(mine.ravel(), other.ravel())[0, 1]
    assert abs(correlation) < 4 / math.sqrt(mine.size)
    differing = np.unpackbits((mine ^ other).view(np.uint8)).mean()
    assert abs(differing - 0.5) < 4 * 0.5 / math.sqrt(32 * mine.size)


def test_empty_requests_return_empty_arrays():
    stream = Stream(0, "empty")
    assert stream.bits([], 5).shape == (0, 5) and stream.bits([1, 2], 0).shape == (2, 0)
    assert stream.normal([], (3, 2)).shape == (0, 3, 2) and stream.normal([1], (0, 2)).shape == (1, 0, 2)
    assert stream.integers([], 7).shape == stream.permutation(0).shape == (0,)


def kolmogorov(values: np.ndarray, distribution) -> float:
    """sqrt(n) times the largest distance of the empirical distribution from the true one."""
    values = np.sort(values.ravel())
    n = len(values)
    exact = distribution(values)
    return math.sqrt(n) * max(np.max(np.arange(1, n + 1) / n - exact), np.max(exact - np.arange(n) / n))


# A Kolmogorov-Smirnov statistic exceeds 1.95 once in a thousand streams.
def test_uniforms_are_uniform():
    u = Stream(3, "uniform").uniform(np.arange(500), 200)
    assert u.min() > 0 and u.max() < 1
    assert kolmogorov(u, lambda x: x) < 1.95
    assert abs(u.mean() - 0.5) < 4 * math.sqrt(1 / 12 / u.size)


def test_normals_are_normal():
    z = Stream(3, "normal").normal(np.arange(500), (100, 2))
    n = z.size
    assert kolmogorov(z, np.vectorize(lambda x: 0.5 * math.erfc(-x / math.sqrt(2)))) < 1.95
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(np.mean(z**power) - moment) < 4 * math.sqrt(variance / n)
    # The two of a Box-Muller pair, and neighbours, are independent.
    assert abs(np.mean(z[..., 0] * z[..., 1])) < 4 / math.sqrt(n / 2)
    assert np.abs(z).max() < math.sqrt(66 * math.log(2))


def test_normals_are_computed_in_float64_and_cast_once():
    wide, narrow = (Stream(3, "cast").normal([5], (7,), dtype=dtype) for dtype in (np.float64, np.float32))
    assert narrow.dtype == np.float32
    np.testing.assert_array_equal(narrow, wide.astype(np.float32))


@given(st.integers(1, 2**31), st.integers(0, 2**40))
def test_integers_are_below_their_bound(high, index):
    value = int(Stream(2, "integers").integers([index], high)[0])
    assert value == int(Stream(2, "integers").bits([index], 1)[0, 0]) * high >> 32
    assert 0 <= value < high


def test_integers_are_uniform():
    counts = np.bincount(Stream(2, "integers").integers(np.arange(100_000), 10), minlength=10)
    assert np.sum((counts - 10_000) ** 2 / 10_000) < 27.9  # chi square of 9 degrees, once in a thousand


@given(st.integers(1, 200), st.integers(0, 50))
def test_a_permutation_contains_every_index_once(n, row):
    order = Stream(4, "order").permutation(n, row)
    np.testing.assert_array_equal(np.sort(order), np.arange(n))


def test_permutations_differ_by_row_and_favour_no_position():
    orders = np.array([Stream(4, "order").permutation(6, row) for row in range(6000)])
    assert not np.array_equal(orders[0], orders[1])
    for position in range(6):
        counts = np.bincount(orders[:, position], minlength=6)
        assert np.sum((counts - 1000) ** 2 / 1000) < 20.5  # chi square of 5 degrees, once in a thousand
