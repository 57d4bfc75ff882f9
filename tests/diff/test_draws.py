"""Models that draw random numbers: B is run with A's, so that noise and dropout hide nothing and are no difference."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion_core.parity.diff.comparison import compare
from diffusion_core.parity.diff.findings import Comparison
from diffusion_core.parity.diff.recording import Operation, Pass, Recording
from tests.diff.written import Tape

X = np.random.default_rng(3).normal(size=(2, 5, 4, 4))


def compared(a: Pass, b: Pass) -> Comparison:
    return compare(*(Recording(f"{n}.py:build", "numpy", {p.name: p}) for n, p in (("a", a), ("b", b))))


def drawn(tape: Tape, array: np.ndarray, distribution: str, rate: float | None = None) -> int:
    number = tape.draw(array)
    tape.operations[-1] = Operation("random", (), (number,), {"distribution": distribution, "rate": rate}, "random")
    return number


def noisy(seed: int, last: bool, scale: float = 0.1, kind: str = "tanh", name: str = "float64") -> Pass:
    """``exp(f(x) + scale n)`` with channels second or last."""
    tape, x = Tape(), np.moveaxis(X, 1, -1) if last else X
    y = tape(kind, tape.input(x))
    noise = drawn(tape, np.random.default_rng(seed).normal(size=x.shape), "normal")
    return tape.record(tape("exp", tape("add", y, tape("multiply", noise, scalar=scale, reverse=False))), name=name)


def test_noise_of_other_numbers_is_no_difference_and_is_told() -> None:
    result = compared(noisy(1, False), noisy(2, True))
    assert result.equal and not result.outputs  # recorded outputs differ by chance
    assert any("random numbers" in note for note in result.notes)


def test_noise_hides_no_other_difference() -> None:
    (finding,) = compared(noisy(1, False), noisy(2, True, scale=0.2)).findings
    assert finding.status == "verified"
    (finding,) = compared(noisy(1, False), noisy(2, True, kind="sigmoid")).findings
    assert (finding.kind, finding.status) == ("activation", "verified")


def dropped(seed: int, rate: float, keras: bool) -> Pass:
    """Two dropouts of one size, the way in which each framework writes them; Keras draws the second one first."""
    tape, rng = Tape(), np.random.default_rng(seed)
    x = tape.input(X)
    branches = {"tanh": tape("tanh", x), "sigmoid": tape("sigmoid", x)}
    made = {}
    for kind in sorted(branches, reverse=keras):
        mask = rng.random(X.shape) >= rate
        if keras:
            scaled = tape("multiply", branches[kind], scalar=1 / (1 - rate), reverse=False)
            made[kind] = tape("where", drawn(tape, mask, "bernoulli", rate), scaled, scalars=[None, 0.0])
            tape.values[tape.operations[-2].outputs[0]] = mask
        else:
            kept = tape("divide", drawn(tape, mask * 1.0, "bernoulli", rate), scalar=1 - rate, reverse=False)
            made[kind] = tape("multiply", branches[kind], kept)
    return tape.record(tape("subtract", made["tanh"], made["sigmoid"]), name="train64")


@pytest.mark.parametrize("rate", [0.5, 0.3])
def test_dropout_that_drops_other_numbers_is_no_difference(rate: float) -> None:
    result = compared(dropped(1, rate, False), dropped(2, rate, True))
    assert result.equal and result.compared["training"] == "equal to rounding"


def test_a_dropout_of_another_rate_is_found() -> None:
    (finding,) = compared(dropped(1, 0.5, False), dropped(2, 0.3, True)).findings
    assert (finding.kind, finding.status) == ("dropout_rate", "verified")


def test_a_draw_that_only_one_side_makes_is_found() -> None:
    tape = Tape()
    plain = tape.record(tape("exp", tape("tanh", tape.input(X))))
    for a, b in ((noisy(1, False), plain), (plain, noisy(1, False))):
        (finding,) = compared(a, b).findings
        assert (finding.kind, finding.status) == ("dropout_on", "verified")
