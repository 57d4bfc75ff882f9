"""The error measures of the ladder: a wrong, missing or non-finite number never passes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from diffusion_core.common.errors import DuetError
from diffusion_core.parity import cases
from diffusion_core.parity.compare import compare_handover, differing, load_arrays, load_checks, pixel_difference
from diffusion_core.parity.ladder import RUNGS, TOLERANCES, check, l2, l2_of_all, ladder, relative, worst
from diffusion_core.runs.run_directory import write_json

A = np.array([[3.0, -4.0], [0.0, 0.0]])


def test_closed_forms():
    near = np.array([[3.0, -4.0], [0.0, 1.0]])
    assert relative(near, A) == 0.25
    assert l2(near, A) == pytest.approx(0.2)
    assert l2_of_all({"a": A, "b": A}, {"a": A, "b": 2 * A}) == pytest.approx(np.sqrt(1 / 5))
    assert worst({"a": A, "b": A}, {"a": A, "b": 2 * A}) == pytest.approx(0.5)
    assert relative(A, A) == l2(A, A) == differing({"a": A}, {"a": A}) == 0


@pytest.mark.parametrize("measure", [relative, l2])
@pytest.mark.parametrize("wrong", [A[:1], A[None], np.full_like(A, np.nan), np.where(A == 0, np.inf, A)])
def test_incomparable_arrays_have_an_infinite_error(measure, wrong):
    with np.errstate(invalid="ignore"):
        assert measure(wrong, A) == measure(A, wrong) == np.inf
        assert wrong.shape != A.shape or measure(wrong, wrong) == np.inf


@pytest.mark.parametrize("measure", [l2_of_all, worst, differing])
def test_other_names_and_no_names_are_an_infinite_error(measure):
    assert measure({"a": A}, {"b": A}) == measure({"a": A}, {"a": A, "b": A}) == measure({}, {}) == np.inf


@pytest.mark.parametrize("measure", [relative, l2])
def test_a_difference_from_zero_never_passes(measure):
    assert measure(A, np.zeros_like(A)) == np.inf


def test_bitwise_comparison_sees_signs_types_and_single_values():
    assert differing({"a": np.array(0.0)}, {"a": np.array(-0.0)}) == 1
    assert differing({"a": A}, {"a": np.nextafter(A, 9)}) == 4
    assert differing({"a": A}, {"a": A.astype(np.float32)}) == np.inf
    assert differing({"a": A.T}, {"a": np.ascontiguousarray(A.T)}) == 0


@pytest.mark.parametrize("kind", TOLERANCES)
@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_a_check_passes_up_to_its_tolerance(kind, precision):
    tolerance = TOLERANCES[kind].allowed(precision)
    outcomes = [
        check(1, "x", precision, "b", kind, error).passed
        for error in (0.0, tolerance, np.nextafter(tolerance, 1), np.inf, np.nan)
    ]
    assert outcomes == [True, True, False, False, False]
    assert TOLERANCES[kind].allowed("float64") <= 1e-4 * TOLERANCES[kind].allowed("float32")


def test_every_rung_is_on_the_ladder():
    checks = [check(r.number, "x", "float64", "b", "bits", 0) for r in RUNGS]
    assert [rung["rung"] for rung in ladder(checks)] == list(range(9))
    assert all(len(rung["checks"]) == 1 and rung["checks"][0]["passed"] for rung in ladder(checks))


def test_an_error_that_is_not_finite_still_fails_after_json(tmp_path):
    checks = [check(1, "x", "float64", "b", "noised", error) for error in (0.0, np.nan, np.inf)]
    write_json(tmp_path / "checks.json", {"checks": [c.to_dict() for c in checks]})
    json.loads((tmp_path / "checks.json").read_text(), parse_constant=pytest.fail)
    assert [c.passed for c in load_checks(tmp_path / "checks.json")] == [True, False, False]


def test_a_missing_or_corrupted_record_is_a_one_line_error(tmp_path):
    with pytest.raises(DuetError, match=r"float64\.npz: there is no such record"):
        load_arrays(tmp_path / "float64.npz")
    (tmp_path / "float64.npz").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(DuetError, match="it is not a record"):
        load_arrays(tmp_path / "float64.npz")
    np.savez(tmp_path / "float64.npz", a=np.array([object()]))
    with pytest.raises(DuetError, match="it is not a record"):
        load_arrays(tmp_path / "float64.npz")


def test_a_plan_that_only_one_record_has_does_not_pass():
    images, pixels = np.zeros((2, 8, 8, 1)), np.zeros((2, 8, 8, 1), np.uint8)
    few = {f"6/{plan}/{what}": value for plan in cases.FEW_PLANS
           for what, value in (("images", images), ("pixels", pixels))}  # fmt: skip

    def of_plans(whole: dict, taken: dict) -> dict[str, bool]:
        checks = compare_handover(whole, taken, "float32", "a–b")
        return {c.name: c.passed for c in checks if c.rung == 6 and c.name != "DDIM-50, every state"}

    names = {f"{plan}, {what}" for plan in cases.FEW_PLANS for what in ("images", "uint8")}
    assert of_plans(few, few) == dict.fromkeys(names, True)
    assert of_plans({}, {}) == dict.fromkeys(names, False)
    more = few | {"6/DDPM-1000/images": images, "6/DDPM-1000/pixels": pixels}
    for whole, taken in ((more, few), (few, more)):
        assert [name for name, passed in of_plans(whole, taken).items() if not passed] == [
            "DDPM-1000, images", "DDPM-1000, uint8",
        ]  # fmt: skip
    assert all(of_plans(more, more).values()) and len(of_plans(more, more)) == len(names) + 2


@pytest.mark.parametrize("values, pixels, fraction", [
    ((219.4999, 219.5001), (219, 220), 0.0),  # a tie: rounding alone
    ((219.4999, 219.4999), (219, 220), 0.0),  # no farther from the border than the tolerance
    ((219.4, 219.5001), (219, 220), 1.0),  # one side is not at the border
    ((219.3, 219.3), (219, 220), 1.0),  # equal values that were rounded in two ways
    ((219.5, 221.5), (219, 221), np.inf),  # more than rounding
])  # fmt: skip
def test_a_pixel_differs_unless_both_values_lie_at_the_border_of_two_pixels(values, pixels, fraction):
    images = [np.array([value / 127.5 - 1.0]) for value in values]
    a, b = (np.array([pixel], np.uint8) for pixel in pixels)
    assert pixel_difference(a, b, images, 1e-4) == pixel_difference(b, a, images[::-1], 1e-4) == fraction
    assert pixel_difference(a, b) == (fraction if fraction == np.inf else 1.0)
