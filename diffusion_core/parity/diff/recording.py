"""What one side of `duet diff` did: its values, operations, parameters and gradients, and the files that hold them.

A recording is a directory:

    recording.json         what was recorded, by which framework, and what could not be recorded
    PASS.json              one pass through the model: its operations in order, each with the values it read and wrote
    PASS.safetensors       the values of that pass, named by their numbers; gradients as "gradient.NUMBER". Parameters
                           that an earlier pass has too are read from its file

Passes are named by what was run: "float64" and "float32" are evaluation passes, "train64" and "train32" passes in
training mode, and "steps" holds training steps (`Step`) without operations.

A *value* is an array that exists once. An operation in place reads one value and writes another, and a view is a value
of its own. A value without an array (an intermediate of a fused operation) is computed when it is needed.

Gradients are those of a loss that does not depend on the layout of the outputs, so that both sides have the same one:
each output y of floats adds ``sum(y**2 / 2 + sin(2 y) / 4) / size``, whose derivative is ``(y + cos(2 y) / 2) / size``.

This module needs NumPy alone: it runs in the interpreter of the model's author.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Layer",
    "Operation",
    "Pass",
    "Recording",
    "Step",
    "gradient_norm",
    "outline",
    "read_pass",
    "read_recording",
    "write_pass",
    "write_recording",
    "write_summary",
]

FORMAT = 1


@dataclass(frozen=True)
class Operation:
    """One operation: what it read, what it wrote, and where it stands in the author's code.

    Attributes:
        kind: a kind of `vocabulary.KINDS`, or "opaque" for an operation that the vocabulary does not know.
        inputs: numbers of the values that it read, in the order of the vocabulary.
        outputs: numbers of the values that it wrote.
        attributes: the attributes of its kind; JSON values only.
        native: the name in its framework, such as "aten.convolution" or "Conv2D".
        layer: the path of the innermost module or layer that called it, such as "mid.attention"; "" is the model.
        source: the line of the author's code that called it, as "file.py:31"; "" if there is none.
        code: the text of that line.
        role: what a simple operation does within a fused one: "mean", "variance", "epsilon", "root", "scale", "shift",
            "logits", "mask" ...; set by `operations.lower`, and guessed by `graph` for code written by hand.
        fused: the kind of the fused operation that it is a part of, such as "group_norm"; "" if none.
    """

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    native: str = ""
    layer: str = ""
    source: str = ""
    code: str = ""
    role: str = ""
    fused: str = ""


@dataclass(frozen=True)
class Layer:
    """One call of a module or layer: its class, its hyper-parameters, and the values that it read and returned."""

    path: str
    type: str
    options: Mapping[str, Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class Pass:
    """One pass through the model.

    Attributes:
        name: "float64", "float32", "train64" or "train32".
        operations: in the order in which they ran.
        values: arrays by number. Values that only a fused operation sees have none.
        inputs: numbers of the model's inputs, in order.
        outputs: numbers of the model's outputs by name; a list or tuple gives "0", "1", and nested ones "0.1".
        parameters: numbers of the trainable and frozen parameters by name.
        buffers: numbers of the other variables by name, such as the running statistics of a BatchNorm.
        frozen: names of parameters that the model declares as not trainable.
        gradients: gradients of the loss above by value number, where the framework has one.
        buffers_after: the buffers after the pass, if it changed them; a list with one entry per repeated pass.
        layers: calls of modules and layers, outermost first.
        notes: what could not be recorded in this pass, one sentence each.
    """

    name: str
    operations: tuple[Operation, ...]
    values: Mapping[int, NDArray]
    inputs: tuple[int, ...]
    outputs: Mapping[str, int]
    parameters: Mapping[str, int] = field(default_factory=dict)
    buffers: Mapping[str, int] = field(default_factory=dict)
    frozen: frozenset[str] = frozenset()
    gradients: Mapping[int, NDArray] = field(default_factory=dict)
    buffers_after: tuple[Mapping[str, NDArray], ...] = ()
    layers: tuple[Layer, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def precision(self) -> type:
        """The floating-point type in which the pass was meant to run."""
        return np.float64 if self.name.endswith("64") else np.float32

    @property
    def training(self) -> bool:
        """Whether the model was in training mode."""
        return self.name.startswith("train")


@dataclass(frozen=True)
class Step:
    """One training step: its loss and what the optimiser read and wrote.

    Attributes:
        loss: the loss before the update.
        learning_rate: the rate of this step; None if unknown.
        gradient_norm: the global norm of the gradients that the optimiser received.
        gradients: by parameter, as the optimiser received them.
        parameters: by name, after the update.
        state: the optimiser's state after the update, as "NAME/exp_avg"; names are those of the framework.
        averages: moving averages of the parameters after the update, if the author keeps any.
    """

    loss: float
    learning_rate: float | None
    gradient_norm: float | None
    gradients: Mapping[str, NDArray]
    parameters: Mapping[str, NDArray]
    state: Mapping[str, NDArray] = field(default_factory=dict)
    averages: Mapping[str, NDArray] = field(default_factory=dict)


def gradient_norm(gradients: Mapping[str, NDArray]) -> float | None:
    """Return the global norm of gradients; None if there are none."""
    if not gradients:
        return None
    return float(np.sqrt(sum(float(np.sum(np.square(g, dtype=np.float64))) for g in gradients.values())))


@dataclass(frozen=True)
class Recording:
    """Everything that one side recorded.

    Attributes:
        reference: what the user named, such as "torch_model.py:build".
        framework: its name and version, such as "torch 2.14.1".
        passes: by name.
        steps: training steps, if they were asked for.
        optimiser: class and hyper-parameters of the optimiser, if there is one.
        notes: what could not be recorded, one sentence each.
        layout: where the framework has channels: "channels_first" or "channels_last".
    """

    reference: str
    framework: str
    passes: Mapping[str, Pass]
    steps: tuple[Step, ...] = ()
    optimiser: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    layout: str = "channels_first"


def outline(record: Pass) -> Pass:
    """Return a pass with its outputs alone, for one that is only shown beside another."""
    numbers = set(record.outputs.values())
    values = {number: array for number, array in record.values.items() if number in numbers}
    return Pass(record.name, (), values, (), record.outputs, notes=record.notes)


def write_recording(recording: Recording, directory: Path) -> None:
    """Write a recording to a directory, which is made if it does not exist."""
    earlier: list[str] = []
    for name, record in recording.passes.items():
        write_pass(record, directory, earlier)
        earlier.append(name)
    write_summary(recording, directory)


def write_summary(recording: Recording, directory: Path) -> None:
    """Write what a recording is and its training steps; its passes may have been written before, one by one."""
    directory.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for i, step in enumerate(recording.steps):
        for part in ("gradients", "parameters", "state", "averages"):
            arrays.update({f"{i}.{part}.{name}": array for name, array in getattr(step, part).items()})
    if recording.steps:
        write_arrays(directory / "steps.safetensors", arrays)
    steps = [[step.loss, step.learning_rate, step.gradient_norm] for step in recording.steps]
    content = {
        "format": FORMAT,
        "reference": recording.reference,
        "framework": recording.framework,
        "passes": list(recording.passes),
        "steps": steps,
        "optimiser": dict(recording.optimiser),
        "notes": list(recording.notes),
        "layout": recording.layout,
    }
    (directory / "recording.json").write_text(json.dumps(content), encoding="utf-8")


def read_recording(directory: Path) -> Recording:
    """Read a recording that `write_recording` wrote."""
    content = json.loads((directory / "recording.json").read_text(encoding="utf-8"))
    if content["format"] != FORMAT:
        raise ValueError(f"{directory}: a recording of format {content['format']}; this Duet reads format {FORMAT}")
    arrays = read_arrays(directory / "steps.safetensors") if content["steps"] else {}
    parts: list[dict[str, dict[str, NDArray]]] = [{} for _ in content["steps"]]
    for key, array in arrays.items():
        index, part, name = key.split(".", 2)
        parts[int(index)].setdefault(part, {})[name] = array
    steps = tuple(
        Step(
            *numbers,
            **{part: found.get(part, {}) for part in ("gradients", "parameters", "state", "averages")},
        )
        for numbers, found in zip(content["steps"], parts, strict=True)
    )
    return Recording(
        content["reference"],
        content["framework"],
        {name: read_pass(directory, name) for name in content["passes"]},
        steps,
        content["optimiser"],
        tuple(content["notes"]),
        content["layout"],
    )


def write_pass(record: Pass, directory: Path, earlier: Sequence[str] = ()) -> None:
    """Write one pass of a recording.

    Args:
        record: the pass.
        directory: where; it is made if it does not exist.
        earlier: passes that were written there before.
    """
    directory.mkdir(parents=True, exist_ok=True)
    same = _written_before(record, directory, earlier)
    arrays = {str(number): array for number, array in record.values.items() if number not in same}
    arrays.update({f"gradient.{number}": array for number, array in record.gradients.items()})
    for i, buffers in enumerate(record.buffers_after):
        arrays.update({f"after.{i}.{name}": array for name, array in buffers.items()})
    write_arrays(directory / f"{record.name}.safetensors", arrays)
    content = {
        "operations": [asdict(operation) for operation in record.operations],
        "inputs": record.inputs,
        "outputs": dict(record.outputs),
        "parameters": dict(record.parameters),
        "buffers": dict(record.buffers),
        "frozen": sorted(record.frozen),
        "same": {str(number): place for number, place in same.items()},
        "repeats": len(record.buffers_after),
        "layers": [asdict(layer) for layer in record.layers],
        "notes": list(record.notes),
    }
    (directory / f"{record.name}.json").write_text(json.dumps(content), encoding="utf-8")


def _written_before(record: Pass, directory: Path, earlier: Sequence[str]) -> dict[int, tuple[str, str]]:
    """Return the pass and the number there of each parameter and buffer that an earlier pass has with these numbers."""
    same: dict[int, tuple[str, str]] = {}
    for name in earlier:
        content = json.loads((directory / f"{name}.json").read_text(encoding="utf-8"))
        known = {**content["parameters"], **content["buffers"]}
        arrays = read_arrays(directory / f"{name}.safetensors")
        for key, number in {**record.parameters, **record.buffers}.items():
            other, mine = arrays.get(str(known.get(key))), record.values.get(number)
            if other is None or mine is None or number in same or other.dtype != mine.dtype:
                continue
            if np.array_equal(other, mine):
                same[number] = (name, str(known[key]))
    return same


def read_pass(directory: Path, name: str) -> Pass:
    """Read one pass of a recording."""
    content = json.loads((directory / f"{name}.json").read_text(encoding="utf-8"))
    arrays = read_arrays(directory / f"{name}.safetensors")
    values, gradients = {}, {}
    after: list[dict[str, NDArray]] = [{} for _ in range(content["repeats"])]
    for key, array in arrays.items():
        head, _, rest = key.partition(".")
        if head == "gradient":
            gradients[int(rest)] = array
        elif head == "after":
            index, _, buffer = rest.partition(".")
            after[int(index)][buffer] = array
        else:
            values[int(head)] = array
    others = {place: read_arrays(directory / f"{place}.safetensors") for place, _ in content.get("same", {}).values()}
    values.update({int(number): others[place][key] for number, (place, key) in content.get("same", {}).items()})

    def fixed(item: dict[str, Any], kind: type) -> Any:
        return kind(**{**item, "inputs": tuple(item["inputs"]), "outputs": tuple(item["outputs"])})

    return Pass(
        name,
        tuple(fixed(item, Operation) for item in content["operations"]),
        values,
        tuple(content["inputs"]),
        content["outputs"],
        content["parameters"],
        content["buffers"],
        frozenset(content["frozen"]),
        gradients,
        tuple(after),
        tuple(fixed(item, Layer) for item in content["layers"]),
        tuple(content.get("notes", ())),
    )


# NumPy's types by their names in safetensors.
_TYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "<i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "<u1", "BOOL": "|b1", "C64": "<c8", "C128": "<c16",
}  # fmt: skip
_NAMES = {np.dtype(code): name for name, code in _TYPES.items()}


def write_arrays(path: Path, arrays: Mapping[str, NDArray]) -> None:
    """Write arrays as a safetensors file: the length of a JSON header, the header, and the bytes in order.

    The package safetensors writes the same; the interpreter of a model's author need not have it.
    """
    header, blocks, offset = {}, [], 0
    for name, array in arrays.items():
        block = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
        end = offset + block.nbytes
        header[name] = {
            "dtype": _NAMES[np.dtype(array.dtype)],
            "shape": list(array.shape),
            "data_offsets": [offset, end],
        }
        blocks.append(block)
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for block in blocks:
            file.write(block.reshape(-1).view(np.uint8))


def read_arrays(path: Path) -> dict[str, NDArray]:
    """Read arrays of a file that `write_arrays` wrote; they are mapped, so that only what is used is read."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    data = np.memmap(path, np.uint8, "r", 8 + length) if path.stat().st_size > 8 + length else np.zeros(0, np.uint8)
    arrays = {}
    for name, item in header.items():
        start, end = item["data_offsets"]
        arrays[name] = np.frombuffer(data[start:end], _TYPES[item["dtype"]]).reshape(item["shape"])
    return arrays
