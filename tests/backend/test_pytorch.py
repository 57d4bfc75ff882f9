"""What is held to PyTorch's own tools and torchvision's, which are there wherever PyTorch is."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from diffusion_core.backend.interface import BackendConfig, Guidance, load_backend
from diffusion_core.common.errors import DuetError
from diffusion_core.images.render import grid
from diffusion_core.model.generate import noise_source, start_noise
from diffusion_core.networks import lower, make_spec
from diffusion_core.networks.flops import multiply_adds
from diffusion_core.networks.weights import initial_weights
from diffusion_core.parity import cases
from diffusion_core.runtime.distributed import ProcessGroup
from diffusion_core.sampling import make_plan

ROOT = Path(__file__).resolve().parents[2]


def test_a_grid_equals_that_of_torchvision() -> None:
    import torch
    from torchvision.utils import make_grid

    images = np.random.default_rng(0).integers(0, 256, (7, 5, 6, 3), np.uint8)
    ours = grid(images, columns=3, pad=2)
    tiled = make_grid(torch.from_numpy(images).permute(0, 3, 1, 2), nrow=3, padding=2, pad_value=int(ours[0, 0, 0]))
    np.testing.assert_array_equal(ours, tiled.permute(1, 2, 0).numpy())


@pytest.mark.parametrize(
    ("architecture", "options"),
    (
        (
            "unet",
            {
                "channels": 8,
                "channel_multipliers": (1, 2),
                "attention_resolutions": (4,),
                "norm_groups": 4,
                "num_classes": 3,
            },
        ),
        ("simple", {"channels": (4, 8, 8)}),
        ("sixteen_step", {"channels": 8, "levels": 2, "embedding": 8}),
    ),
)
def test_multiply_adds_equal_the_count_of_pytorch(architecture: str, options: dict) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    program = lower(make_spec(architecture, image_size=8, **options))
    network = load_backend("torch", BackendConfig("cpu", threads=1)).network(program, initial_weights(program, 0))
    x, t = np.zeros((2, 8, 8, 3), np.float32), np.zeros(2)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as pluralize:  # it knows no other on the CPU
        network.forward(x, t, np.zeros(2, np.int32))
    assert pluralize.get_total_flops() == 2 * 2 * multiply_adds(program, (8, 8, 3))


class Sums:
    """What `torch.distributed` is asked to add up over two processes that hold the same."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.out, self.most = error, 0, 0

    def all_reduce(self, tensor, async_op: bool):
        self.out += 1
        self.most = max(self.most, self.out)

        def wait() -> None:
            self.out -= 1
            if self.error is not None:
                raise self.error
            tensor.mul_(2)

        return type("Work", (), {"wait": staticmethod(wait)})


def joined(monkeypatch: pytest.MonkeyPatch, sums: Sums):
    import torch.distributed

    from backends.torch import parallel

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", sums.all_reduce)
    monkeypatch.setattr(parallel, "_BUCKET_BYTES", 32)
    return parallel.Communicator(ProcessGroup(0, 2, 0, "ddp"), torch.device("cpu"))


def test_few_gradients_are_in_flight_at_once(monkeypatch) -> None:
    import torch

    sums, rng = Sums(), np.random.default_rng(1)
    arrays = [rng.normal(size=shape) for shape in ((3,), (2, 2), (5, 1), (1,), (4, 2), (7,), (6,), (2, 3))]
    added = joined(monkeypatch, sums).all_reduce([torch.tensor(array) for array in arrays])
    for array, found in zip(arrays, added, strict=True):
        np.testing.assert_array_equal(found.numpy(), 2 * array)
    assert sums.most == 3 and sums.out == 0


def test_only_a_broken_connection_is_a_lost_process(monkeypatch) -> None:
    """The words are those of gloo where a process was killed, did not answer, or had done either before."""
    import torch

    for said in (
        "[third_party/gloo/gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:2433: Connection reset by peer.",
        "[third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 4000ms for recv",
        "Application timeout caused pair closure",
    ):
        with pytest.raises(DuetError, match=r"process 0 of 2 lost contact with another process, .* resume=latest"):
            joined(monkeypatch, Sums(RuntimeError(said))).all_reduce([torch.ones(2)])
    with pytest.raises(DuetError, match="lost contact with another process"):
        joined(monkeypatch, Sums(torch.distributed.DistBackendError("NCCL"))).all_reduce([torch.ones(2)])
    for error in (torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("another")):
        with pytest.raises(type(error), match=str(error)):
            joined(monkeypatch, Sums(error)).all_reduce([torch.ones(2)])


