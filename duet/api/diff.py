"""`duet.diff`: where two implementations of a model first differ, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from diffusion_core.common.errors import DuetError, check_choice, one_of
from diffusion_core.parity.diff.findings import Comparison, Finding
from duet.cli.sides import find_interpreter
from duet.cli.terminal import Stop
from experiments.model_diff.accepted import read_accepted, to_accepted
from experiments.model_diff.author_code import Refused, to_inputs
from experiments.model_diff.compare import MODES, Request, compare_sides
from experiments.model_diff.inputs import read_file
from experiments.model_diff.result import read_weights, summary, to_report, write
from experiments.model_diff.sides import Side
from experiments.report import model_diff as page

__all__ = ["Difference", "diff"]


@dataclass(frozen=True, eq=False)
class Difference:
    """What `duet.diff` found.

    Attributes:
        comparison: everything that was found, as the page shows it.

    Example:
        >>> import duet, numpy as np
        >>> report = duet.diff(np.tanh, np.sinh, inputs=np.ones((2, 3)))
        >>> report.equal, len(report.findings)
        (False, 1)
    """

    comparison: Comparison

    @property
    def equal(self) -> bool:
        """Whether the models are equal to rounding, apart from what is accepted."""
        return self.comparison.equal

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The differences and their causes; the first is the one to mend first."""
        return self.comparison.findings

    @cached_property
    def report(self) -> dict[str, Any]:
        """The report as JSON values; docs/diff.md describes its fields."""
        return to_report(self.comparison)

    @property
    def table(self) -> list[dict[str, Any]]:
        """The aligned operations in order, with their own and inherited errors; `pandas.DataFrame` takes it."""
        return [
            {
                "a": row.a.layer,
                "b": row.b.layer,
                "kind": row.b.kind,
                "shape": row.shape,
                "own": row.own,
                "inherited": row.inherited,
                "a_source": row.a.source,
                "b_source": row.b.source,
            }
            for row in self.comparison.rows
        ]

    def summary(self) -> str:
        """Return the lines that the command prints."""
        return summary(self.report)

    def save(self, directory: str | Path) -> Path:
        """Write report.html and report.json into a directory; return the path of the page."""
        return write(self.report, Path(directory).expanduser())

    def __repr__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        """Show the page in a notebook, in a frame of its own."""
        text = page.render(self.report).replace("&", "&amp;").replace('"', "&quot;")
        frame = 'style="width:100%;height:44rem;border:0" sandbox="allow-scripts"'
        return f'<iframe title="duet diff" {frame} srcdoc="{text}"></iframe>'


def diff(
    a: Any,
    b: Any,
    inputs: Any = None,
    *,
    seed: int = 0,
    weights: str | Mapping[str, str] = "map",
    copy_weights: str | None = None,
    mode: str = "all",
    steps: int = 0,
    precision: str = "float64",
    a_options: Mapping[str, Any] | None = None,
    b_options: Mapping[str, Any] | None = None,
    a_python: str | None = None,
    b_python: str | None = None,
    accept: str | Path | Sequence[Mapping[str, str]] = (),
) -> Difference:
    """Find where two implementations of a model first differ, and why.

    Args:
        a: the first side: a model, a function that returns one, or a reference such as ``"keras_model.py:build"``, an
            ONNX file, a SavedModel, a run of Duet. A reference runs in a process of its own, in the environment of its
            framework; an object in this one.
        b: the second side, likewise.
        inputs: an array, a tuple of arrays, a dictionary by argument name, or an .npz file; in the layout of A. None
            takes what the files of the sides draw with ``inputs(seed)``.
        seed: of the inputs and of random initial weights.
        weights: ``"map"`` finds which weights belong together; a dictionary or a JSON file {name in A: name in B} wins
            over that; ``"copy"`` writes A's into B first.
        copy_weights: ``"a-to-b"`` or ``"b-to-a"`` writes one side's weights into the other; an object keeps them.
        mode: ``"forward"``, ``"gradient"``, ``"train"`` or ``"all"``.
        steps: compare so many training steps too.
        precision: ``"float64"`` where both sides can, or ``"float32"`` alone.
        a_options: arguments of A's function.
        b_options: arguments of B's function.
        a_python: the Python that runs A: a path, or the name of a backend for its environment.
        b_python: the Python that runs B, likewise.
        accept: differences that you know and accept: a JSON file, or dictionaries with kind, a, b and reason.

    Returns:
        a `Difference`, which a notebook shows as the page.

    Raises:
        DuetError: if a side cannot be loaded, or the two have no inputs in common.

    Example:
        >>> import duet, numpy as np
        >>> duet.diff(lambda x: np.exp(2 * x), lambda x: np.exp(x) ** 2, inputs=np.ones((2, 3))).equal
        True
    """
    check_choice("mode", mode, MODES)
    if precision not in ("float64", "float32"):
        raise one_of("precision", precision, ("float64", "float32"))
    if steps < 0:
        raise DuetError(f"steps: {steps} was given; it must be 0 or more")
    user_map, direction = read_weights(str(weights) if isinstance(weights, Path) else weights, copy_weights)
    sides = [
        _side(label, given, python, options)
        for label, given, python, options in (("A", a, a_python, a_options), ("B", b, b_python, b_options))
    ]
    if isinstance(inputs, str | Path):
        inputs = read_file(Path(inputs).expanduser())
    elif inputs is not None:
        try:
            inputs = to_inputs(inputs, "inputs")
        except Refused as error:
            raise DuetError(str(error)) from error
    accepted = read_accepted(Path(accept)) if isinstance(accept, str | Path) else to_accepted(accept)
    request = Request(*sides, inputs, seed, user_map, direction, mode, steps, precision, accepted)
    return Difference(compare_sides(request))


def _side(label: str, given: Any, python: str | None, options: Mapping[str, Any] | None) -> Side:
    """Return a side: a reference with its interpreter, or an object of this process."""
    if given is None:
        raise DuetError(f"{label.lower()}: None was given; it must be a model, a function that returns one, or a text")
    if isinstance(given, str | Path):
        try:
            found = find_interpreter(label, str(given), python)
        except Stop as error:
            raise DuetError(str(error)) from error
        return Side(str(given), found.python, found.backend, dict(options or {}))
    if python is not None:
        raise DuetError(f"{label.lower()}_python: {label} is an object of this process; give a reference instead")
    name = getattr(given, "__name__", type(given).__name__)
    return Side(name, options=dict(options or {}), model=given)
