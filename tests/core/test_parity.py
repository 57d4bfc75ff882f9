"""The measures of the ladder: each notices one changed value, shape, type, name and NaN."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.parity.compare import differing, load_arrays, load_checks, under
from diffusion_core.parity.ladder import RUNGS, TOLERANCES, Check, check, l2, l2_of_all, ladder, relative, worst
from diffusion_core.runs.run_directory import write_json

A = Stream(0, "parity").normal([0], (3, 4))[0]
PAIR = {"one": A, "two": 10 * A[:2]}

MEASURES = {
    "relative": lambda a, b: relative(a["one"], b["one"]),
    "l2": lambda a, b: l2(a["one"], b["one"]),
    "l2_of_all": l2_of_all,
    "worst": worst,
    "differing": differing,
}


def changed(**arrays: np.ndarray) -> dict[str, np.ndarray]:
    return PAIR | arrays


def one(value: float) -> np.ndarray:
    array = A.copy()
    array[1, 2] = value
    return array


@pytest.mark.parametrize("name", MEASURES)
def test_equal_arrays_have_no_error(name):
    assert MEASURES[name](PAIR, {key: value.copy() for key, value in PAIR.items()}) == 0


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("at", range(12))
def test_one_changed_value_is_detected(name, at):
    array = A.copy()
    array.flat[at] = np.nextafter(array.flat[at], np.inf)
    for a, b in ((changed(one=array), PAIR), (PAIR, changed(one=array))):
        assert MEASURES[name](a, b) > 0


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_an_infinite_error(name, bad):
    for a, b in ((changed(one=one(bad)), PAIR), (PAIR, changed(one=one(bad)))):
        with np.errstate(invalid="ignore"):
            error = MEASURES[name](a, b)
        assert error == (1 if name == "differing" else math.inf)
    if name != "differing":
        # Equal wrong values are no agreement.
        with np.errstate(invalid="ignore"):
            assert MEASURES[name](changed(one=one(bad)), changed(one=one(bad))) == math.inf


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("shape", [(4, 3), (12,), (1, 3, 4), (3, 3)])
def test_another_shape_is_an_infinite_error(name, shape):
    array = A.ravel()[: math.prod(shape)].reshape(shape)
    for a, b in ((changed(one=array), PAIR), (PAIR, changed(one=array))):
        assert MEASURES[name](a, b) == math.inf


def test_a_scalar_differs_from_an_array_of_one():
    for measure in MEASURES.values():
        assert measure({"one": np.float64(1.0)}, {"one": np.ones(1)}) == math.inf
        assert measure({"one": np.float64(1.0)}, {"one": np.float64(1.0)}) == 0


@pytest.mark.parametrize("name", ["l2_of_all", "worst", "differing"])
def test_another_name_is_an_infinite_error(name):
    for other in ({"one": A}, {"one": A, "too": PAIR["two"]}, PAIR | {"three": A}, {}):
        assert MEASURES[name](PAIR, other) == MEASURES[name](other, PAIR) == math.inf


def test_another_dtype_is_a_difference():
    whole = {"one": np.arange(4)}
    for dtype in (np.float64, np.int32, np.uint64):
        assert differing(whole, {"one": np.arange(4).astype(dtype)}) == math.inf
    assert differing({}, {}) == math.inf  # nothing was compared


def test_bits_are_compared_not_values():
    zero, nan = np.array([0.0, 1.0]), np.array([math.nan, 1.0])
    assert differing({"a": zero}, {"a": -zero}) == 2 and differing({"a": zero}, {"a": np.array([-0.0, 1.0])}) == 1
    assert differing({"a": nan}, {"a": nan.copy()}) == 0
    transposed = np.ascontiguousarray(A.T).T
    assert differing({"a": A}, {"a": transposed}) == 0
    for dtype in (np.uint8, np.bool_, np.float32, np.int32):
        array = np.array([1, 0, 1], dtype)
        assert differing({"a": array}, {"a": ~array if dtype is np.bool_ else array + np.ones(3, dtype)}) == 3


@pytest.mark.parametrize("measure", [relative, l2, lambda a, b: worst({"": a}, {"": b})])
def test_an_error_where_the_reference_is_zero_is_infinite(measure):
    assert measure(np.zeros(3), np.zeros(3)) == 0
    assert measure(np.array([0.0, 1e-300, 1e-9]), np.zeros(3)) == math.inf


@given(st.floats(1e-12, 1.0), st.floats(1e-6, 1e6))
def test_measures_by_hand_and_without_a_unit(error, scale):
    b = scale * np.array([3.0, -4.0, 0.0])
    a = b + scale * np.array([0.0, 0.0, error])
    assert relative(a, b) == pytest.approx(error / 4, rel=1e-9)
    assert l2(a, b) == pytest.approx(error / 5, rel=1e-9)
    both = {"a": a, "b": np.array([12.0 * scale])}, {"a": b, "b": np.array([12.0 * scale])}
    assert l2_of_all(*both) == pytest.approx(error / 13, rel=1e-9)
    assert worst(*both) == pytest.approx(error / 5, rel=1e-9)


# Checks


@pytest.mark.parametrize("error, passed", [
    (0.0, True), (1e-12, True), (1.0001e-12, False), (math.nan, False), (math.inf, False),
])  # fmt: skip
def test_a_check_passes_only_within_its_tolerance(error, passed):
    result = check(3, "name", "float64", "torch", "network", error)
    assert result.tolerance == TOLERANCES["network"].float64 == 1e-12
    assert result.passed is passed and result.to_dict()["passed"] is passed


def test_each_precision_has_its_tolerance():
    for tolerance in TOLERANCES.values():
        assert 0 <= tolerance.allowed("float64") <= tolerance.allowed("float32") < 1
        assert tolerance.allowed("bf16") is None or tolerance.allowed("float32") <= tolerance.allowed("bf16") < 1


def test_a_check_needs_a_tolerance():
    with pytest.raises(DuetError, match=r"^sampling: there is no tolerance for it in bf16"):
        check(6, "name", "bf16", "torch", "sampling", 0.0)


def test_a_ladder_has_every_check_on_its_rung():
    checks = [check(rung, f"check {n}", "float32", "tf", "loss", 0.0) for rung in (1, 4, 8) for n in range(2)]
    rungs = ladder(checks)
    assert [rung["rung"] for rung in rungs] == [rung.number for rung in RUNGS] == list(range(9))
    assert {rung["rung"]: len(rung["checks"]) for rung in rungs if rung["checks"]} == {1: 2, 4: 2, 8: 2}


# Records


def test_checks_survive_json_and_failures_stay_failures(tmp_path):
    checks = [check(3, "a", "float64", "tf", "network", error) for error in (0.0, 1e-3, math.nan, math.inf)]
    write_json(tmp_path / "checks.json", {"checks": [c.to_dict() for c in checks]})
    loaded = load_checks(tmp_path / "checks.json")
    assert loaded[:2] == checks[:2]
    assert [c.passed for c in loaded] == [True, False, False, False]


def test_a_check_without_a_tolerance_does_not_pass(tmp_path):
    plain = check(3, "a", "float64", "tf", "network", math.inf).to_dict() | {"error": None, "tolerance": None}
    (tmp_path / "checks.json").write_text(json.dumps({"checks": [plain]}))
    with pytest.raises(DuetError, match=r"checks\.json"):
        load_checks(tmp_path / "checks.json")


@pytest.mark.parametrize("content", ["{}", "[]", '{"checks": 1}', '{"checks": [{"rung": 1}]}', "no"])
def test_invalid_checks_in_a_file_are_refused(tmp_path, content):
    (tmp_path / "checks.json").write_text(content)
    with pytest.raises(DuetError, match=r"checks\.json"):
        load_checks(tmp_path / "checks.json")


def test_arrays_are_read_back_or_refused(tmp_path):
    path = tmp_path / "float64.npz"
    with pytest.raises(DuetError, match=r"float64\.npz: there is no such record; write it with experiments\.trace"):
        load_arrays(path)
    np.savez(path, **{"2/Conv 3x3/pre.weight": A})
    np.testing.assert_array_equal(load_arrays(path)["2/Conv 3x3/pre.weight"], A)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DuetError, match=r"it is not a record of experiments.trace"):
        load_arrays(path)
    np.savez(path, odd=np.array([None], dtype=object))
    with pytest.raises(DuetError, match="it is not a record"):
        load_arrays(path)


def test_names_below_a_prefix():
    arrays = {"7/weights 1/a": A, "7/weights 10/a": A, "7/weights 1/b/c": A}
    assert list(under(arrays, "7/weights 1/")) == ["a", "b/c"]


def test_a_check_is_plain_data():
    plain = Check(1, "x_t", "float32", "torch", 1e-7, 5e-6, "relative").to_dict()
    assert json.loads(json.dumps(plain)) == plain
