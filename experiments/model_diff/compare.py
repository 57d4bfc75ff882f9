"""The comparison of two sides: record both at the same time, compare the recordings, mark what is accepted."""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from diffusion_core.common.errors import DuetError
from diffusion_core.parity.diff import weights
from diffusion_core.parity.diff.alignment import copy
from diffusion_core.parity.diff.findings import Comparison
from diffusion_core.parity.diff.recording import Recording, read_recording
from diffusion_core.runtime.heartbeat import heartbeat
from experiments.model_diff.accepted import Accepted, mark
from experiments.model_diff.inputs import check_equal, draw, forms
from experiments.model_diff.record_side import read_inputs, write_inputs
from experiments.model_diff.side_recorder import Inputs
from experiments.model_diff.sides import Side, SideHere, SideProcess, open_side

__all__ = ["MODES", "Request", "compare_sides"]

# What each mode compares, and which passes it needs.
MODES = {
    "forward": ("forward",),
    "gradient": ("forward", "gradient"),
    "train": ("forward", "training"),
    "all": ("forward", "gradient", "training"),
}


@dataclass(frozen=True)
class Request:
    """What is compared.

    Attributes:
        a, b: the sides.
        inputs: the user's inputs, in A's layout; None takes those that the sides draw.
        seed: of inputs and random weights.
        user_map: names of parameters of A and the names that they have in B.
        copy_weights: "a-to-b", "b-to-a" or "".
        mode: a key of `MODES`.
        steps: how many training steps are compared.
        precision: "float64", where both sides can, or "float32" alone.
        accepted: what the user knows and accepts.
    """

    a: Side
    b: Side
    inputs: Inputs | None = None
    seed: int = 0
    user_map: Mapping[str, str] = field(default_factory=dict)
    copy_weights: str = ""
    mode: str = "all"
    steps: int = 0
    precision: str = "float64"
    accepted: tuple[Accepted, ...] = ()

    @property
    def passes(self) -> list[str]:
        """The passes that are recorded."""
        wide = self.precision == "float64"
        names = ["float32"] + (["float64"] if wide else [])
        return names + ([("train64" if wide else "train32")] if "training" in MODES[self.mode] else [])


Open = SideProcess | SideHere


