"""The timesteps that steps and spacing select."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_core.common.errors import DuetError
from diffusion_core.sampling.spacing import SPACINGS, table_timesteps

EXPECTED = {
    (1000, 10, "leading"): [900, 800, 700, 600, 500, 400, 300, 200, 100, 0],
    (1000, 10, "linspace"): [999, 888, 777, 666, 555, 444, 333, 222, 111, 0],
    (1000, 10, "trailing"): [999, 899, 799, 699, 599, 499, 399, 299, 199, 99],
    (1000, 7, "leading"): [852, 710, 568, 426, 284, 142, 0],
    (1000, 7, "linspace"): [999, 832, 666, 500, 333, 166, 0],  # 499.5 and 832.5, 166.5 are rounded to the even number
    (1000, 7, "trailing"): [999, 856, 713, 570, 428, 285, 142],
    (10, 3, "leading"): [6, 3, 0],
    (10, 3, "linspace"): [9, 4, 0],
    (10, 3, "trailing"): [9, 6, 2],
    (1000, 1, "leading"): [0],
    (1000, 1, "linspace"): [999],
    (1000, 1, "trailing"): [999],
}


@pytest.mark.parametrize("case", EXPECTED, ids=str)
def test_timesteps_are_the_published_ones(case):
    assert table_timesteps(*case).tolist() == EXPECTED[case]


@pytest.mark.parametrize("spacing", SPACINGS)
@given(st.integers(1, 2000).flatmap(lambda T: st.tuples(st.just(T), st.integers(1, T))))
def test_timesteps_decrease_within_the_table(spacing, case):
    T, steps = case
    t = table_timesteps(T, steps, spacing)
    assert t.dtype == np.int64 and t.shape == (steps,)
    assert t[0] <= T - 1 and t[-1] >= 0 and np.all(np.diff(t) < 0)
    if spacing in ("linspace", "trailing"):
        assert t[0] == T - 1
    if spacing == "leading" or (spacing == "linspace" and steps > 1):
        assert t[-1] == 0
    if steps == T:
        assert t.tolist() == list(range(T))[::-1]


# Forms of steps and spacing that determine each other


def published(T: int, counts: list[int]) -> list[int]:
    """Return timesteps by guided-diffusion's rule: equal sections, the first T mod n of them larger by one; in each,
    from its first timestep in steps of (size - 1)/(count - 1), summed and rounded.
    """
    levels, start = [], 0
    for i, count in enumerate(counts):
        size = T // len(counts) + (1 if i < T % len(counts) else 0)
        stride, at = (size - 1) / (count - 1) if count > 1 else 1.0, 0.0
        for _ in range(count):
            levels.append(start + round(at))
            at += stride
        start += size
    return levels[::-1]


SECTIONS = {
    (300, (3, 2, 1)): [200, 199, 100, 99, 50, 0],  # 49.5 is rounded to the even number
    (10, (2, 2, 2)): [9, 7, 6, 4, 3, 0],  # sections of 4, 3 and 3 levels
    (10, (0, 0, 2)): [9, 7],
    (10, (4,)): [9, 6, 3, 0],
    (10, (1,)): [0],
    (6, (3, 3)): [5, 4, 3, 2, 1, 0],
}


@pytest.mark.parametrize("case", SECTIONS, ids=str)
def test_sections_have_their_counts(case):
    T, counts = case
    assert table_timesteps(T, list(counts)).tolist() == SECTIONS[case]
    assert table_timesteps(T, ",".join(map(str, counts))).tolist() == SECTIONS[case]
    assert table_timesteps(T, " , ".join(map(str, counts))).tolist() == SECTIONS[case]


@given(
    st.integers(1, 400).flatmap(
        lambda T: st.integers(1, min(T, 6)).flatmap(
            lambda n: st.tuples(st.just(T), st.lists(st.integers(0, T // n), min_size=n, max_size=n).filter(any))
        )
    )
)
def test_sections_are_those_of_guided_diffusion(case):
    T, counts = case
    t = table_timesteps(T, counts)
    assert t.dtype == np.int64 and t.tolist() == published(T, counts)
    assert len(t) == sum(counts) and t[0] <= T - 1 and t[-1] >= 0 and np.all(np.diff(t) < 0)
    # Section i starts after the sections before it.
    edges = np.cumsum([0] + [T // len(counts) + (i < T % len(counts)) for i in range(len(counts))])
    assert np.histogram(t, np.append(edges[:-1], T + 1))[0].tolist() == counts
    for i, count in enumerate(counts):
        if count > 1:  # both ends of a section are used
            assert edges[i] in t and edges[i + 1] - 1 in t


def test_one_section_with_all_timesteps_is_every_timestep():
    assert table_timesteps(37, [37]).tolist() == table_timesteps(37, None).tolist() == list(range(37))[::-1]
    assert table_timesteps(37, "37").tolist() == list(range(37))[::-1]


@given(st.integers(1, 1200).flatmap(lambda T: st.tuples(st.just(T), st.integers(1, T))))
def test_ddim_n_uses_the_smallest_stride_or_suggests_numbers(case):
    T, steps = case
    fitting = [k for k in range(1, T + 1) if len(range(0, T, k)) == steps]
    if fitting:
        assert table_timesteps(T, f"ddim{steps}").tolist() == list(range(0, T, fitting[0]))[::-1]
        return
    with pytest.raises(DuetError, match=rf"ddim{steps} was given; no integer stride gives {steps} of {T}") as caught:
        table_timesteps(T, f"ddim{steps}")
    near = [int(word.removeprefix("ddim")) for word in str(caught.value).split() if word.startswith("ddim")][1:]
    counts = [len(range(0, T, k)) for k in range(1, T + 1)]
    assert near == [max(n for n in counts if n < steps), min(n for n in counts if n > steps)]
    for n in near:
        assert len(table_timesteps(T, f"ddim{n}")) == n


def test_ddim_n_equals_leading_where_the_stride_divides():
    for steps in (1, 10, 25, 50, 1000):
        np.testing.assert_array_equal(table_timesteps(1000, f"ddim{steps}"), table_timesteps(1000, steps, "leading"))
    # Otherwise leading rounds the stride down and starts further below T-1.
    assert table_timesteps(10, "ddim4").tolist() == [9, 6, 3, 0] and table_timesteps(10, 4).tolist() == [6, 4, 2, 0]


def test_timesteps_can_be_listed():
    for steps in (None, 3):
        t = table_timesteps(10, steps, [9, 4, 0])
        assert t.dtype == np.int64 and t.tolist() == [9, 4, 0]
    assert table_timesteps(10, None, (3,)).tolist() == [3]
    assert table_timesteps(10, None, list(range(10))[::-1]).tolist() == table_timesteps(10, None).tolist()


@pytest.mark.parametrize("spacing", [None, *SPACINGS])
def test_steps_null_is_every_timestep(spacing):
    assert table_timesteps(7, None, spacing).tolist() == [6, 5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize("T, steps, spacing, message", [
    (1000, 0, "leading", "sampler.steps: 0 was given; a schedule with 1000 timesteps takes 1 to 1000 steps"),
    (1000, 1001, "trailing", "1001 was given"),
    (1000, -5, "linspace", "-5 was given"),
    (1000, 10, "traling", "Did you mean 'trailing'"),
    (1000, None, "traling", "Did you mean 'trailing'"),
    (1000, "ddim60", None, "no integer stride gives 60 of 1000 timesteps, but ddim59 and ddim63 fit"),
    (1000, "ddim0", None, "sampler.steps: ddim0 was given; a schedule with 1000 timesteps takes 1 to 1000 steps"),
    (1000, "ddim1001", None, "1 to 1000 steps"),
    (1000, "ddim", None, "'ddim' was given; it must be a whole number, whole numbers per section"),
    (1000, "ddim25", "leading", "spacing: leading was given with steps ddim25, which determine it; use spacing=null"),
    (1000, [10, 10], "trailing", r"trailing was given with steps \[10, 10\], which determine it"),
    (10, [1, 4, 1], None, "sampler.steps: 4 was given for section 2 of 3; it has 3 of the 10 timesteps"),
    (10, [4, -1], None, "-1 was given for section 2 of 2; it has 5 of the 10 timesteps"),
    (2, "1,1,1", None, "1 was given for section 3 of 3; it has 0 of the 2 timesteps"),
    (10, [0, 0], None, r"\[0, 0\] was given; at least one count must be positive"),
    (10, [], None, r"sampler.steps: \[\] was given; it must be a whole number"),
    (10, [2, 2.0], None, "it must be a whole number, whole numbers per section"),
    (10, [True], None, "it must be a whole number"),
    (10, True, None, "sampler.steps: True was given; it must be a whole number"),
    (10, 5.0, None, "sampler.steps: 5.0 was given; it must be a whole number"),
    (10, "2,,2", None, "'2,,2' was given"),
    (10, "-2", None, "'-2' was given"),
    (10, "", None, "'' was given"),
    (10, {"steps": 3}, None, "it must be a whole number"),
    (10, None, [], r"sampler.spacing: \[\] was given; .* or a list of decreasing timesteps in 0\.\.9"),
    (10, None, [10, 3], "a list of decreasing timesteps in 0..9"),
    (10, None, [3, -1], "a list of decreasing timesteps"),
    (10, None, [0, 3], "a list of decreasing timesteps"),
    (10, None, [3, 3], "a list of decreasing timesteps"),
    (10, None, [3, "1"], "a list of decreasing timesteps"),
    (10, None, [9.5, 1], "a list of decreasing timesteps"),
    (10, None, [3, False], "a list of decreasing timesteps"),
    (10, None, 3, "sampler.spacing: 3 was given; it must be one of leading, linspace, half_open, trailing, or a list"),
    (10, 4, [3, 1], "sampler.steps: 4 was given with a list of 2 timesteps; use steps=null"),
    (10, "ddim5", [3, 1], "sampler.steps: ddim5 was given with a list of 2 timesteps"),
    (10, [1, 1], [3, 1], r"sampler.steps: \[1, 1\] was given with a list of 2 timesteps"),
])  # fmt: skip
def test_invalid_steps_and_spacings_are_errors(T, steps, spacing, message):
    with pytest.raises(DuetError, match=message):
        table_timesteps(T, steps, spacing)
