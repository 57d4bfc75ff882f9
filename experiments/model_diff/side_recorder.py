"""What one side of `duet diff` does: load the author's code, build the model, find its inputs, and record it.

The framework's own recorder does the recording. Of the model two instances are built: the one in float32 is recorded as
the author made it, and its weights, cast up, are given to the one in float64. Whatever float64 cannot do is a note.

This module needs NumPy and the standard library alone; see `record_side`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from numpy.typing import NDArray

from diffusion_core.parity.diff.recording import Pass, Recording, outline, write_pass, write_summary
from experiments.model_diff import author_code
from experiments.model_diff.author_code import Refused
from experiments.model_diff.call_forms import call_forms, how_named, takes_nothing

__all__ = ["Inputs", "Job", "SideRecorder"]

Inputs = tuple[NDArray, ...] | dict[str, NDArray] if sys.version_info >= (3, 10) else Any


@dataclass(frozen=True)
class Job:
    """What is recorded.

    Attributes:
        reference: what the user named.
        place, name: the module or file and the object in it; of a file of a model, the function that opens it.
        folder: the working directory.
        options: arguments of the function.
        seed: of the inputs, and of random initial weights.
        recorders: by the name of a backend, the packages of its framework; the first is that which it needs.
        hint: the backend that the file's imports show, or "".
        recorder: the module of the recorder, if the kind of file determines it.
        path: the file that `name` opens, or "".
        drawn: the function that draws inputs for that file, as "module:function".
        fixed: whether the precision of the weights is in that file.
    """

    reference: str
    place: str = ""
    name: str = ""
    folder: str = "."
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    recorders: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    hint: str = ""
    recorder: str = ""
    path: str = ""
    drawn: str = ""
    fixed: bool = False


class SideRecorder:
    """One side: `load`, then `record` once or, with other weights, again.

    Attributes:
        recorder: the module of the framework's recorder.
        layout: "channels_first" or "channels_last".
    """

    def __init__(self, job: Job, find_recorder: Callable[[str], ModuleType], model: Any = None) -> None:
        """Store what is to be recorded.

        Args:
            job: what.
            find_recorder: returns the recorder of a backend by name, or that of "plain" functions.
            model: the model or the function that returns it, where it is no reference but an object of this process.
        """
        self.job, self.find_recorder = job, find_recorder
        self.module: Any = None
        self.source = model
        self.model: Any = None
        self.recorder: ModuleType
        self.others: list[str] = []  # recorders for a function that the chosen one cannot call
        self.form = 0  # which of the forms of `call_forms` the model is called with
        self.notes: list[str] = []

    @property
    def layout(self) -> str:
        """Where the framework has channels."""
        return self.recorder.LAYOUT

    # Loading and building.

    def load(self) -> None:
        """Load the author's code, choose the recorder and build the model in float32."""
        job = self.job
        if job.recorder:
            self.recorder = self.find_recorder(job.recorder)
        if self.source is None and job.path:
            own = job.place == job.recorder  # its classes are those of the recorder, not of another import of it
            self.source = getattr(self.recorder if own else importlib.import_module(job.place), job.name)
        elif self.source is None:
            self.module = author_code.load_module(job.place, job.folder)
            self.source = author_code.find(self.module, job.place, job.name)
        names = self._frameworks()
        self.model = self._build("float32", names)
        if not job.recorder:
            after = self._frameworks()
            if after != names and not names:  # the function imported its framework itself
                self.model = self._build("float32", after)
            chosen = self._framework_of(self.model, after)
            self.recorder = self.find_recorder(chosen)
            if not self._framework_of_class(self.model, after):
                self.others = [name for name in (*after, "plain") if name != chosen]
        self.model = self.recorder.prepare(self.model, "float32")

    def _frameworks(self) -> list[str]:
        """Return the backends whose frameworks are loaded."""
        return [name for name, packages in self.job.recorders.items() if packages[0] in sys.modules]

    def _framework_of(self, model: Any, loaded: list[str]) -> str:
        """Return the backend that a model belongs to: by its classes, else by what is loaded."""
        if name := self._framework_of_class(model, loaded):
            return name
        if self.job.hint in loaded:
            return self.job.hint
        if self.module is None and not self.job.path:  # this process may have loaded what the function does not use
            used = author_code.packages_used(model)
            named = [name for name in loaded if set(self.job.recorders[name]) & used]
            loaded = named or ([] if used & {"numpy", "jax"} or len(loaded) > 1 else loaded)
        if len(loaded) > 1:
            raise Refused(
                f"its code loads {' and '.join(loaded)}, and the model is of neither's classes; put each side into a "
                f"file that imports one framework"
            )
        return loaded[0] if loaded else "plain"

    def _framework_of_class(self, model: Any, loaded: list[str]) -> str:
        """Return the backend that a model's classes belong to, or ""."""
        for cls in type(model).__mro__:
            package = cls.__module__.split(".")[0]
            for name in loaded:
                if package in self.job.recorders[name]:
                    return name
        return ""

    def _build(self, precision: str, frameworks: list[str]) -> Any:
        """Return a new model, with the default types and the seeds of these frameworks set."""
        job = self.job
        chosen = [self.recorder] if job.recorder else [self.find_recorder(name) for name in frameworks]
        with ExitStack() as stack:
            for recorder in chosen:
                stack.enter_context(recorder.building(precision, job.seed))
            if job.path:
                offered = {"path": job.path, "dtype": precision, **job.options}
                return author_code.call_with(self.source, offered) if not job.fixed else self.source(Path(job.path))
            return author_code.build_model(job.reference, self.source, job.options, precision, job.seed)

    @property
    def is_built(self) -> bool:
        """Whether the side is a function that returns the model, so that it can be built again."""
        return bool(self.job.path) or author_code.is_builder(self.source, self.job.options)

    # Inputs.

    def own_inputs(self, seed: int) -> Inputs | None:
        """Return the inputs that the author's file draws, or None if it has no function for that."""
        if self.job.path:
            if not self.job.drawn:
                return None
            module, name = self.job.drawn.split(":")
            return author_code.to_inputs(getattr(importlib.import_module(module), name)(seed, self.job.path), "inputs")
        function = getattr(self.module, "inputs", None)
        if not callable(function):
            return None
        return author_code.to_inputs(author_code.call_with(function, {"seed": seed}), f"inputs({seed})")

    def declared(self) -> list[dict[str, Any]] | None:
        """Return name, shape and type of each input that the model declares, or None if it does not."""
        if takes_nothing(self.model):
            return []
        inputs = getattr(self.model, "inputs", None)
        if not isinstance(inputs, (list, tuple)) or not inputs or not all(hasattr(each, "shape") for each in inputs):
            return None
        return [
            {
                "name": str(getattr(each, "name", "")),
                "shape": [None if size is None else int(size) for size in each.shape],
                "dtype": str(getattr(each.dtype, "name", each.dtype)),
            }
            for each in inputs
        ]

    def fitted(self, inputs: Inputs) -> Inputs:
        """Return inputs in the form in which the model is called."""
        forms = call_forms(self.model, inputs)
        return forms[min(self.form, len(forms) - 1)]

    # Recording.

    def record(
        self,
        directory: Path,
        candidates: list[Inputs],
        passes: list[str],
        batches: list[list[Inputs]],
        state: Mapping[str, NDArray] | None,
        say: Callable[[str], None] = lambda text: None,
        gradients: str = "all",
        brief: bool = False,
    ) -> int:
        """Record the model, and write the recording to a directory.

        Args:
            directory: where.
            candidates: inputs; the first that the model accepts are used.
            passes: which of "float64", "float32", "train64" and "train32".
            batches: the inputs of each training step, in the same forms; none if no steps are asked for.
            state: weights that replace the model's own, by name.
            say: told what is being done.
            gradients: of "all" values or of the "parameters", in evaluation; training mode has none.
            brief: whether the outputs are enough of the pass in float32 if there is one in float64.

        Returns:
            which of the candidates was used.
        """
        self.notes = []
        if state is not None:
            self.recorder.write_state(self.model, state)
        if "float32" not in passes and "float64" not in passes:
            passes = ["float32", *passes]
        wanted_wide = bool({"float64", "train64"} & set(passes))
        brief = brief and wanted_wide
        say("recording float32")
        used, first = self._first_pass(candidates, "none" if brief else gradients)
        inputs = candidates[used]
        if isinstance(inputs, Mapping):
            self.notes += how_named(inputs, self.fitted(inputs))
        kept: dict[str, Pass] = {}

        def keep(record: Pass) -> None:
            """Write a pass at once, and forget its numbers: they are many."""
            if record.name in passes or record.name == "float32":
                write_pass(record, directory, tuple(kept))
                kept[record.name] = outline(record)

        weights = self.recorder.read_state(self.model)
        wide = None
        if wanted_wide:
            first = outline(first) if brief else first
            if not brief:
                keep(first)
            say("recording float64")
            wide, second = self._in_float64(inputs, weights, gradients)
            if brief and second is None:
                first = self.recorder.record_pass(self.model, self.fitted(inputs), "float32", gradients)
            if brief:
                keep(first)
            if second is not None:
                keep(second)
            del second
        else:
            keep(first)
        del first
        training = "train64" in passes or "train32" in passes
        if training:
            say("recording training mode")
            for record in self._in_training(inputs, wide if "train64" in passes else None):
                keep(record)
        steps, optimiser = (), {}
        if batches:
            say(f"recording {len(batches)} training steps")
            steps, optimiser = self._steps([several[used] for several in batches], weights, wide is not None)
        if wide is not None and not self.is_built:
            self._restore(weights)
        recording = Recording(
            self.job.reference,
            self.recorder.version(),
            kept,
            steps,
            optimiser,
            tuple(dict.fromkeys([*self.notes, *(note for each in kept.values() for note in each.notes)])),
            self.layout,
        )
        write_summary(recording, directory)
        return used

    def _first_pass(self, candidates: list[Inputs], gradients: str) -> tuple[int, Pass]:
        """Record the first of several forms of the inputs that the model accepts."""
        first: Exception | None = None
        tried = [self.recorder]
        while True:
            for i, inputs in enumerate(candidates):
                for form, given in enumerate(call_forms(self.model, inputs)):
                    self.form = form
                    try:
                        return i, self.recorder.record_pass(self.model, given, "float32", gradients)
                    except Exception as error:
                        plain = isinstance(given, tuple) and not any(isinstance(each, (list, dict)) for each in given)
                        first = error if first is None or (plain and i == 0 and len(tried) == 1) else first
            # A function may be one of another framework than it seemed, or import its framework when it is called.
            new = () if self.job.recorder or self._framework_of_class(self.model, self._frameworks()) else self.others
            new = [each for each in map(self.find_recorder, (*new, *self._late())) if each not in tried]
            if first is None or not new:
                raise first or Refused("there are no inputs to try")
            self.recorder = new[0]
            tried.append(self.recorder)
            self.model = self.recorder.prepare(self.model, "float32")

    def _late(self) -> list[str]:
        """Return the backends that a function loaded after it was taken for one of plain arrays."""
        return self._frameworks() if self.others or self.recorder.FRAMEWORK == "plain" else []

    def _in_float64(self, inputs: Inputs, weights: Mapping[str, NDArray], gradients: str) -> tuple[Any, Pass | None]:
        """Return a model in float64 with these weights, and its pass; (None, None) where float64 is not possible."""
        try:
            model = self._build("float64", self._frameworks()) if self.is_built else self.model
            model = self.recorder.prepare(model, "float64")
            if len(self.recorder.read_state(model)) < len(weights):  # it makes its variables when it is first called
                self.recorder.record_pass(model, self.fitted(inputs), "float64", "none")
            self.recorder.write_state(model, self._matched(self.recorder.read_state(model), weights))
            return model, self.recorder.record_pass(model, self.fitted(inputs), "float64", gradients)
        except Refused:
            raise
        except Exception as error:
            line, _ = author_code.describe_error("", error)
            reason = line.removeprefix(": ").removeprefix("float64 is not possible: ")
            self.notes.append(f"float64 is not possible: {reason}")
            if not self.is_built:
                self._restore(weights)
            return None, None

    def _matched(self, names: Mapping[str, NDArray], weights: Mapping[str, NDArray]) -> dict[str, NDArray]:
        """Return weights under the names of another build of the same model."""
        if set(names) == set(weights):
            return dict(weights)
        pairs = list(zip(names.items(), weights.items(), strict=False))
        wrong = [f"{a} {x.shape} and {b} {y.shape}" for (a, x), (b, y) in pairs if x.shape != y.shape]
        if len(names) != len(weights) or wrong:
            differ = wrong[0] if wrong else f"{len(weights)} arrays and then {len(names)}"
            raise Refused(f"two calls of the function return models with other weights: {differ}")
        return {a: y for (a, _), (_, y) in pairs}

    def _in_training(self, inputs: Inputs, wide: Any) -> list[Pass]:
        """Return a pass in training mode, in float64 if that is possible; none if neither is."""
        tries = [("train64", wide)] if wide is not None else []
        reasons: dict[str, str] = {}
        for name, model in [*tries, ("train32", self.model)]:
            try:
                found = [self.recorder.record_pass(model, self.fitted(inputs), name, "none")]
                break
            except Exception as error:
                reasons[name] = author_code.describe_error("", error)[0].removeprefix(": ")
        else:
            found = []
        if not found and len(set(reasons.values())) == 1:
            self.notes.append(f"training mode is not compared: {reasons['train32']}")
        else:
            words = {"train64": "float64", "train32": "float32"}
            self.notes += [f"training mode is not compared in {words[key]}: {why}" for key, why in reasons.items()]
        return found

    def _steps(self, batches: list[Inputs], weights: Mapping[str, NDArray], wide: bool) -> tuple[tuple, dict]:
        """Record training steps of a new model, in float64 if that is possible."""
        own = {name: getattr(self.module, name, None) for name in ("training", "optimizer", "loss")}
        precision = "float64" if wide else "float32"
        model = self._build(precision, self._frameworks()) if self.is_built else self.model
        model = self.recorder.prepare(model, precision)
        known = self.recorder.read_state(model)
        if len(known) < len(weights):
            self.recorder.record_pass(model, self.fitted(batches[0]), precision, "none")
            known = self.recorder.read_state(model)
        self.recorder.write_state(model, self._matched(known, weights))
        given = [self.fitted(batch) for batch in batches]
        return self.recorder.record_steps(model, given, own["training"], own["optimizer"], own["loss"])

    def _restore(self, weights: Mapping[str, NDArray]) -> None:
        """Give an object of the user its own precision and weights back."""
        self.model = self.recorder.prepare(self.model, "float32")
        self.recorder.write_state(self.model, weights)