@pytest.mark.parametrize(("name", "given"), [("MASTER_ADDR", None), ("MASTER_PORT", None), ("MASTER_PORT", "first")])
def test_a_missing_rendezvous_is_a_one_line_error(monkeypatch, name: str, given: str | None) -> None:
    import torch

    from backends.torch.parallel import Communicator

    for key, value in ({"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"} | {name: given}).items():
        monkeypatch.setenv(key, value) if value else monkeypatch.delenv(key, raising=False)
    with pytest.raises(DuetError, match=f"parallel: {name} is '{given or ''}'; it must be"):
        Communicator(ProcessGroup(0, 2, 0, "ddp"), torch.device("cpu"))


class Replay:
    """`torch.compile` as a CUDA graph has it: what any call gives lies where what an earlier one gave has lain."""

    def __init__(self) -> None:
        self.memory, self.replays = {}, 0

    def __call__(self, function, options: dict | None = None):
        def replay(*inputs):
            self.replays += 1
            output = function(*inputs)
            return self.memory.setdefault(output.shape, output.clone()).copy_(output)

        return function if options is None else replay


_SELF = next(case for case in cases.LOSSES if case.program.self_conditioned)
# A network and a plan: with all that steering has, three estimates kept, two passes at once, and its own last estimate.
_DRAWN = {
    "steered": (cases.PARITY.program, cases.GUIDED),
    "three estimates": (cases.PARITY.program, cases.PLANS["two registers, three estimates"]),
    "guided": (cases.PARITY.program, cases.PLANS["DDIM-20, eta 0.5, guidance 2"]),
    "self-conditioned": (_SELF.program, make_plan(_SELF.objective.process, "ddpm", variance="learned_range")),
}


def drawn(backend, name: str, call=None) -> np.ndarray:
    """Two samples; `call` makes of a network's own function what is called in its place."""
    program, plan = _DRAWN[name]
    shape = _SELF.batch.images.shape[1:] if name == "self-conditioned" else cases.PARITY.spec.image_shape
    networks = [backend.network(program, cases.scattered_weights(program, gain)) for gain in (1.0, 0.7)]
    if call is not None:
        for one in networks:
            one.call = call(one.apply_program)
    telling, index = lower(cases.CLASSIFIER), np.arange(2)
    classifier = backend.network(telling, cases.scattered_weights(telling))
    guidance = Guidance(guide=networks[1], classifier=classifier) if name == "steered" else Guidance()
    start, noise = start_noise(plan, 0, index, shape, np.float32), noise_source(0, index, shape, np.float32)
    return backend.sample(networks[0], plan, start, index.astype(np.int32), noise, None, guidance)


@pytest.mark.parametrize("name", _DRAWN)
def test_samples_stay_when_a_cuda_graph_overwrites_its_output(name: str, monkeypatch) -> None:
    import torch

    from backends.torch.device import capture_cuda_graph

    marks = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marks.append(1))
    backend, replay = load_backend("torch", BackendConfig("cpu", threads=1)), Replay()
    wanted, got = drawn(backend, name), drawn(backend, name, lambda function: capture_cuda_graph(function, replay))
    np.testing.assert_array_equal(got, wanted)
    assert len(marks) == replay.replays >= _DRAWN[name][1].rows
    if name == "steered":  # a fault: what the network gave is not copied before the guide is called
        fault = Replay()
        assert not np.array_equal(drawn(backend, name, lambda function: fault(function, {})), wanted)


@pytest.mark.gpu
@pytest.mark.skipif(not find_spec("torch"), reason="it is about PyTorch; XLA has a whole loop in one graph")
@pytest.mark.parametrize("precision", ("float32", "bf16"))
@pytest.mark.parametrize("name", _DRAWN)
def test_samples_with_cuda_graphs_are_those_of_the_compiled_network(name: str, precision: str) -> None:
    import torch

    backend = load_backend("torch", BackendConfig("cuda", precision, compile=True))
    wanted, got = drawn(backend, name, torch.compile), drawn(backend, name)
    # The first call only compiles, the second records and later ones replay: 4 to 20 rows have all three.
    np.testing.assert_array_equal(got, wanted)


def test_calls_with_gradients_are_not_captured(monkeypatch) -> None:
    import torch

    from backends.torch.device import capture_cuda_graph

    program, backend = cases.PARITY.program, load_backend("torch", BackendConfig("cpu", threads=1))
    batch = cases.cast(cases.noise_batch(program, cases.PARITY.spec.image_shape), np.float32)
    inputs = batch.images, batch.c_noise, batch.label
    network, replay = backend.network(program, cases.scattered_weights(program)), Replay()
    wanted = network.vjp(*inputs, batch.noise)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: None)
    network.call = capture_cuda_graph(network.apply_program, replay)
    for got, one in zip(network.vjp(*inputs, batch.noise), wanted, strict=True):
        np.testing.assert_array_equal(got, one)
    assert not replay.replays
    network.forward(*inputs)
    assert replay.replays == 1


def test_the_compiler_is_not_imported_before_something_is_compiled() -> None:
    """Importing it takes two seconds, which each command would wait for."""
    code = "import sys, backends.torch; print(any(name.startswith('torch._dynamo') for name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
