"""Laws that every backend keeps, whatever it computes with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from diffusion_core.backend import reference
from diffusion_core.backend.interface import (
    BackendConfig,
    Guidance,
    StepCallback,
    TrainBatch,
    TrainerState,
    load_backend,
)
from diffusion_core.common.errors import DuetError, OutOfMemory
from diffusion_core.common.random import Stream, random_words
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.model.generate import generate, noise_source, start_noise
from diffusion_core.networks import Node, Program
from diffusion_core.networks.blocks import (
    GELU,
    Add,
    Attention,
    BatchNorm,
    Conv,
    Dropout,
    Embedding,
    Fourier,
    GroupNorm,
    Linear,
    SiLU,
    Sinusoid,
)
from diffusion_core.networks.weights import Weights
from diffusion_core.optim import ema_update
from diffusion_core.optim.adam import Adam
from diffusion_core.parity import cases, rungs, trace
from diffusion_core.parity.ladder import l2, l2_of_all, relative
from diffusion_core.runs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from diffusion_core.runtime.distributed import ProcessGroup
from diffusion_core.sampling import make_plan

pytestmark = pytest.mark.backend

ROUNDING = {"float64": 1e-12, "float32": 2e-6}
SHAPE, CLASSES = (6, 6, 2), 4


def _conv(inputs: int, outputs: int, kernel: int, bias: bool = True) -> Conv:
    return Conv(inputs, outputs, kernel, 1, (kernel // 2,) * 4, bias, 1.0)


# The smallest network with every kind of parameter and with a time, a class and attention.
TINY = Program(
    (
        Node("sinusoid", Sinusoid(8, 10000.0, 4.0, True), ("c_noise",)),
        Node("time", Linear(8, 8, True, 1.0), ("sinusoid",)),
        Node("class", Embedding(CLASSES + 1, 8), ("label",)),
        Node("embed", Add(1.0), ("time", "class")),
        Node("first", _conv(2, 8, 3), ("x",)),
        Node("norm", GroupNorm(8, 2, 1e-5), ("first",)),
        Node("join", Add(1.0), ("norm", "embed")),
        Node("act", SiLU(), ("join",)),
        # Without bias: the gradient of the bias of the keys is pure rounding noise, which Adam would amplify.
        Node("qkv", _conv(8, 24, 1, bias=False), ("act",)),
        Node("attend", Attention(8, 2), ("qkv",)),
        Node("sum", Add(1.0), ("act", "attend")),
        Node("last", _conv(8, 2, 3), ("sum",)),
    ),
    null_label=CLASSES,
    classes=CLASSES,
)
WEIGHTS = cases.scattered_weights(TINY)
PLAN = make_plan(cases.PARITY.process, "ddim", steps=5, eta=0.7)

# The smallest network with blocks that have a training mode, untrained parameters, features in addition to the class,
# and two more output channels than an image has.
LIVELY = Program(
    (
        Node("fourier", Fourier(8, 0.01, True), ("c_noise",)),
        Node("class", Embedding(CLASSES, 8, zero=True), ("label",)),
        Node("augment", Linear(3, 8, False, 1.0), ("features",)),
        Node("with_class", Add(1.0), ("fourier", "class")),
        Node("embed", Add(1.0), ("with_class", "augment")),
        Node("thinned", Dropout(0.25, 1), ("embed",)),
        # Without bias: the following norm would make its gradient pure rounding noise.
        Node("first", _conv(2, 8, 3, bias=False), ("x",)),
        Node("norm", BatchNorm(8, 1e-3, 0.2), ("first",)),
        Node("join", Add(1.0), ("norm", "thinned")),
        Node("act", GELU(), ("join",)),
        Node("drop", Dropout(0.4, 0), ("act",)),
        Node("last", _conv(8, 4, 3), ("drop",)),
    ),
    null_label=CLASSES,
    classes=CLASSES,
    features=3,
)
LIVELY_WEIGHTS = cases.scattered_weights(LIVELY)
UNTRAINED = ["fourier.frequencies", "norm.mean", "norm.variance"]


@pytest.fixture(params=["float64", "float32"], scope="module")
def backend(request, open_backend) -> Any:
    return open_backend(request.param)


@pytest.fixture(scope="module")
def network(backend) -> Any:
    """One network for all tests of a precision; no test may change it."""
    return backend.network(TINY, WEIGHTS)


@pytest.fixture
def trainer(backend) -> Any:
    return new_trainer(backend)


def new_trainer(backend: Any, state: TrainerState | None = None) -> Any:
    rounded = {name: value.astype(backend.config.host_dtype) for name, value in WEIGHTS.items()}
    return backend.trainer(TINY, state or TrainerState.fresh(rounded), Adam(weight_decay=0.01), "mse")


def new_batch(backend: Any, size: int = 4, program: Program = TINY) -> TrainBatch:
    return cases.cast(cases.noise_batch(program, SHAPE, size), backend.config.host_dtype)


def chosen(batch: TrainBatch, images: Any) -> TrainBatch:
    """Return some images of a batch; all fields but the key have one entry per image."""
    columns = [name for name in batch.arrays if name != "dropout_key"]
    return replace(batch, **{name: getattr(batch, name)[images] for name in columns})


def tolerance(backend: Any) -> float:
    return ROUNDING[backend.config.precision]


def parts(state: TrainerState) -> dict[str, Weights]:
    return {part: dict(arrays) for part, arrays in state.parts.items()}


def assert_same_bits(a: TrainerState, b: TrainerState) -> None:
    assert a.updates == b.updates
    for part, arrays in parts(a).items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, b.parts[part][name], err_msg=f"{part} {name}", strict=True)


# Networks


def test_weights_are_returned_bit_for_bit(backend, network):
    back = network.weights()
    assert list(back) == [p.name for p in TINY.parameters]
    for name, value in WEIGHTS.items():
        np.testing.assert_array_equal(back[name], value.astype(backend.config.host_dtype), strict=True)
        assert back[name].flags.c_contiguous


def test_returned_weights_are_copies(network):
    for value in network.weights().values():
        value[...] = 7
    assert all(np.any(value != 7) for value in network.weights().values())


def test_a_network_copies_its_weights(backend):
    mine = {name: value.astype(backend.config.host_dtype) for name, value in WEIGHTS.items()}
    network, trainer = backend.network(TINY, mine), new_trainer(backend, TrainerState.fresh(mine))
    for value in mine.values():
        value[...] = 7
    for back in (network.weights(), trainer.state().weights, trainer.state().ema):
        assert all(np.any(value != 7) for value in back.values())


@pytest.mark.parametrize("size", [1, 3])
def test_images_of_a_batch_are_independent(backend, network, size):
    batch = new_batch(backend, 4)
    whole = network.forward(batch.images, batch.c_noise, batch.label)
    part = network.forward(batch.images[:size], batch.c_noise[:size], batch.label[:size])
    assert part.shape == (size, *SHAPE) and part.dtype == backend.config.host_dtype
    assert relative(part, whole[:size]) <= tolerance(backend)


def test_strides_do_not_matter(backend, network):
    batch = new_batch(backend)
    wide = np.repeat(batch.images.transpose(2, 0, 3, 1), 2, axis=1)[::-1]
    strided = wide[::-1, ::2].transpose(1, 3, 0, 2)
    assert not strided.flags.c_contiguous
    np.testing.assert_array_equal(strided, batch.images)
    np.testing.assert_array_equal(
        network.forward(strided, batch.c_noise[::-1][::-1], batch.label),
        network.forward(batch.images, batch.c_noise, batch.label),
    )


def test_strides_of_weights_and_of_batches_do_not_matter(backend):
    def strided(array: np.ndarray) -> np.ndarray:
        return np.asfortranarray(array)

    batch = new_batch(backend)
    crooked = replace(batch, **{name: strided(array) for name, array in batch.arrays.items()})
    state = TrainerState.fresh({n: strided(v.astype(backend.config.host_dtype)) for n, v in WEIGHTS.items()})
    (loss, gradients), (same_loss, same_gradients) = (
        new_trainer(backend).gradients(batch), new_trainer(backend, state).gradients(crooked)
    )  # fmt: skip
    assert loss == same_loss
    for name, gradient in gradients.items():
        np.testing.assert_array_equal(gradient, same_gradients[name], strict=True)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda w: w | {"first.weight": w["first.weight"][..., :2]}, "first.weight: the network needs shape"),
        (lambda w: {name: value for name, value in w.items() if name != "time.bias"}, "time.bias.*missing"),
        (lambda w: w | {"third.weight": w["first.weight"]}, "third.weight: no parameter"),
    ],
    ids=["shape", "missing", "surplus"],
)
def test_weights_that_do_not_fit_are_refused(open_backend, change, message):
    backend = open_backend("float32")
    with pytest.raises(DuetError, match=message):
        backend.network(TINY, change(WEIGHTS))
    zeros = {name: np.zeros_like(value) for name, value in WEIGHTS.items()}
    fitting = TrainerState(WEIGHTS, (WEIGHTS, WEIGHTS), {"moment1": zeros, "moment2": zeros}).parts
    for part in ("weights", "ema", "ema1", "moment1", "moment2"):
        with pytest.raises(DuetError, match=message):
            backend.trainer(TINY, TrainerState.from_parts(fitting | {part: change(WEIGHTS)}, 0), Adam(), "mse")
    with pytest.raises(DuetError, match=message):
        new_trainer(backend).update(change(WEIGHTS), 1e-3, (0.9,))


def test_a_network_without_classes_ignores_labels(backend):
    program = cases.BLOCKS[0].program
    assert program.null_label is None
    batch = cases.cast(cases.noise_batch(cases.BLOCKS[0].program, cases.BLOCKS[0].shape), backend.config.host_dtype)
    network = backend.network(program, cases.scattered_weights(program))
    outputs = [network.forward(batch.images, batch.c_noise, np.full(batch.size, k, np.int32)) for k in (0, 3)]
    np.testing.assert_array_equal(*outputs)
    drawn = generate(backend, network, PLAN, cases.BLOCKS[0].shape, [0, 0], seed=1)
    assert np.all(np.isfinite(drawn))
    with pytest.raises(DuetError, match="the network has no classes"):
        generate(backend, network, PLAN.with_guidance(2.0), cases.BLOCKS[0].shape, [0, 0], seed=1)


# Training


def test_a_step_equals_gradients_then_update(backend, trainer):
    batch, halves = new_batch(backend), new_trainer(backend)
    for _ in range(2):
        loss, gradients = halves.gradients(batch)
        norm = halves.update(gradients, 1e-3, (0.9,))
        whole = trainer.step(batch, 1e-3, (0.9,))
        assert relative([float(whole.loss), float(whole.grad_norm)], [loss, norm]) <= tolerance(backend)
    for part, arrays in parts(trainer.state()).items():
        assert l2_of_all(arrays, parts(halves.state())[part]) <= tolerance(backend), part


def test_micro_batches_give_the_step_of_the_whole_batch(backend, trainer):
    batch, cut = new_batch(backend), new_trainer(backend)
    for _ in range(2):
        whole, added = trainer.step(batch, 1e-3, (0.9,)), cut.step(batch, 1e-3, (0.9,), 2)
        assert relative([float(added.loss), float(added.grad_norm)], [float(whole.loss), float(whole.grad_norm)]) <= (
            tolerance(backend)
        )
        assert relative(added.losses(), whole.losses()) <= tolerance(backend)
    for part, arrays in parts(cut.state()).items():
        assert l2_of_all(arrays, parts(trainer.state())[part]) <= tolerance(backend), part


def out_of_memory(backend: Any) -> Exception:
    """Return the out-of-memory error of the framework."""
    return {
        "torch": lambda: import_module("torch").OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\n..."),
        "tf": lambda: import_module("tensorflow").errors.ResourceExhaustedError(None, None, "CUDA out of memory\n..."),
    }[backend.describe().backend]()


def test_running_out_of_memory_is_a_one_line_error_with_advice(backend):
    """Raise the errors of the frameworks, since a test cannot exhaust the memory reliably; other errors pass."""
    advice = r"out of memory; .* trainer\.micro_batch .* sample\.batch .*CUDA"
    with pytest.raises(OutOfMemory, match=advice) as found, backend.context.translate_out_of_memory():
        raise out_of_memory(backend)
    assert "\n" not in str(found.value)
    with pytest.raises(OutOfMemory), backend.context.translate_out_of_memory():
        np.empty(2**55)  # larger than the address space
    with pytest.raises(RuntimeError, match="another"), backend.context.translate_out_of_memory():
        raise RuntimeError("another")


def test_every_computation_reports_running_out_of_memory(backend, trainer, monkeypatch):
    def short(*given: Any, **named: Any) -> None:
        raise out_of_memory(backend)

    batch, state = new_batch(backend), trainer.state()
    network = backend.network(TINY, state.weights)
    images = batch.images, batch.c_noise, batch.label
    with monkeypatch.context() as patch:
        for part in (backend.trainers, backend.losses, backend.networks):
            for name in ("tensors", "build", "to_host"):
                patch.setattr(part, name, short, raising=False)
        for name in ("to_host", "read"):
            patch.setattr(backend.networks.Network, name, short)
        for computes in (
            lambda: new_trainer(backend),
            lambda: backend.network(TINY, state.weights),
            lambda: backend.noised(batch),
            lambda: trainer.gradients(batch),
            lambda: trainer.activations(batch),
            lambda: network.forward(*images),
            lambda: network.vjp(*images, batch.noise),
        ):
            with pytest.raises(OutOfMemory, match=r"out of memory; .* likelihood\.batch"):
                computes()


def test_a_step_that_runs_out_of_memory_changes_nothing_and_can_be_repeated(backend, trainer, monkeypatch):
    """Memory runs out in the last gradient; then the step is repeated with micro-batches."""
    batch, short = new_batch(backend), new_trainer(backend)
    before = short.state()
    with monkeypatch.context() as patch, pytest.raises(OutOfMemory):
        patch.setattr(short, "_loss_and_gradients", ends_in(short._loss_and_gradients, out_of_memory(backend)))
        short.step(batch, 1e-3, (0.9,), 1, True)
    assert_same_bits(short.state(), before)
    for micro_batches in (2, 1):
        losses = [
            float(trainer.step(batch, 1e-3, (0.9,)).loss),
            float(short.step(batch, 1e-3, (0.9,), micro_batches, True).loss),
        ]
        assert relative(*losses) <= tolerance(backend)
    for part, arrays in parts(short.state()).items():
        assert l2_of_all(arrays, parts(trainer.state())[part]) <= tolerance(backend), part


@pytest.mark.parametrize("may_repeat", [False, True])
def test_an_update_that_runs_out_of_memory_is_not_repeated(backend, monkeypatch, may_repeat):
    short = new_trainer(backend)
    patched = ends_in(short._apply, out_of_memory(backend))
    monkeypatch.setattr(short, "_apply", patched)
    monkeypatch.setattr(short, "apply", patched)  # in TensorFlow a graph of it
    with pytest.raises(DuetError, match=r"out of memory; .* incomplete: .* resume=latest \(CUDA") as found:
        short.step(new_batch(backend), 1e-3, (0.9,), 1, may_repeat)
    assert not isinstance(found.value, OutOfMemory)


def test_running_out_of_memory_is_not_taken_for_a_lost_process(backend):
    name = backend.describe().backend
    parallel, memory = import_module(f"backends.{name}.parallel"), out_of_memory(backend)
    lost = {
        "torch": lambda: RuntimeError("gloo: Connection reset by peer"),
        "tf": lambda: import_module("tensorflow").errors.UnavailableError(None, None, "Connection reset by peer"),
    }[name]()
    group = ProcessGroup(0, 2, 0, parallel.KIND)
    with pytest.raises(type(memory)), parallel._report_lost_peers(group):
        raise memory
    with (
        pytest.raises(DuetError, match="process 0 of 2 lost contact with another process"),
        parallel._report_lost_peers(group),
    ):
        raise lost


def ends_in(function: Any, error: Exception) -> Any:
    """Return the function, but let it raise an error after its work is done."""

    def ending(*given: Any) -> None:
        function(*given)
        raise error

    return ending


def test_gradients_change_nothing(backend, trainer):
    before = trainer.state()
    trainer.gradients(new_batch(backend))
    assert_same_bits(trainer.state(), before)


@pytest.mark.parametrize("size", [1, 3])
def test_the_gradient_of_a_batch_is_the_mean_over_its_images(backend, trainer, size):
    batch = new_batch(backend, size)
    loss, gradients = trainer.gradients(batch)
    singles = [trainer.gradients(chosen(batch, [i])) for i in range(size)]
    assert relative(loss, np.mean([one for one, _ in singles])) <= tolerance(backend)
    mean = {name: np.mean([g[name] for _, g in singles], axis=0) for name in gradients}
    assert l2_of_all(gradients, mean) <= tolerance(backend)


def test_classes_outside_the_batch_are_not_trained(backend, trainer):
    batch = replace(new_batch(backend), label=np.array([1, CLASSES, 1, 3], np.int32))
    _, gradients = trainer.gradients(batch)
    taught = np.any(gradients["class.weight"] != 0, axis=1)
    assert list(taught) == [False, True, False, True, True]


def test_a_step_does_not_change_its_inputs(backend, trainer):
    batch, weights = new_batch(backend), {n: v.astype(backend.config.host_dtype) for n, v in WEIGHTS.items()}
    given = {name: array.copy() for name, array in batch.arrays.items()}
    state = TrainerState.fresh(weights)
    kept = {part: {n: v.copy() for n, v in arrays.items()} for part, arrays in parts(state).items()}
    other = new_trainer(backend, state)
    other.step(batch, 1e-2, (0.5,))
    _, gradients = other.gradients(batch)
    copies = {name: value.copy() for name, value in gradients.items()}
    other.update(gradients, 1e-2, (0.5,))
    backend.noised(batch)
    for name, value in given.items():
        np.testing.assert_array_equal(getattr(batch, name), value, err_msg=name)
    for part, arrays in kept.items():
        assert all(np.array_equal(state.parts[part][name], value) for name, value in arrays.items()), part
    assert all(np.array_equal(gradients[name], value) for name, value in copies.items())


def test_a_state_is_a_copy(backend, trainer):
    batch = new_batch(backend)
    trainer.step(batch, 1e-3, (0.9,))
    first = trainer.state()
    copies = {part: {n: v.copy() for n, v in arrays.items()} for part, arrays in parts(first).items()}
    kept = TrainerState.from_parts(copies, first.updates)
    trainer.step(batch, 1e-3, (0.9,))
    assert_same_bits(first, kept)
    second = trainer.state()
    assert second.updates == 2 and l2_of_all(second.weights, first.weights) > 1e-4
    for arrays in parts(trainer.state()).values():
        for value in arrays.values():
            value[...] = 7
    assert_same_bits(trainer.state(), second)


def test_the_average_follows_its_formula(backend, trainer):
    batch = new_batch(backend)
    average = {name: value.astype(np.float64) for name, value in trainer.state().ema.items()}
    for decay in (0.9, 0.5, 0.0):
        trainer.step(batch, 1e-2, (decay,))
        state = trainer.state()
        average = ema_update(average, {n: v.astype(np.float64) for n, v in state.weights.items()}, decay)
        assert l2_of_all(state.ema, average) <= tolerance(backend)
    assert l2_of_all(state.ema, state.weights) <= tolerance(backend)


def test_each_average_follows_its_own_decay_independently(backend, trainer):
    batch, decays = new_batch(backend), [(0.9, 0.5, 0.0), (0.3, 0.99, 0.0)]
    several = new_trainer(backend, TrainerState.fresh(trainer.state().weights, 3))
    for given in decays:
        several.step(batch, 1e-2, given)
        trainer.step(batch, 1e-2, given[:1])
    state = several.state()
    assert_same_bits(replace(state, averages=state.averages[:1]), trainer.state())
    assert l2_of_all(state.averages[2], state.weights) <= tolerance(backend)
    assert all(l2_of_all(state.averages[i], state.averages[j]) > 1e-4 for i, j in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize("given", [(), (0.9, 0.5), (0.9, 0.5, 0.1, 0.2)])
def test_the_number_of_decays_must_match_the_averages(backend, given):
    trainer = new_trainer(backend, TrainerState.fresh(new_trainer(backend).state().weights, 3))
    before = trainer.state()
    with pytest.raises(DuetError, match=rf"averages: {len(given)} decays were given, but the trainer keeps 3 averages"):
        trainer.step(new_batch(backend), 1e-2, given)
    assert_same_bits(trainer.state(), before)


def test_an_average_samples_like_a_network_with_its_weights(backend, trainer):
    for _ in range(3):
        trainer.step(new_batch(backend), 1e-2, (0.9,))
    state = trainer.state()
    images = [
        generate(backend, backend.network(TINY, weights), PLAN, SHAPE, [1, 2], seed=3)
        for weights in (state.ema, dict(reversed(state.ema.items())), state.weights)
    ]
    np.testing.assert_array_equal(images[0], images[1])
    assert np.abs(images[0] - images[2]).max() > 1e-3


def test_one_batch_can_be_overfitted(backend, trainer):
    batch = new_batch(backend)
    losses = [float(trainer.step(batch, 1e-2, (0.9,)).loss) for _ in range(60)]
    assert losses[-1] < 0.3 * losses[0]


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(backend, trainer, tmp_path, monkeypatch):
    # Even a small UNet takes ten times as long to trace.
    monkeypatch.setattr(DiffusionModel, "program", property(lambda self: TINY))
    model, batch = cases.PARITY, new_batch(backend)
    whole = new_trainer(backend, TrainerState.fresh(trainer.state().weights, 2))

    def steps(trainer: Any, count: int) -> list[float]:
        return [float(trainer.step(batch, 1e-3, (0.9, 0.6)).loss) for _ in range(count)]

    losses = steps(whole, 3)
    path = save_checkpoint(tmp_path, Checkpoint(12, model, 5, whole.state(), {}))
    losses += steps(whole, 3)

    read = load_checkpoint(path, model.program)
    assert read.state.updates == 3
    resumed = new_trainer(backend, read.state)
    assert_same_bits(resumed.state(), read.state)
    assert steps(resumed, 3) == losses[3:]
    assert_same_bits(resumed.state(), whole.state())


# Large images


def test_a_norm_of_a_large_image_is_as_precise_as_one_of_a_small(backend):
    """A sum over a group of 500,000 elements, computed one by one, loses one or two digits."""
    program = Program((Node("norm", GroupNorm(32, 4, 1e-5), ("x",)),))
    weights = {n: v.astype(backend.config.host_dtype) for n, v in cases.scattered_weights(program).items()}
    images = Stream(0, "large").normal([0], (256, 256, 32), dtype=backend.config.host_dtype)
    inputs = images, np.zeros(1), np.zeros(1, np.int32)
    got, wanted = backend.network(program, weights).forward(*inputs), reference.forward(program, weights, *inputs)
    assert relative(got, wanted) <= tolerance(backend)


# Blocks with a training mode


@pytest.mark.parametrize("n, row", [(1, 0), (4, 3), (7, 1), (30, 2**31)])
@pytest.mark.parametrize("key", [(0, 0), (2**32 - 1, 2**32 - 1), (0x9E3779B9, 0x80000000)])
def test_random_words_equal_those_of_the_core(backend, key, n, row):
    index = np.array([0, 1, 2**24 + 1, 2**31, 2**32 - 1, 2**32, 3 * 2**33 + 5, 2**63 - 1])
    batch = replace(new_batch(backend, len(index)), positions=index, dropout_key=np.array(key))
    package = type(backend).__module__
    # As in a training step: the positions must reach the device with all 64 bits.
    b = import_module(f"{package}.loss").batch_tensors(batch, backend.context)
    got = np.asarray(import_module(f"{package}.random").random_words(b.dropout_key, b.positions, n, row))
    np.testing.assert_array_equal(got, random_words(key, index, n, row))


@pytest.fixture(scope="module")
def evaluated(backend) -> Any:
    return backend.network(LIVELY, LIVELY_WEIGHTS)


@pytest.mark.parametrize("images", [[0, 1, 2, 3], [2], [3, 0]])
def test_evaluation_matches_the_reference_for_any_batch_size(backend, evaluated, images):
    batch = chosen(new_batch(backend, program=LIVELY), images)
    inputs = batch.images, batch.c_noise, batch.label, batch.features
    weights = {name: value.astype(backend.config.host_dtype) for name, value in LIVELY_WEIGHTS.items()}
    assert relative(evaluated.forward(*inputs), reference.forward(LIVELY, weights, *inputs)) <= tolerance(backend)
    np.testing.assert_array_equal(evaluated.forward(*inputs), evaluated.forward(*inputs))


def test_features_reach_the_network_and_missing_ones_are_zeros(backend, evaluated):
    batch = new_batch(backend, program=LIVELY)
    inputs = batch.images, batch.c_noise, batch.label
    bare, given = evaluated.forward(*inputs), evaluated.forward(*inputs, batch.features)
    np.testing.assert_array_equal(bare, evaluated.forward(*inputs, np.zeros_like(batch.features)))
    assert all(l2(given[i], bare[i]) > 1e-3 for i in range(batch.size))
    exchanged = evaluated.forward(*inputs, batch.features[[1, 0, 2, 3]])
    assert [bool(np.any(exchanged[i] != given[i])) for i in range(4)] == [True, True, False, False]


def test_sampling_runs_in_evaluation_and_uses_the_first_channels(backend, evaluated):
    labels = np.arange(5) % (CLASSES + 1)
    whole = generate(backend, evaluated, PLAN, SHAPE, labels, seed=3, batch=5)
    in_twos = generate(backend, evaluated, PLAN, SHAPE, labels, seed=3, batch=2)
    assert np.abs(whole - in_twos).max() <= 100 * tolerance(backend)
    narrow = replace(LIVELY, nodes=(*LIVELY.nodes[:-1], Node("last", _conv(8, 2, 3), ("drop",))))
    cut = LIVELY_WEIGHTS | {name: LIVELY_WEIGHTS[name][:2] for name in ("last.weight", "last.bias")}
    other = generate(backend, backend.network(narrow, cut), PLAN, SHAPE, labels, seed=3, batch=5)
    assert np.abs(whole - other).max() <= 100 * tolerance(backend)


def lively_trainer(backend: Any, state: TrainerState | None = None, program: Program = LIVELY) -> Any:
    rounded = {n: v.astype(backend.config.host_dtype) for n, v in cases.scattered_weights(program).items()}
    return backend.trainer(program, state or TrainerState.fresh(rounded, len(DECAYS)), Adam(), "mse")


@dataclass(frozen=True)
class Walk:
    """A few training steps: every state, starting before the first step, and the batch and loss of each."""

    trainer: Any
    states: list[TrainerState]
    batches: list[TrainBatch]
    losses: list[float]


DECAYS = (0.7, 0.4)


@pytest.fixture(scope="module")
def walk(backend) -> Walk:
    """Three steps of the lively network, later ones at positions above 2^32; nothing may go on from its trainer."""
    trainer, batch = lively_trainer(backend), new_batch(backend, program=LIVELY)
    walked = Walk(trainer, [trainer.state()], [], [])
    for step in range(3):
        moved = replace(batch, images=batch.images * (1 + step), positions=batch.positions + step * (2**32 + 4))
        walked.batches.append(moved)
        walked.losses.append(float(trainer.step(moved, 1e-2, DECAYS).loss))
        walked.states.append(trainer.state())
    return walked


def test_running_statistics_and_losses_match_the_reference_at_every_step(backend, walk):
    for before, batch, loss, after in zip(walk.states, walk.batches, walk.losses, walk.states[1:], strict=False):
        expected, moved = reference.training_pass(LIVELY, before.weights, batch, "mse")
        assert relative(loss, expected) <= tolerance(backend)
        assert set(moved) == {"norm.mean", "norm.variance"}
        for name, value in moved.items():
            assert relative(after.weights[name], value) <= tolerance(backend), name
            assert l2(after.weights[name], before.weights[name]) > 1e-3, name


def test_the_average_includes_running_statistics(backend, walk):
    for before, after in zip(walk.states, walk.states[1:], strict=False):
        for old, new, decay in zip(before.averages, after.averages, DECAYS, strict=True):
            wide = [{n: v.astype(np.float64) for n, v in part.items()} for part in (old, after.weights)]
            for name, value in ema_update(*wide, decay).items():
                assert relative(new[name], value) <= tolerance(backend), name
    last = walk.states[-1]
    apart = [*last.averages, last.weights]
    for one, other in pairwise(apart):
        assert all(l2(one[name], other[name]) > 1e-3 for name in ("norm.mean", "norm.variance"))


def test_the_optimiser_does_not_change_untrained_parameters(walk):
    first, last = walk.states[0], walk.states[-1]
    for part in ("weights", "ema"):
        np.testing.assert_array_equal(
            getattr(last, part)["fourier.frequencies"], first.weights["fourier.frequencies"], strict=True
        )
    for name, moment in last.slots["moment1"].items():
        is_still = not np.any(moment) and not np.any(last.slots["moment2"][name])
        assert is_still == (name in UNTRAINED), name


def test_output_channels_beyond_those_of_the_image_are_not_trained(walk):
    first, last = walk.states[0], walk.states[-1]
    for name in ("last.weight", "last.bias"):
        np.testing.assert_array_equal(last.weights[name][2:], first.weights[name][2:])
        assert np.all(last.weights[name][:2] != first.weights[name][:2])
        assert not np.any(last.slots["moment2"][name][2:])


def test_a_resumed_run_with_running_statistics_and_dropout_equals_an_uninterrupted_one(backend, walk):
    resumed = lively_trainer(backend, walk.states[1])
    assert_same_bits(resumed.state(), walk.states[1])
    for step in (1, 2):
        assert float(resumed.step(walk.batches[step], 1e-2, DECAYS).loss) == walk.losses[step]
        assert_same_bits(resumed.state(), walk.states[step + 1])


def test_gradients_with_a_training_mode_change_no_state(backend, walk):
    batch, before = walk.batches[0], walk.trainer.state()
    loss, gradients = walk.trainer.gradients(batch)
    assert list(gradients) == [p.name for p in LIVELY.trained] == [n for n in before.weights if n not in UNTRAINED]
    assert_same_bits(walk.trainer.state(), before)
    again, same = walk.trainer.gradients(batch)
    assert loss == again and all(np.array_equal(gradients[name], same[name]) for name in gradients)
    assert relative(loss, reference.loss(LIVELY, before.weights, batch, "mse")) <= tolerance(backend)
    for name in ("last.weight", "last.bias"):
        assert np.any(gradients[name][:2]) and not np.any(gradients[name][2:])


def test_dropout_depends_on_the_position_of_an_image_not_on_its_batch(backend):
    # Without the norm, through which the images of a batch interact.
    nodes = tuple(replace(n, block=GroupNorm(8, 2, 1e-5)) if n.name == "norm" else n for n in LIVELY.nodes)
    trainer = lively_trainer(backend, program=replace(LIVELY, nodes=nodes))
    batch = replace(new_batch(backend, program=LIVELY), positions=np.array([2**32 + 1, 0, 77, 5]))
    loss, gradients = trainer.gradients(batch)
    for store_parts in ([[0, 1], [2, 3]], [[3, 1], [0, 2]]):
        halves = [trainer.gradients(chosen(batch, images)) for images in store_parts]
        assert relative(loss, np.mean([half for half, _ in halves])) <= tolerance(backend)
        mean = {name: np.mean([g[name] for _, g in halves], axis=0) for name in gradients}
        assert l2_of_all(gradients, mean) <= tolerance(backend)
    for other in (
        replace(batch, positions=np.array([1, 0, 77, 5])),
        replace(batch, dropout_key=batch.dropout_key[::-1]),
        replace(batch, dropout_key=batch.dropout_key ^ 1),
    ):
        assert l2_of_all(trainer.gradients(other)[1], gradients) > 1e-2


# Sampling


def test_a_sample_is_the_same_in_any_batch(backend, network):
    labels = np.arange(5) % (CLASSES + 1)
    whole = generate(backend, network, PLAN, SHAPE, labels, seed=3, batch=5)
    in_twos = generate(backend, network, PLAN, SHAPE, labels, seed=3, batch=2)
    assert np.abs(whole - in_twos).max() <= 100 * tolerance(backend)
    later = generate(backend, network, PLAN, SHAPE, labels[3:], seed=3, first=3, batch=1)
    assert np.abs(whole[3:] - later).max() <= 100 * tolerance(backend)
    assert np.abs(whole[:2] - later).max() > 0.1


def test_a_sample_has_the_same_bits_in_any_batch_if_the_network_is_ignored(backend, network):
    silent = replace(PLAN, c_out=np.zeros(PLAN.rows), clip=None)
    labels = np.zeros(5, int)
    whole = generate(backend, network, silent, SHAPE, labels, seed=3, batch=5)
    np.testing.assert_array_equal(generate(backend, network, silent, SHAPE, labels, seed=3, batch=2), whole)
    np.testing.assert_array_equal(generate(backend, network, silent, SHAPE, labels[2:], seed=3, first=2), whole[2:])


def guided(backend: Any, network: Any, weight: float, labels: list[int]) -> np.ndarray:
    plan = replace(PLAN, clip=None).with_guidance(weight)
    return generate(backend, network, plan, SHAPE, labels, seed=3)


def test_guidance_is_linear_between_no_class_and_class(backend, network):
    labels, nothing = [0, 3], [CLASSES, CLASSES]
    size = 100 * tolerance(backend)
    with_class, without = guided(backend, network, 1.0, labels), guided(backend, network, 1.0, nothing)
    assert relative(guided(backend, network, 0.0, labels), without) <= size
    assert relative(guided(backend, network, np.nextafter(1.0, 2.0), labels), with_class) <= size
    # For "no class", both ends of the line are the same point.
    assert relative(guided(backend, network, 3.0, nothing), without) <= size
    assert relative(guided(backend, network, 2.0, labels), with_class) > 1e-3


def test_a_network_that_guides_itself_changes_nothing(backend, network):
    plan, labels = replace(PLAN, clip=None), [0, 3]
    itself = generate(
        backend, network, plan.with_guidance(3.0), SHAPE, labels, seed=3, guidance=Guidance(guide=network)
    )
    assert relative(itself, generate(backend, network, plan, SHAPE, labels, seed=3)) <= 100 * tolerance(backend)


def test_a_callback_sees_every_row_and_cannot_change_the_state(backend, network):
    rows: list[int] = []
    last: list[np.ndarray] = []

    def callback(row: int, x: np.ndarray, estimate: np.ndarray) -> None:
        assert x.shape == estimate.shape == (2, *SHAPE)
        rows.append(row)
        last[:] = [x.copy()]
        x[...] = estimate[...] = np.nan

    plain = generate(backend, network, PLAN, SHAPE, [0, 1], seed=3)
    np.testing.assert_array_equal(
        generate(backend, network, PLAN, SHAPE, [0, 1], seed=3, callback=StepCallback(callback)), plain
    )
    np.testing.assert_array_equal(last[0], plain)
    assert rows == list(range(PLAN.rows))


def test_a_callback_on_some_rows_sees_only_those(backend, network):
    seen: dict[str, dict[int, np.ndarray]] = {"all": {}, "some": {}}

    def watcher(name: str, rows: Any) -> StepCallback:
        return StepCallback(lambda row, x, estimate: seen[name].update({row: np.stack([x, estimate])}), rows)

    for name, rows in (("all", None), ("some", {1, 3})):
        generate(backend, network, PLAN, SHAPE, [0, 1], seed=3, callback=watcher(name, rows))
    assert list(seen["some"]) == [1, 3] and list(seen["all"]) == list(range(PLAN.rows))
    for row, states in seen["some"].items():
        np.testing.assert_array_equal(states, seen["all"][row])


def test_nothing_waits_for_the_device_between_rows(backend_name, backend, network, monkeypatch):
    """Converting a tensor to a Python bool waits for everything that was computed before it."""
    wanted = generate(backend, network, PLAN, SHAPE, [0, 1], seed=3)
    tensor = {
        "torch": lambda: import_module("torch").Tensor,
        "tf": lambda: type(import_module("tensorflow").constant(True)),
    }[backend_name]()
    asked = []
    monkeypatch.setattr(tensor, "__bool__", lambda one: asked.append(one) or bool(one.numpy()))
    np.testing.assert_array_equal(generate(backend, network, PLAN, SHAPE, [0, 1], seed=3), wanted)
    assert not asked


def test_sampling_does_not_change_its_inputs(backend, network):
    dtype = backend.config.host_dtype
    start, noise = np.ones((2, *SHAPE), dtype), np.full((2, *SHAPE), 0.5, dtype)
    label = np.array([0, 1], np.int32)
    backend.sample(network, PLAN, start, label, lambda row: noise)
    assert np.all(start == 1) and np.all(noise == 0.5) and list(label) == [0, 1]


# Precision, compilation, devices


def test_bfloat16_is_near_the_reference_and_learns(open_backend):
    backend = open_backend("bf16")
    batch = new_batch(backend)
    got = backend.network(TINY, WEIGHTS).forward(batch.images, batch.c_noise, batch.label)
    error = l2(got, reference.forward(TINY, WEIGHTS, batch.images, batch.c_noise, batch.label))
    assert got.dtype == np.float32
    # Below 1e-4 it would not be bfloat16 at all.
    assert 1e-4 < error < 2e-2
    trainer = new_trainer(backend)
    losses = [float(trainer.step(batch, 1e-2, (0.9,)).loss) for _ in range(60)]
    assert losses[-1] < 0.4 * losses[0]
    assert all(value.dtype == np.float32 for value in trainer.state().weights.values())


def test_a_missing_device_is_a_one_line_error(backend_name, open_backend):
    if open_backend("float32", device="auto").describe().device.startswith("cpu"):
        with pytest.raises(DuetError, match=r"^backend\.device: cuda was given, but .* finds no CUDA device"):
            load_backend(backend_name, BackendConfig(device="cuda"))
    else:
        assert not open_backend("float32", device="cuda").describe().device.startswith("cpu")


@pytest.mark.parametrize("precision", ["float64", "float32", "bf16"])
def test_a_backend_describes_its_device(backend_name, open_backend, precision):
    description = open_backend(precision).describe()
    line = description.line()
    assert line.startswith(f"{backend_name}: cpu, 1 thread, {precision}, ")
    assert description.threads == 1 and description.backend == backend_name
    assert len(description.versions) >= 3 and all(version in line for version in description.versions.values())


def test_an_unknown_backend_is_a_one_line_error():
    with pytest.raises(DuetError, match=r"backend: 'torhc' was given.*Did you mean 'torch'"):
        load_backend("torhc", BackendConfig())


def test_peak_memory_is_that_of_a_process_with_a_framework(open_backend):
    assert 50 < open_backend("float32").peak_memory_mib() < 1e6


# torch.compile takes a minute where nothing is cached, XLA some seconds.
@pytest.mark.slow if find_spec("torch") else lambda test: test
def test_compiled_training_matches_uncompiled(open_backend):
    plain, compiled = open_backend("float32"), open_backend("float32", compile=True)
    assert compiled.describe().mode != plain.describe().mode
    batch = new_batch(plain)
    outputs = [b.network(TINY, WEIGHTS).forward(batch.images, batch.c_noise, batch.label) for b in (plain, compiled)]
    assert relative(outputs[1], outputs[0]) <= 1e-5
    trainers = [new_trainer(b) for b in (plain, compiled)]
    for _ in range(3):
        losses = [float(trainer.step(batch, 1e-3, (0.9,)).loss) for trainer in trainers]
        assert relative(losses[1], losses[0]) <= 1e-6
    assert l2_of_all(trainers[1].state().weights, trainers[0].state().weights) <= 1e-6


@pytest.mark.slow if find_spec("torch") else lambda test: test
def test_compiled_samples_match_the_reference(open_backend):
    # Every column of a plan in use, with and without guidance and noise, bounded by a quantile.
    plan = replace(cases.PLANS["two registers, three estimates"], clip=1.0, threshold=0.9, rescale=0.5)
    compiled = open_backend("float64", compile=True)
    network = compiled.network(TINY, WEIGHTS)
    labels, index = np.array([0, 3], np.int32), np.arange(2)
    start, noise = start_noise(plan, 3, index, SHAPE, float), noise_source(3, index, SHAPE, float)
    wanted = reference.sample(TINY, WEIGHTS, plan, start, labels, noise)
    got = compiled.sample(network, plan, start, labels, noise)
    assert np.abs(got - wanted).max() <= 1e-10
    nothing = StepCallback(lambda row, x, estimate: None)
    np.testing.assert_array_equal(compiled.sample(network, plan, start, labels, noise, nothing), got)


# Led by a weaker network and a classifier, over a known half. Half a minute with XLA, minutes with torch.compile:
# pytest -m slow -k compiled_and_led
@pytest.mark.slow
def test_compiled_guided_samples_match_the_reference(open_backend):
    climbed = trace.Trace("this", "float64")
    rungs.guidance(open_backend("float64", compile=True), climbed)
    assert [one.name for one in climbed.checks] == ["classifier", "steered"]
    assert all(one.error <= one.tolerance for one in climbed.checks)


# As a compiler may have no kernel for the gradient of a block; two minutes: pytest -m slow -k compiled_gradients
@pytest.mark.slow
@pytest.mark.parametrize("case", cases.BLOCKS, ids=lambda case: case.name)
def test_compiled_gradients_of_every_block_match(open_backend, case):
    weights, batch = cases.scattered_weights(case.program), cases.noise_batch(case.program, case.shape, 2)
    plain, compiled = (
        backend.trainer(case.program, TrainerState.fresh(weights), Adam(), "mse").gradients(batch)[1]
        for backend in (open_backend("float64"), open_backend("float64", compile=True))
    )
    assert l2_of_all(compiled, plain) <= 1e-12