def compare_sides(request: Request) -> Comparison:
    """Record both sides and compare them.

    Raises:
        DuetError: a side cannot be loaded or recorded, or the two have no inputs in common.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="duet-diff-")))
        stack.enter_context(redirect_stdout(sys.stderr))  # standard output belongs to the result
        sides = []
        for side, label in ((request.a, "A"), (request.b, "B")):
            opened = open_side(side, label, request.seed, folder)
            stack.callback(opened.close)
            sides.append(opened)
        recordings, notes = record(request, sides, folder)
        for opened in sides:
            opened.close()  # the memory of their processes is needed now
        with heartbeat("comparing", says_end=False):
            modes = (*MODES[request.mode], *(("steps",) if request.steps else ()))
            compare = importlib.import_module("diffusion_core.parity.diff.comparison").compare
            found = compare(*recordings, request.user_map or None, modes)
    found = replace(found, notes=tuple(dict.fromkeys([*notes, *found.notes])), options=described(request))
    return mark(found, request.accepted)


def record(request: Request, sides: list[Open], folder: Path) -> tuple[list[Recording], list[str]]:
    """Return the recordings of both sides, and notes on how their inputs were made."""
    with signs_of_life(sides):
        at_once(sides, lambda side, i: side.load())
        offers = at_once(sides, lambda side, i: side.offer(max(1, request.steps), folder / f"inputs-{side.label}"))
        inputs, words = chosen_inputs(request, offers, folder)
        passes = request.passes

        gradients = "all" if "gradient" in MODES[request.mode] else "parameters"

        def recorded(side: Open, i: int, state: Path | None = None) -> tuple[Recording, int]:
            target = folder / side.label
            batches = inputs[i] if request.steps else []
            used = side.record(target, inputs[i][0], passes, batches, state, gradients, True)
            return read_recording(target), used

        def recorded_narrow(side: Open, i: int) -> Recording:
            """Return a recording with the whole pass in float32, as the other side has none in float64."""
            recording, used = found[i]
            if "float64" not in recording.passes:
                return recording
            target = folder / f"narrow-{side.label}"
            narrow = ["float32"] + (["train32"] if "train64" in recording.passes else [])
            side.record(target, [inputs[i][0][used]], narrow, [], states[i], gradients)
            return replace(recording, passes=read_recording(target).passes)

        states: list[Path | None] = [None, None]
        if request.copy_weights:
            states = copied_weights(request, sides, inputs, folder)
        found = at_once(sides, lambda side, i: recorded(side, i, states[i]))
        if len({"float64" in recording.passes for recording, _ in found}) == 2:
            narrow = at_once(sides, recorded_narrow)
            found = [(recording, used) for recording, (_, used) in zip(narrow, found, strict=True)]
    notes = [f"{'AB'[i]} got {words[i][used]}" for i, (_, used) in enumerate(found) if words[i][used]]
    return [recording for recording, _ in found], notes


def at_once(sides: list[Open], call: Callable[[Open, int], Any]) -> list[Any]:
    """Return what a call gives for each side; two processes work at the same time. The first error ends both."""
    if any(isinstance(side, SideHere) for side in sides):
        # The process starts to work before the object here is recorded, since `load` does not wait.
        return [call(side, i) for i, side in enumerate(sides)]
    with ThreadPoolExecutor(2) as pool:
        started = [pool.submit(call, side, i) for i, side in enumerate(sides)]
        for done in as_completed(started):
            if done.exception() is not None:
                for side in sides:
                    side.close()
                raise done.exception()  # type: ignore[misc]
        return [one.result() for one in started]


@contextmanager
def signs_of_life(sides: list[Open]) -> Any:
    """Print what both sides are doing, every ten seconds."""
    from diffusion_core.common.text import format_seconds
    from diffusion_core.runtime.heartbeat import EVERY_SECONDS, Ticker

    began = time.monotonic()

    def tell() -> None:
        doing = ", ".join(f"{side.label} {side.doing}" for side in sides)
        print(f"{doing}: {format_seconds(time.monotonic() - began)}", file=sys.stderr, flush=True)

    with Ticker(tell, EVERY_SECONDS):
        yield


def chosen_inputs(
    request: Request, offers: list[dict[str, Any]], folder: Path
) -> tuple[list[list[list[Path]]], list[list[str]]]:
    """Return for each side and each batch the files with the forms of its inputs, and for each side what they are.

    Raises:
        DuetError: the authors of both sides draw inputs, and not the same; or no side has any.
    """
    own = [[read_inputs(Path(file)) for file in offer["files"]] for offer in offers]
    if own[0] and own[1] and not all(offer["written"] for offer in offers):
        # The inputs that an author wrote win over those that are drawn for a file of a model; else A's do.
        own[0 if offers[1]["written"] else 1] = []
    count = max(1, request.steps)
    if request.inputs is not None:
        drawn, source, whose = [request.inputs] * count, offers[0]["layout"], "the given inputs"
    elif own[0] and own[1]:
        for i, (a, b) in enumerate(zip(*own, strict=True)):
            check_equal(a, b, request.seed + i)
        return [[[Path(file)] for file in offer["files"]] for offer in offers], [[""], [""]]
    elif own[0] or own[1]:
        i = 0 if own[0] else 1
        drawn, source, whose = own[i], offers[i]["layout"], f"{'AB'[i]}'s inputs"
    else:
        i = next((i for i, offer in enumerate(offers) if offer["declared"] is not None), None)
        if i is None:
            raise DuetError(
                "there are no inputs: write a function inputs(seed) beside the model's function of one side, which "
                "returns an array, a tuple of arrays, or a dict by argument name; or give --inputs FILE.npz"
            )
        drawn = [draw(offers[i]["declared"], request.seed + k) for k in range(count)]
        source, whose = offers[i]["layout"], f"random inputs of the shapes that {'AB'[i]} declares"
    files, words = [], []
    for i, offer in enumerate(offers):
        if request.inputs is None and own[i]:
            files.append([[Path(file)] for file in offer["files"]])
            words.append([""])
            continue
        tried = [forms(each, source, offer["layout"], offer["declared"]) for each in drawn]
        files.append([])
        for k, several in enumerate(tried):
            names = [folder / f"given-{'AB'[i]}-{k}-{n}.npz" for n in range(len(several))]
            for path, (arrays, _) in zip(names, several, strict=True):
                write_inputs(arrays, path)
            files[-1].append(names)
        told = request.inputs is None
        words.append([f"{whose}{', ' if how else ''}{how}" if told or how else "" for _, how in tried[0]])
    return files, words


def copied_weights(
    request: Request, sides: list[Open], inputs: list[list[list[Path]]], folder: Path
) -> list[Path | None]:
    """Return for each side the file with the other side's weights in its layout, or None for the side they come from.

    Raises:
        DuetError: a weight has nothing on the other side; the message names it.
    """
    source, target = (0, 1) if request.copy_weights == "a-to-b" else (1, 0)
    at_once(sides, lambda side, i: side.record(folder / f"plain-{side.label}", inputs[i][0], ["float32"], [], None))
    passes = [read_recording(folder / f"plain-{side.label}").passes["float32"] for side in sides]
    user_map = dict(request.user_map)
    if source == 1:
        user_map = {there: here for here, there in user_map.items()}
    alignment = weights.align(passes[source], passes[target], user_map or None)
    states = [side.state(folder / f"state-{side.label}.npz") for side in sides]
    result = copy(alignment, states[source], states[target])
    if result.missing:
        listed = [f"{name}: {reason}" for name, reason in result.missing.items()]
        more = f"; and {len(listed) - 5} more" if len(listed) > 5 else ""
        raise DuetError(
            f"--copy-weights: {'AB'[target]} has {len(listed)} entries that {'AB'[source]}'s weights do not fill: "
            f"{'; '.join(listed[:5])}{more}. Name their partners with --weights FILE.json"
        )
    path = folder / "copied.npz"
    write_inputs(dict(result.state), path)
    states_files: list[Path | None] = [None, None]
    states_files[target] = path
    return states_files


def described(request: Request) -> dict[str, Any]:
    """Return the options of a comparison that differ from their defaults, as JSON values."""
    options: dict[str, Any] = {"mode": request.mode, "seed": request.seed, "precision": request.precision}
    for label, side in (("a", request.a), ("b", request.b)):
        if side.options:
            options[f"{label}_options"] = dict(side.options)
    if request.steps:
        options["steps"] = request.steps
    if request.copy_weights:
        options["copy_weights"] = request.copy_weights
    if request.user_map:
        options["weights"] = dict(request.user_map)
    return json.loads(json.dumps(options, default=str))
