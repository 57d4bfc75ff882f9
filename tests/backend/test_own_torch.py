"""Own networks in PyTorch: every form that a network has there, its training, and what its user sees of a mistake."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import duet
from diffusion_core.backend.interface import BackendConfig, load_backend
from diffusion_core.common.errors import DuetError
from diffusion_core.likelihood import dequantize, flow_density
from experiments.runtime.teacher import load_teacher

pytestmark = [
    pytest.mark.backend,
    pytest.mark.skipif(not find_spec("torch"), reason="it is about PyTorch"),
]
if find_spec("torch"):
    import torch
    from torch import nn

    class Net(nn.Module):
        """Everything that a training must keep: a frozen and a tied weight, statistics, dropout, tables."""

        def __init__(self, classes: int = 3) -> None:
            super().__init__()
            self.first = nn.Conv2d(2, 4, 3, padding=1, bias=False)
            self.norm = nn.BatchNorm2d(4)
            self.drop = nn.Dropout(0.2)
            self.last = nn.Conv2d(4, 2, 3, padding=1)
            self.also_last = self.last  # one module by two names
            self.table = nn.Embedding(classes + 1, 4)
            self.frozen = nn.Parameter(torch.ones(4), requires_grad=False)
            self.tied = nn.Linear(4, 4, bias=False)
            self.again = nn.Linear(4, 4, bias=False)
            self.again.weight = self.tied.weight
            self.register_buffer("order", torch.arange(4))
            self.register_buffer("scale", torch.ones(1))
            self.register_buffer("frequencies", torch.tensor([1.0, 0.5, 0.2, 0.1]), persistent=False)

        def forward(self, x: Any, t: Any, label: Any = None) -> Any:
            h = self.norm(self.first(x)) * self.frozen[:, None, None]
            embedded = torch.sin(t[:, None] * self.frequencies[self.order].to(x.dtype))
            if label is not None:
                embedded = embedded + self.table(label)
            h = h + self.again(torch.relu(self.tied(embedded)))[:, :, None, None]
            if self.training:  # a buffer that is replaced, not updated in place
                self.scale = 0.9 * self.scale + 0.1 * h.detach().std()
            return self.last(self.drop(torch.relu(h / self.scale)))


PROCESS = duet.process("cosine", "v", T=100)


def network(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return Net().double()


@pytest.fixture(scope="module")
def data() -> Any:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 4, 4, 2), np.uint8)
    return duet.load_dataset(pixels, labels=np.arange(24) % 3, layout="channels_last")


TRAINING: dict[str, Any] = {
    "images": 48, "batch": 8, "lr": 1e-2, "label_dropout": 0.2, "quiet": True, "samples": 2, "seed": 3, "threads": 1,
    "device": "cpu", "sampler": {"name": "ddim", "steps": 2},
}  # fmt: skip


@pytest.fixture(scope="module")
def run(data: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    """Return (the network that was given, its run, the directory)."""
    out, given = tmp_path_factory.mktemp("run") / "own", network()
    return given, duet.train(given, PROCESS, data, out=out, checkpoint_images=24, log_images=8, **TRAINING), out


def test_training_leaves_the_module_and_the_random_numbers_of_the_process_alone(run: Any, data: Any) -> None:
    module, fresh = run[0], network()
    assert module.training and all(parameter.grad is None for parameter in module.parameters())
    for name, value in fresh.state_dict().items():
        assert torch.equal(value, module.state_dict()[name]), name
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    duet.train(module, PROCESS, data, **{**TRAINING, "images": 8})
    assert torch.equal(torch.rand(3), wanted)


def test_a_run_of_an_own_network_teaches_the_same_network(run: Any, data: Any) -> None:
    module, trained, out = run
    with pytest.raises(DuetError, match=r"^objective.teacher: network: .* is of an own network"):
        load_teacher(str(out))
    student = duet.process("edm", "edm", sigma_min=0.05, sigma_max=20.0, boundary=0.05)
    options = {**TRAINING, "images": 8, "sampler": {"name": "consistency", "steps": 1}, "classes": 3}
    taught = duet.train(module, student, data, objective="consistency_distillation", teacher=out, **options)
    teacher = load_teacher(str(out), own=duet.adapt(module))
    for name, array in trained.state.ema.items():
        np.testing.assert_array_equal(teacher.network.weights[name], array)
    assert taught.notes["trained_for"]["objective"]["teacher"] == teacher.network.sha256


def losses_of(out: Path) -> list[float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_an_own_loop_with_the_loss_follows_the_training_step_by_step(run: Any, data: Any) -> None:
    module, (_, trained, out) = network(), run
    optimiser = torch.optim.AdamW(module.parameters(), lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    losses = []
    for one in duet.batches(data, batch=8, images=48, seed=3, layout="channels_first", precision="float64"):
        loss = duet.loss(
            module, torch.from_numpy(one.images), PROCESS, labels=one.labels, seed=3, step=one.step, classes=3,
            label_dropout=0.2,
        )  # fmt: skip
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()
        losses.append(float(loss.detach()))
    np.testing.assert_allclose(losses, losses_of(out), rtol=1e-12)
    state = trained.network("weights").state_dict()
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            np.testing.assert_allclose(state[name].numpy(), value.numpy(), rtol=1e-10, atol=1e-12, err_msg=name)


def test_a_run_resumes_bit_for_bit(run: Any, data: Any, tmp_path: Path) -> None:
    _, whole, out = run
    start = {"resume": out / "checkpoints" / "000000000024", "checkpoint_images": 24, "log_images": 8}
    # Another network with the same arrays: what it starts from is in the checkpoint.
    resumed = duet.train(network(seed=9), PROCESS, data, out=tmp_path / "b", **start, **TRAINING)
    for part, arrays in whole.state.parts.items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(resumed.state.parts[part][name], array, err_msg=f"{part} {name}")


def test_a_loaded_run_samples_as_the_network_that_it_gives_back(run: Any) -> None:
    _, trained, out = run
    loaded = duet.load(out, network=network(seed=5))
    np.testing.assert_array_equal(loaded.sample(4, steps=3), trained.sample(4, steps=3))
    own = loaded.network()
    assert not torch.equal(loaded.network("weights").scale, network().scale)
    assert torch.equal(own.frozen, torch.ones(4, dtype=torch.float64)) and own.tied.weight is own.again.weight
    plan = duet.samplers.ddim(PROCESS, steps=3)
    samples = duet.sample(own, plan, shape=(4, 2, 4, 4), labels=[0, 1, 2, 0], classes=3)
    images = loaded.sample(4, labels=[0, 1, 2, 0], sampler=plan)
    pixels = np.clip(np.floor((np.moveaxis(samples.numpy(), 1, -1) + 1) * 127.5 + 0.5), 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(pixels, images)
    log_p = duet.log_likelihood(loaded, torch.zeros(1, 2, 4, 4, dtype=torch.float64), labels=1, steps=2)
    wanted = duet.log_likelihood(own, torch.zeros(1, 2, 4, 4).double(), PROCESS, labels=1, classes=3, steps=2)
    np.testing.assert_allclose(log_p, wanted, rtol=1e-12)
    with pytest.raises(duet.DuetError, match=r"labels: int64 with shape \(2,\) .* each of the 1 samples"):
        duet.log_likelihood(loaded, torch.zeros(1, 2, 4, 4), labels=[1, 0])
    with pytest.raises(duet.DuetError, match=r"conditions: they were given with a run, .*run.network\(\)"):
        duet.log_likelihood(loaded, torch.zeros(1, 2, 4, 4), conditions={"text": np.zeros((1, 2))})


def test_another_network_is_refused_by_name(run: Any, data: Any) -> None:
    with pytest.raises(duet.DuetError, match=r"another network .* table.weight has shape \(4, 4\) .*\(8, 4\)"):
        duet.load(run[2], network=Net(classes=7))
    with pytest.raises(duet.DuetError, match=r"another network .* table.weight has shape \(4, 4\) .*\(8, 4\)"):
        duet.train(Net(classes=7), PROCESS, data, out=run[2], resume="latest", **{**TRAINING, "images": 64})
    with pytest.raises(duet.DuetError, match="give it"):
        duet.load(run[2]).sample(2)


@pytest.mark.parametrize(
    "options",
    [
        {"weighting": "min_snr"},
        {"distance": "l1"},
        {"timestep_sampling": {"name": "logit_normal"}},
        {"offset_noise": 0.1},
        {"input_perturbation": 0.1},
        {"first_t": 5},
    ],
    ids=lambda options: next(iter(options)),
)
def test_every_option_of_the_loss_is_that_of_the_training(options: Any, data: Any, tmp_path: Path) -> None:
    try:
        given = {**TRAINING, **options, "images": 8, "log_images": 8, "samples": 1}
        duet.train(network(), PROCESS, data, out=tmp_path / "run", **given)
    except duet.DuetError as error:
        pytest.fail(str(error))
    (one,) = duet.batches(data, batch=8, images=8, seed=3, layout="channels_first", precision="float64")
    loss = duet.loss(
        network(), torch.from_numpy(one.images), PROCESS, labels=one.labels, seed=3, classes=3, label_dropout=0.2,
        **options,
    )  # fmt: skip
    np.testing.assert_allclose(float(loss.detach()), losses_of(tmp_path / "run")[0], rtol=1e-12)


def test_images_stay_where_they_are_and_gradients_flow_to_them() -> None:
    images = torch.rand(4, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    module = network().eval()
    loss = duet.loss(module, images, PROCESS, labels=[0, 1, 2, 0])
    (gradient,) = torch.autograd.grad(loss, images)
    step = 1e-6 * torch.ones_like(images)
    slope = (duet.loss(module, images + step, PROCESS, labels=[0, 1, 2, 0]) - loss) / 1e-6
    np.testing.assert_allclose(float(slope.detach()), float(gradient.sum()), rtol=1e-4)


@pytest.mark.parametrize("strength", [None, 0.5])
def test_samples_can_be_differentiated(strength: float | None) -> None:
    module, plan = network().eval(), duet.samplers.ddim(PROCESS, steps=4, guidance=1.5, clip=None, eta=0.5)
    given: dict[str, Any] = {"shape": (2, 2, 4, 4), "labels": [0, 1], "classes": 3, "strength": strength}

    def samples(start: Any) -> Any:
        return duet.sample(module, plan, start=start, differentiable=True, **given).square().sum()

    start = torch.randn(2, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(samples(start), start)
    direction = torch.randn_like(start)
    with torch.no_grad():
        slope = (samples(start + 1e-6 * direction) - samples(start - 1e-6 * direction)) / 2e-6
    np.testing.assert_allclose(float(slope), float((gradient * direction).sum()), rtol=1e-5)
    samples(start).backward()
    assert module.first.weight.grad.abs().sum() > 0
    ordinary = duet.sample(module, plan, start=start, **given)
    np.testing.assert_allclose(float(ordinary.square().sum()), float(samples(start).detach()), rtol=1e-12)
    of_array = samples(start.detach().numpy())
    np.testing.assert_allclose(float(of_array.detach()), float(samples(start).detach()), rtol=1e-12)
    with pytest.raises(duet.DuetError, match="start: uint8"):
        samples(np.zeros((2, 2, 4, 4), np.uint8))


class Small(nn.Module if find_spec("torch") else object):  # type: ignore[misc]
    """A network without statistics over the batch, with as many output channels as are asked for."""

    def __init__(self, outputs: int = 2, conditions: int = 0) -> None:
        super().__init__()
        self.conv, self.time = nn.Conv2d(2, outputs, 3, padding=1), nn.Linear(1 + conditions, outputs)

    def forward(self, x: Any, t: Any, condition: Any = None) -> Any:
        row = t[:, None].to(x.dtype) / 100
        row = row if condition is None else torch.cat([row, condition], dim=1)
        return self.conv(x) + self.time(row)[:, :, None, None]


def small(outputs: int = 2, conditions: int = 0) -> Any:
    torch.manual_seed(1)
    return Small(outputs, conditions).double()


WITHOUT_CLASSES = {name: value for name, value in TRAINING.items() if name != "label_dropout"}


def first_losses(data: Any, tmp_path: Path, net: Any, **options: Any) -> list[float]:
    given = {**WITHOUT_CLASSES, "images": 16, "log_images": 8, **options}
    duet.train(net, PROCESS, data, out=tmp_path, **given)
    return losses_of(tmp_path)


def test_a_learned_variance_is_trained_as_by_an_own_loop(data: Any, tmp_path: Path) -> None:
    process = duet.process("cosine", "eps", T=100)
    given = {**WITHOUT_CLASSES, "images": 8, "log_images": 8, "variance": "learned_range", "bound": "vlb"}
    run = duet.train(small(4), process, data, out=tmp_path / "run", **given)
    (one,) = duet.batches(data, batch=8, images=8, seed=3, layout="channels_first", precision="float64")
    loss = duet.loss(
        small(4), torch.from_numpy(one.images), process, seed=3, variance="learned_range", bound="vlb"
    )  # fmt: skip
    np.testing.assert_allclose(float(loss.detach()), losses_of(tmp_path / "run")[0], rtol=1e-12)
    assert run.sample(2, sampler="ddpm", variance="learned_range", steps=2).shape == (2, 4, 4, 2)


def test_micro_batches_sum_to_the_loss_of_the_batch(data: Any, tmp_path: Path) -> None:
    whole = first_losses(data, tmp_path / "whole", small())
    np.testing.assert_allclose(first_losses(data, tmp_path / "parts", small(), micro_batch=2), whole, rtol=1e-12)


def test_averages_validation_and_an_uncertainty_hold_for_an_own_network(data: Any, tmp_path: Path) -> None:
    ema = duet.make_ema("fixed", decay=0.9, extra=[{"name": "power", "sigma_rel": 0.1}])
    held_out = duet.load_dataset(255 - data.images[:6], labels=data.labels[:6], layout="channels_last")
    run = duet.train(
        small(), PROCESS, data, out=tmp_path / "run", ema=ema, validation=held_out, uncertainty=True,
        **WITHOUT_CLASSES,
    )  # fmt: skip
    assert len(run.state.averages) == 2 and np.isfinite(list(run.notes["validation"].values())).all()
    first, second = (run.network(name).conv.weight for name in ("ema", "ema1"))
    assert not torch.equal(first, second)
    assert run.sample(2, steps=2, weights="ema1").shape == (2, 4, 4, 2)


def test_conditions_of_the_data_reach_the_network_in_training(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    conditions = rng.normal(size=(24, 3))
    data = duet.load_dataset(
        rng.integers(0, 256, (24, 4, 4, 2), np.uint8), conditions=conditions, layout="channels_last"
    )  # fmt: skip
    losses = first_losses(data, tmp_path / "run", small(conditions=3))
    one = next(iter(duet.batches(data, batch=8, images=8, seed=3, layout="channels_first", precision="float64")))
    loss = duet.loss(
        small(conditions=3), torch.from_numpy(one.images), PROCESS, seed=3, conditions={"condition": one.conditions}
    )  # fmt: skip
    np.testing.assert_allclose(float(loss.detach()), losses[0], rtol=1e-12)


def test_a_half_precision_module_is_trained_in_float32_or_bf16(data: Any) -> None:
    net = small().to(torch.bfloat16)
    for precision in (None, "bf16"):
        run = duet.train(net, PROCESS, data, precision=precision, **{**WITHOUT_CLASSES, "images": 16})
        assert run.state.weights["network.conv.weight"].dtype == np.float32
        assert run.network().conv.weight.dtype == torch.bfloat16


def test_a_loss_that_is_not_finite_stops_a_training_in_words(data: Any, tmp_path: Path) -> None:
    net = small()
    with torch.no_grad():
        net.conv.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(duet.DuetError, match=r"not finite|nan"):
        duet.train(net, PROCESS, data, out=tmp_path / "run", **WITHOUT_CLASSES)
    assert torch.isnan(duet.loss(net, torch.zeros(2, 2, 4, 4), PROCESS))


def test_a_table_without_a_row_for_no_class_is_refused_before_training(data: Any) -> None:
    with pytest.raises(duet.DuetError, match="classes: 7 was given, but data arrays has 3"):
        duet.train(duet.adapt(Net(classes=7), classes=7), PROCESS, data, **TRAINING)
    with pytest.raises(duet.DuetError, match="its embedding has 3 rows, but the data has 3 classes and"):
        duet.train(Net(classes=2), PROCESS, data, **TRAINING)
    with pytest.raises(duet.DuetError, match="no weights that Duet can train"):
        duet.train(duet.adapt(lambda x, t: x, framework="torch"), PROCESS, data, **WITHOUT_CLASSES)


class Counter(Small):
    """A network that counts its calls in whole numbers, which a checkpoint does not keep."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        if kind == "counter":
            self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        elif kind == "complex":
            self.phase = nn.Parameter(torch.ones(2, dtype=torch.complex64))

    def forward(self, x: Any, t: Any) -> Any:
        if self.kind == "counter" and self.training:
            self.calls += 1
        return super().forward(x, t)


