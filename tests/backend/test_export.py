"""Exported networks compute the same when they are read back, and a failed export leaves nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import call
from safetensors import safe_open

from diffusion_core.backend import reference
from diffusion_core.backend.interface import TrainerState
from diffusion_core.common.errors import DuetError
from diffusion_core.convert.onnx import open_onnx
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks import UNetSpec
from diffusion_core.parity import cases
from diffusion_core.parity.ladder import TOLERANCES, relative
from diffusion_core.runs.checkpoint import Checkpoint, save_checkpoint
from experiments.export.targets import TARGETS

# The target with each backend's own format.
OWN = {"torch": "torch", "tf": "savedmodel"}
SPEC = UNetSpec(8, 1, 1, 8, (1,), 1, (), middle_attention=False, norm_groups=4, num_classes=10)
MODEL = DiffusionModel(SPEC, {"name": "linear", "T": 1000}, "eps")
PROGRAM = MODEL.program
EMA = {name: value.astype(np.float32) for name, value in cases.scattered_weights(PROGRAM).items()}
LAST = {name: np.float32(0.9) * value for name, value in EMA.items()}


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    zeros = {name: np.zeros_like(value) for name, value in EMA.items()}
    return Checkpoint(128, MODEL, 0, TrainerState(LAST, (EMA,), {"moment1": zeros, "moment2": zeros}, 1), {})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, checkpoint: Checkpoint) -> Path:
    """A run directory with that checkpoint."""
    path = tmp_path_factory.mktemp("run")
    save_checkpoint(path / "checkpoints", checkpoint)
    return path


def export(*words: str) -> str:
    """Run the entry point and return its output."""
    code, out, err = call("export_weights", *words)
    assert code == 0, err
    return out


def refused(*words: str) -> str:
    """Check that the entry point refuses its arguments, and return the error."""
    code, _, err = call("export_weights", *words)
    assert code == 2
    (line,) = err.splitlines()
    return line


def own(backend_name: str, run: Path, out: Path, *words: str) -> tuple[str, ...]:
    """Return the arguments that write a backend's own format."""
    target = f"target={OWN[backend_name]}"
    return (
        f"backend={backend_name}",
        target,
        f"checkpoint={run}",
        f"out={out}",
        "backend.device=cpu",
        "backend.threads=1",
        *words,
    )


def inputs(size: int) -> tuple[np.ndarray, ...]:
    batch = cases.cast(cases.noise_batch(PROGRAM, SPEC.image_shape, size), np.float32)
    return batch.images, batch.c_noise, batch.label, batch.features


def forward_of(backend: Any, path: Path) -> Callable[..., np.ndarray]:
    return backend.load_export(PROGRAM, path)


# A backend's own format


@pytest.mark.backend
def test_an_export_computes_the_same_for_any_batch_size(tmp_path, backend_name, open_backend, run):
    out = tmp_path / "new" / "net"
    said = export(*own(backend_name, run, out))
    assert "of the reference" in said and str(out) in said
    assert [path.name for path in out.parent.iterdir()] == ["net"]
    backend = open_backend("float32")
    again, network = forward_of(backend, out), backend.network(PROGRAM, EMA)
    for size in (1, 3):
        assert relative(again(*inputs(size)), network.forward(*inputs(size))) <= 1e-6
        assert again(*inputs(size)).shape == (size, *SPEC.image_shape)
    x, c_noise, label, _ = inputs(2)
    np.testing.assert_array_equal(again(x, c_noise, label), again(*inputs(2)))


@pytest.mark.backend
def test_the_last_weights_are_written_if_requested(tmp_path, backend_name, open_backend, run):
    export(*own(backend_name, run, tmp_path / "net", "weights=weights", "precision=float64", "target.check=1"))
    got = forward_of(open_backend("float64"), tmp_path / "net")(*inputs(2))
    assert relative(got, reference.forward(PROGRAM, LAST, *inputs(2))) <= TOLERANCES["network"].float64
    assert relative(got, reference.forward(PROGRAM, EMA, *inputs(2))) > 1e-2


