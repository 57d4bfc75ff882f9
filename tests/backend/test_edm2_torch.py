"""EDM2 against a re-implementation of its own, in float64: outputs, gradients and ten steps of training."""

from __future__ import annotations

import importlib.util
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from diffusion_core.backend import reference
from diffusion_core.backend.interface import TrainBatch, TrainerState
from diffusion_core.convert import Imported, import_weights
from diffusion_core.convert.edm2 import make_name_map
from diffusion_core.convert.names import write_weights
from diffusion_core.networks.weights import Weights
from diffusion_core.optim import Power
from diffusion_core.optim.adam import Adam, LearningRate
from diffusion_core.parity.ladder import relative
from diffusion_core.training.objective import Objective

pytestmark = [
    pytest.mark.backend,
    pytest.mark.skipif(not find_spec("torch"), reason="it is about PyTorch"),
]
if find_spec("torch"):
    import torch

PLAIN = {"taps": (1.0, 1.0), "residual": 0.3, "attention": 0.3, "label": 0.5, "concat": 0.5, "clip": 256.0}
OTHER = {"taps": (1.0, 3.0, 3.0, 1.0), "residual": 0.2, "attention": 0.6, "label": 0.3, "concat": 0.4, "clip": 0.9}
# By name: the arguments of the network, and the options of the import that a state dict does not determine.
CASES = {
    "conditional": ((8, 3, 4, (16, 32), 1, (8,), 8, PLAIN), {"head_channels": 8}),
    "other options": (
        (8, 2, 3, (8, 16), 2, (), 8, OTHER),
        {"head_channels": 8, "resample_filter": (1, 3, 3, 1), "residual_balance": 0.2, "attention_balance": 0.6,
         "label_balance": 0.3, "concat_balance": 0.4, "clip": 0.9},
    ),
    "without classes, heads too wide": ((8, 1, 0, (8, 16), 1, (8,), 64, PLAIN), {}),
}  # fmt: skip
BATCH = 4


@pytest.fixture(scope="module")
def read(open_backend):
    return open_backend("float64").read_arrays


@pytest.fixture(scope="module")
def oracle() -> ModuleType:
    found = importlib.util.spec_from_file_location("edm2_oracle", Path(__file__).with_name("edm2_oracle.py"))
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def original(oracle: ModuleType, name: str) -> Any:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    net = oracle.Precond(*CASES[name][0], logvar=16)
    with torch.no_grad():
        for key, parameter in net.named_parameters():
            if key.endswith("gain"):
                parameter.copy_(0.5 + torch.rand([]))
    torch.set_default_dtype(torch.float32)
    return net


def imported(net: Any, name: str, folder: Path, read) -> Imported:
    torch.save(net.state_dict(), folder / "weights.pt")
    return import_weights("edm2", folder / "weights.pt", read, None, CASES[name][1])


def one_hot(label: np.ndarray, classes: int) -> Any:
    return torch.from_numpy(np.eye(classes + 1)[label, :classes]) if classes else None


def to_images(x: np.ndarray) -> Any:
    return torch.from_numpy(x.transpose(0, 3, 1, 2))


def batches(found: Imported, count: int) -> list[TrainBatch]:
    """Return the batches of Duet's objective for the process of EDM2, whose noise levels have a log-normal density."""
    size, _, channels = found.model.spec.image_shape
    objective = Objective.for_model(
        found.model, 0, timestep_sampling={"name": "log_normal", "mean": -0.4, "std": 1.0}, weighting={"name": "edm"}
    )
    rng = np.random.default_rng(0)
    made = []
    for step in range(count):
        images = 0.5 * rng.standard_normal((BATCH, size, size, channels))
        label = rng.integers(0, max(found.model.spec.num_classes, 1), BATCH)
        made.append(objective.batch(images, label, step * BATCH + np.arange(BATCH), np.float64))
    return made


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_log_variance_are_equal(oracle, name, tmp_path, read, open_backend):
    net = original(oracle, name).eval()
    found = imported(net, name, tmp_path, read)
    (batch,) = batches(found, 1)
    label = np.minimum(np.arange(BATCH), found.model.spec.num_classes)  # the last of a network with 3 is "no class"
    with torch.no_grad():
        rest = torch.from_numpy(batch.c_noise), one_hot(label, CASES[name][0][2])
        output, logvar = net(to_images(batch.images), *rest)
    for got in (
        open_backend("float64").network(found.model.program, found.weights).forward(batch.images, batch.c_noise, label),
        reference.forward(found.model.program, found.weights, batch.images, batch.c_noise, label),
    ):
        assert relative(got[..., :-1], output.numpy().transpose(0, 2, 3, 1)) < 1e-13
        assert relative(got[:, 0, 0, -1], logvar.numpy()) < 1e-13