def test_what_a_checkpoint_would_lose_is_refused(data: Any) -> None:
    for kind, message in (("counter", "changes its buffer calls in training"), ("complex", "phase is complex64")):
        with pytest.raises(duet.DuetError, match=message):
            duet.train(Counter(kind), PROCESS, data, **WITHOUT_CLASSES)
    with pytest.raises(duet.DuetError, match="no weights that Duet can train"):
        example = torch.zeros(2, 2, 4, 4), torch.zeros(2)
        duet.train(torch.jit.trace(Small(), example), PROCESS, data, **WITHOUT_CLASSES)


def test_a_network_that_changes_its_inputs_in_place_changes_nothing_else() -> None:
    class Greedy(Net):
        def forward(self, x: Any, t: Any, label: Any) -> Any:
            output = super().forward(x.clone(), t.clone(), label.clone())
            x.zero_(), t.zero_(), label.zero_()
            return output

    torch.manual_seed(0)
    greedy, plan, labels = Greedy().double(), duet.samplers.ddim(PROCESS, steps=3), torch.tensor([2, 1])
    samples = duet.sample(greedy, plan, shape=(2, 2, 4, 4), labels=labels)
    assert torch.equal(samples, duet.sample(network(), plan, shape=(2, 2, 4, 4), labels=labels))
    assert labels.tolist() == [2, 1]