class Wrong:
    """A backend with a faulty export."""

    def __init__(self, backend: Any, export: Callable[..., None]) -> None:
        self.config, self.network, self.load_export, self.export = (
            backend.config, backend.network, backend.load_export, export
        )  # fmt: skip


@pytest.mark.backend
def test_an_export_that_computes_something_else_is_deleted(tmp_path, backend_name, open_backend, checkpoint):
    backend = open_backend("float32")

    def export(network: Any, path: Path, shape: tuple[int, int, int]) -> None:
        backend.export(backend.network(PROGRAM, LAST), path, shape)

    write = partial(TARGETS["native"], backend=backend_name, form="own")
    given = (lambda name: Wrong(backend, export)), checkpoint, EMA, tmp_path / "net"
    with pytest.raises(DuetError, match=r"differs from the reference by .*was deleted"):
        write(*given)
    assert list(tmp_path.iterdir()) == []
    assert "not compared" in write(*given, check=0)


@pytest.mark.backend
def test_an_interrupted_export_leaves_nothing(tmp_path, backend_name, open_backend, checkpoint):
    def export(network: Any, path: Path, shape: tuple[int, int, int]) -> None:
        path.mkdir()
        (path / "part").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    given = (lambda name: Wrong(open_backend("float32"), export)), checkpoint, EMA, tmp_path / "net"
    with pytest.raises(DuetError, match=r"net: it cannot be written \(No space left on device\)"):
        TARGETS["native"](*given, backend=backend_name, form="own")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.backend
def test_no_file_is_overwritten(tmp_path, backend_name, run):
    (tmp_path / "net").write_text("precious")
    assert "exists already" in refused(*own(backend_name, run, tmp_path / "net"))
    assert [path.read_text() for path in tmp_path.iterdir()] == ["precious"]


def test_a_state_dict_has_the_names_and_the_bits_of_the_checkpoint(tmp_path, run):
    export(*own("torch", run, tmp_path / "net.safetensors"))
    with safe_open(tmp_path / "net.safetensors", "np") as file:
        assert sorted(file.keys()) == sorted(EMA)
        for name, value in EMA.items():
            np.testing.assert_array_equal(file.get_tensor(name), value, strict=True)
        assert file.metadata() == {"program_sha256": PROGRAM.sha256, "image_shape": "8,8,1"}


# ONNX


def test_an_onnx_file_is_written_and_compared(tmp_path, run):
    said = export("target=onnx", f"checkpoint={run}", f"out={tmp_path / 'net.onnx'}")
    assert "of the reference" in said
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
    got = open_onnx(tmp_path / "net.onnx", threads=1)(*inputs(3))
    assert relative(got, reference.forward(PROGRAM, EMA, *inputs(3))) <= TOLERANCES["network"].float32


# Bad input; needs no framework


@pytest.mark.parametrize("name", OWN)
def test_the_backend_of_a_format_is_named(tmp_path, run, name):
    other = next(backend for backend in OWN if backend != name)
    words = f"backend={other}", f"target={OWN[name]}", f"checkpoint={run}", f"out={tmp_path / 'net'}"
    line = refused(*words)
    assert f"backend: {other} was given" in line and f"python3 -m duet export_weights backend={name}" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["target=onx"], ["onx", "onnx"]),
        (["target=onnx", "weights=average"], ["average", "ema, weights"]),
        (["target=onnx", "target.check=many"], ["target.check", "many"]),
        (["target=onnx", "target.chek=1"], ["target.chek"]),
        (["target=onnx", "target.variance=fixed_large"], ["target.variance"]),
        (["target=onnx", "checkpoint=nowhere"], ["nowhere"]),
    ],
    ids=lambda value: " ".join(value) if "=" in value[0] else "",
)
def test_bad_input_is_a_one_line_error(tmp_path, run, words, named):
    line = refused(f"checkpoint={run}", f"out={tmp_path / 'net'}", *words)
    for part in named:
        assert part in line
    assert list(tmp_path.iterdir()) == []