def loss_of(net: Any, batch: TrainBatch, classes: int) -> Any:
    """Return the loss of its training loop at each pixel: weight / exp(logvar) times the squared error, + logvar."""
    sd = 0.5
    sigma = torch.from_numpy(batch.sigma)[:, None, None, None]
    images, noise = to_images(batch.images), to_images(batch.noise)
    noisy = images + noise * sigma
    c_skip, c_out = sd**2 / (sigma**2 + sd**2), sigma * sd / (sigma**2 + sd**2).sqrt()
    weight = (sigma**2 + sd**2) / (sigma * sd) ** 2
    x = noisy / (sd**2 + sigma**2).sqrt()
    output, logvar = net(x, sigma.flatten().log() / 4, one_hot(batch.label, classes))
    logvar = logvar[:, None, None, None]
    return weight / logvar.exp() * (c_skip * noisy + c_out * output - images) ** 2 + logvar


def as_duet(found: Imported, arrays: dict[str, Any]) -> Weights:
    names = make_name_map(found.model.spec, found.model.program)
    values = {name: tensor.detach().numpy() for name, tensor in arrays.items()}
    return {name: values[entry.names[0]] for name, entry in names.items() if entry.names[0] in values}


@pytest.mark.parametrize("name", CASES)
def test_ten_steps_of_training_are_equal(oracle, name, tmp_path, read, open_backend):
    """With forced normalisation, learned weighting, its rate, whose first step is 0, and a power-function average.

    The original sums over the pixels where Duet takes their mean, so its epsilon of Adam is that much larger.
    """
    net = original(oracle, name).train()
    found = imported(net, name, tmp_path, read)
    classes, pixels = CASES[name][0][2], int(np.prod(found.model.spec.image_shape))
    adam = torch.optim.Adam(net.parameters(), betas=(0.9, 0.99), eps=1e-8)
    averages = [p.detach().clone() for p in net.parameters()]
    rate = LearningRate(1e-2, warmup_images=8, decay="edm2", decay_start_images=3 * BATCH)
    profile = Power(0.1)
    trainer = open_backend("float64").trainer(
        found.model.program, TrainerState.fresh(found.weights), Adam(beta2=0.99, eps=1e-8 / pixels, clip=None), "mse"
    )
    for step, (batch, lr) in enumerate(zip(batches(found, 10), oracle.rates(1e-2, 3, 8, BATCH), strict=False), start=1):
        loss = loss_of(net, batch, classes)
        adam.zero_grad()
        (loss.sum() / BATCH).backward()
        if step in (1, 10):
            mine_loss, gradients = trainer.gradients(batch)
            assert mine_loss == pytest.approx(float(loss.detach().mean()), rel=1e-13)
            theirs = as_duet(found, {n: p.grad / pixels for n, p in net.named_parameters()})
            largest = max(np.abs(value).max() for value in theirs.values())
            assert max(np.abs(gradients[n] - theirs[n]).max() for n in gradients) < 1e-12 * largest
        adam.param_groups[0]["lr"] = lr
        adam.step()
        seen = step * BATCH
        assert rate(seen, BATCH) == pytest.approx(lr, rel=1e-15, abs=0)
        decay = float(profile(step, seen, BATCH))
        assert (lr, decay) == (0, 0) or step > 1
        with torch.no_grad():
            for average, p in zip(averages, net.parameters(), strict=True):
                average.lerp_(p, 1 - decay)
        result = trainer.step(batch, rate(seen, BATCH), (decay,))
        assert float(result.loss) == pytest.approx(float(loss.detach().mean()), rel=1e-11)
    state = trainer.state()
    theirs = as_duet(found, net.state_dict())
    assert max(np.abs(state.weights[n] - theirs[n]).max() for n in theirs) < 1e-11
    theirs = as_duet(found, dict(zip([n for n, _ in net.named_parameters()], averages, strict=True)))
    assert max(np.abs(state.ema[n] - theirs[n]).max() for n in theirs) < 1e-11


def test_a_file_with_two_networks_and_the_u_net_alone_are_read(oracle, tmp_path, read):
    net = original(oracle, "conditional").float()
    torch.save(net.unet.state_dict(), tmp_path / "unet.pt")
    alone = import_weights("edm2", tmp_path / "unet.pt", read, None, {"head_channels": 8})
    assert alone.model.spec.logvar_channels == 0 and not alone.model.uncertainty
    both = {"net": net.state_dict(), "ema": {n: 2 * v for n, v in net.state_dict().items()}, "cur_nimg": 3}
    torch.save(both, tmp_path / "state.pt")
    found = import_weights("edm2", tmp_path / "state.pt", read, None, {"head_channels": 8})
    assert np.array_equal(found.ema["out_conv.weight"], 2 * found.weights["out_conv.weight"])
    assert found.weights["logvar_linear.weight"].shape == (1, 16)
    names = make_name_map(found.model.spec, found.model.program)
    assert write_weights(names, found.weights).keys() == net.state_dict().keys()