def test_the_likelihood_of_a_run_of_duet_is_that_of_its_network() -> None:
    spec = duet.PlainSpec(image_size=4, in_channels=2, out_channels=2, channels=(4,), bottleneck=4)
    model = duet.Model(spec, schedule="cosine", prediction="v")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 2), np.uint8)
    data = duet.load_dataset(pixels, layout="channels_last")
    run = duet.train(model, data, precision="float64", **{**WITHOUT_CLASSES, "images": 8})
    log_p = duet.log_likelihood(run, pixels[:3], steps=2, precision="float64", device="cpu", seed=4, batch=2)
    network = load_backend("torch", BackendConfig("cpu", "float64")).network(model.program, run.state.ema)
    y = dequantize(pixels[:3], np.arange(3), 4, (-1, 1))
    wanted = flow_density(network.vjp, model.process, y, np.zeros(3, np.int32), np.arange(3), 4, steps=2).log_density
    np.testing.assert_allclose(log_p, wanted, rtol=1e-12)
    with pytest.raises(duet.DuetError, match=r"must have \(N, 4, 4, 2\)"):
        duet.log_likelihood(run, pixels[:, :2])
    with pytest.raises(duet.DuetError, match="a run has its own"):
        duet.log_likelihood(run, pixels, PROCESS)


