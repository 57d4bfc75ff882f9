"""What a comparison says: findings, each at a place on both sides, and everything that a report shows around them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

__all__ = ["Comparison", "Finding", "Place", "Row"]


@dataclass(frozen=True)
class Place:
    """Where something is on one side.

    Attributes:
        layer: the path of the module or layer; "" is the model itself.
        source: the line of the author's code, as "file.py:31", or "".
        code: the text of that line.
        native: the name of the operation in its framework, or "".
        kind: the kind of the operation in the vocabulary, or of the fused one that it belongs to.
        parameter: the name of the parameter or buffer in question, or "".
        time: which call of the layer, or run of the line, as "call 2 of 3", or "" if there is one.
    """

    layer: str = ""
    source: str = ""
    code: str = ""
    native: str = ""
    kind: str = ""
    parameter: str = ""
    time: str = ""


@dataclass(frozen=True)
class Finding:
    """One difference that is not inherited from another, and its cause.

    Attributes:
        mode: where it shows: "forward", "gradient", "training" or "steps".
        kind: the name of the cause in the catalogue; "" if none is known.
        status: "verified" (with it the sides agree to rounding), "likely" (the difference becomes at most a tenth), or
            "unknown".
        title: the cause in words, as in "the epsilon of a normalisation".
        a, b: the places on the two sides; None where one side has nothing of the kind.
        a_does, b_does: what each side does, as in "epsilon is 1e-05".
        error: how far the two sides differ here, relative to the largest number; `left` with the cause removed.
        advice: how each framework writes it.
        benign: it is a property of a framework, such as a constant in float32, and does not make the models unequal.
        also: further places with the same cause, as sentences.
        accepted: the user's reason why this is known and accepted, or "".
    """

    mode: str
    kind: str
    status: str
    title: str
    a: Place | None
    b: Place | None
    a_does: str = ""
    b_does: str = ""
    error: float = 0.0
    left: float = 0.0
    advice: str = ""
    benign: bool = False
    also: tuple[str, ...] = ()
    accepted: str = ""


@dataclass(frozen=True)
class Row:
    """One value of both sides that is the same quantity: a line of the report.

    Attributes:
        a, b: where it is made.
        shape: on side A.
        own: the error that B's operations since the rows before it make on A's values, relative.
        inherited: the difference between the recorded values of the two sides, relative.
        rounding: how far the float32 pass of A is from its float64 pass here, or what rounding does; None if unknown.
        relation: how B's layout follows from A's, in words.
        finding: the number of the finding that lies between this row and those before it, or None.
    """

    a: Place
    b: Place
    shape: tuple[int, ...]
    own: float
    inherited: float
    rounding: float | None = None
    relation: str = ""
    finding: int | None = None


@dataclass(frozen=True)
class Comparison:
    """The result of comparing two recordings.

    Attributes:
        a, b: what the user named; `frameworks` their names and versions.
        findings: in order: forward, gradient, training, steps; the first is the one to mend first.
        rows: of the evaluation pass, in the order of side B.
        outputs: of each pair of outputs: name, largest relative difference of the recorded passes by pass name.
        histograms: arrays for the report, by name: the first outputs of both sides in float64.
        parameters: pairs of parameters (name in A, name in B, relation in words), and `unmatched` ones of each side.
        compared: which of "forward", "gradient", "training" and "steps" were compared, and what each came to in words.
        notes: what could not be recorded or compared, one sentence each.
    """

    a: str
    b: str
    frameworks: tuple[str, str]
    findings: tuple[Finding, ...]
    rows: tuple[Row, ...] = ()
    outputs: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    histograms: Mapping[str, tuple[NDArray, NDArray]] = field(default_factory=dict)
    parameters: tuple[tuple[str, str, str], ...] = ()
    unmatched: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    compared: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def equal(self) -> bool:
        """Whether the sides agree to rounding, apart from what is benign or accepted."""
        return all(finding.benign or finding.accepted for finding in self.findings)