@pytest.mark.skipif(not find_spec("diffusers"), reason="diffusers is not installed")
def test_a_unet_of_diffusers_goes_through_everything(data: Any, tmp_path: Path) -> None:
    import diffusers

    def unet() -> Any:
        torch.manual_seed(0)
        return diffusers.UNet2DModel(
            sample_size=4, in_channels=2, out_channels=2, block_out_channels=(4, 8), norm_num_groups=2,
            layers_per_block=1, num_class_embeds=4, down_block_types=("DownBlock2D",) * 2,
            up_block_types=("UpBlock2D",) * 2,
        )  # fmt: skip

    options = {**TRAINING, "images": 16, "checkpoint_images": 8, "log_images": 8}
    run = duet.train(unet(), PROCESS, data, out=tmp_path / "a", **options)
    (one, *_) = duet.batches(data, batch=8, images=8, seed=3, layout="channels_first")
    loss = duet.loss(
        unet(), torch.from_numpy(one.images), PROCESS, labels=one.labels, seed=3, classes=3, label_dropout=0.2
    )
    np.testing.assert_allclose(float(loss.detach()), losses_of(tmp_path / "a")[0], rtol=1e-6)
    start = tmp_path / "a" / "checkpoints" / "000000000008"
    resumed = duet.train(unet(), PROCESS, data, out=tmp_path / "b", resume=start, **options)
    for name, array in run.state.ema.items():
        np.testing.assert_array_equal(resumed.state.ema[name], array, err_msg=name)
    loaded = duet.load(tmp_path / "b", network=unet())
    plan = duet.samplers.ddim(PROCESS, steps=2, guidance=2.0)
    np.testing.assert_array_equal(
        loaded.sample(3, labels=[0, 1, 2], sampler=plan), run.sample(3, labels=[0, 1, 2], sampler=plan)
    )
    samples = duet.sample(loaded.network(), plan, shape=(3, 2, 4, 4), labels=[0, 1, 2], classes=3)
    assert isinstance(loaded.network(), diffusers.UNet2DModel) and torch.isfinite(samples).all()
    scores = loaded.evaluate(data, count=30, features="values", sample={"steps": 2})
    assert all(np.isfinite(number.value) for number in scores.values()) and scores


def test_a_network_is_not_copied_to_call_it(monkeypatch: Any, data: Any) -> None:
    read: list[Any] = []
    monkeypatch.setattr("backends.torch.own._to_array", lambda tensor: read.append(tensor))
    net = network()
    duet.sample(net, duet.samplers.ddim(PROCESS, steps=1), shape=(2, 2, 4, 4), labels=0)
    duet.loss(net, torch.zeros(2, 2, 4, 4), PROCESS, labels=[0, 1])
    assert not read


class Half(nn.Module if find_spec("torch") else object):
    """A network whose output is half of its input, channels first or last alike."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((), 0.5, dtype=torch.float64))

    def forward(self, x: Any, t: Any) -> Any:
        return self.weight * x


@pytest.mark.parametrize(
    "options",
    [
        {"path_noise": {"name": "constant", "sigma": 0.5}},
        {"coupling": "optimal_transport"},
        {"input_perturbation": 0.3},
        {"noise": True},
    ],
)
def test_what_a_loss_draws_beside_the_images_is_that_of_numpy(options):
    images, noise = np.random.default_rng(0).normal(size=(2, 5, 2, 4, 4))
    process = duet.process("flow_continuous", "velocity")
    if "noise" in options:
        options = {"noise": noise}
    found = duet.loss(Half(), torch.from_numpy(images), process, value_range=(-3.0, 3.0), **options)
    last = {name: np.moveaxis(value, 1, -1) if name == "noise" else value for name, value in options.items()}
    expected = duet.loss(
        lambda x, t: 0.5 * x,
        np.moveaxis(images, 1, -1),
        process,
        value_range=(-3.0, 3.0),
        layout="channels_last",
        **last,
    )
    assert float(found.detach()) == pytest.approx(float(expected), rel=1e-12)
    assert float(expected) != pytest.approx(
        duet.loss(
            lambda x, t: 0.5 * x, np.moveaxis(images, 1, -1), process, value_range=(-3.0, 3.0), layout="channels_last"
        )
    )
