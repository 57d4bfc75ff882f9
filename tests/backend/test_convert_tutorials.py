"""The networks of widely copied PyTorch projects compute in Duet what they compute there."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from diffusion_core.backend import reference
from diffusion_core.common.errors import DuetError
from diffusion_core.convert import denoising_diffusion_pytorch as lucid
from diffusion_core.convert import dome272, import_weights
from diffusion_core.convert.names import write_weights
from diffusion_core.diffusion.schedule import make_schedule
from diffusion_core.networks.weights import parameter_count

T, LABELS = np.array([3, 700]), np.array([2, 0])
IMAGES = np.random.default_rng(0).standard_normal((2, 16, 16, 3))


@pytest.fixture(scope="module")
def oracles() -> ModuleType:
    found = importlib.util.spec_from_file_location("tutorial_oracles", Path(__file__).with_name("tutorial_oracles.py"))
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def randomised(net: Any, seed: int = 0) -> Any:
    """The network in evaluation, with random norms and no layer left at zero."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            draw = torch.randn(p.shape, generator=generator)
            p.copy_(draw / p[0].numel() ** 0.5 if p.ndim > 1 and len(p) > 1 else 0.3 * draw + 0.5)
    return net.eval()


def theirs(net: Any, x: NDArray, *rest: NDArray) -> NDArray:
    import torch

    with torch.no_grad():
        return net(torch.from_numpy(x).permute(0, 3, 1, 2), *map(torch.from_numpy, rest)).permute(0, 2, 3, 1).numpy()


def check(
    found: Any, net: Any, open_backend: Any, label: NDArray, *rest: NDArray, estimate: NDArray | None = None
) -> None:
    """The reference in float64, and the backend in both precisions, against the network with the same weights."""
    program = found.model.program
    assert parameter_count(program) == sum(p.numel() for p in net.parameters())
    exact = theirs(net.double(), IMAGES, T, *rest)
    assert np.abs(exact).max() > 0.3, "an output of unit scale"
    np.testing.assert_allclose(
        reference.forward(program, found.weights, IMAGES, T, label, None, estimate), exact, rtol=0, atol=1e-12
    )
    for precision, atol in (("float64", 1e-11), ("float32", 2e-5)):
        network = open_backend(precision).network(program, found.weights)
        given = () if estimate is None else (None, estimate.astype(precision))
        ours = network.forward(IMAGES.astype(precision), T, label, *given)
        np.testing.assert_allclose(ours, exact, rtol=0, atol=atol)


@pytest.mark.parametrize("classes, deep", [(0, True), (3, True), (0, False)])
def test_a_network_of_dome272_computes_the_same(classes, deep, tmp_path, open_backend, oracles):
    import torch

    net = randomised(oracles.Dome272UNet(8, 16, classes, deep))
    torch.save(net.state_dict(), tmp_path / "ckpt.pt")
    average = {name: value + 1 for name, value in net.state_dict().items()}
    # The second file is the average, or holds it next to the weights.
    torch.save(average if deep else {"model": net.state_dict(), "ema": average}, tmp_path / "ema_ckpt.pt")
    options = {"image_size": 16, "ema": str(tmp_path / "ema_ckpt.pt")}
    read = open_backend("float32").read_arrays
    found = import_weights("dome272", tmp_path / "ckpt.pt", read, None, options)
    assert found.model.spec.num_classes == classes
    assert (found.model.schedule["name"], found.model.prediction) == ("linear", "eps")
    found.model.plan(**{"sampler": found.sampler["name"], **{k: v for k, v in found.sampler.items() if k != "name"}})
    for name, value in found.weights.items():
        np.testing.assert_allclose(found.ema[name], value + 1, rtol=0, atol=1e-6)
    # Without a label, nothing is added; that is the label after the classes.
    check(found, net, open_backend, np.full(2, classes))
    if classes:
        check(found, net, open_backend, LABELS, LABELS)
    assert found.objective == {"first_t": 1} | ({"label_dropout": 0.1} if classes else {})
    arrays = write_weights(dome272.make_name_map(found.model.spec, found.model.program), found.weights)
    assert arrays.keys() == net.state_dict().keys()


def test_a_network_of_dome272_at_full_size_has_its_parameters(oracles):
    arrays = {name: value.numpy() for name, value in oracles.Dome272UNet(64, classes=10).state_dict().items()}
    spec = dome272.read_spec(arrays, "file")
    assert spec == dome272.DoubleConvSpec(64, num_classes=10, null_class="zero", init="torch"), (
        "the network of model=landscape with ten classes"
    )
    del arrays["down2.maxpool_conv.2.double_conv.3.weight"]
    with pytest.raises(DuetError, match=r"file: down2.maxpool_conv.2.double_conv.3.weight is missing"):
        dome272.read_spec(arrays, "file")


def tables(schedule: str, T: int, objective: str, limit: float = np.inf) -> dict[str, NDArray]:
    """The float32 tables of a GaussianDiffusion that tell its process."""
    alpha = make_schedule(schedule, T=T).alpha ** 2
    snr = alpha / (1 - alpha)
    limited = np.minimum(snr, limit)
    weight = {"eps": limited / snr, "x0": limited, "v": limited / (snr + 1)}[objective]
    betas = 1 - alpha / np.append(1, alpha[:-1])
    return {"betas": betas.astype(np.float32), "loss_weight": weight.astype(np.float32)}


@pytest.mark.parametrize("full, first, conditioned", [
    ((False, False, True), 8, False), ((True, False, False), 6, False), ((True, True, True), 8, True),
])  # fmt: skip
def test_a_unet_of_denoising_diffusion_pytorch_computes_the_same(
    full, first, conditioned, tmp_path, open_backend, oracles
):
    import torch

    net = randomised(oracles.LucidUnet(8, first, full, conditioned))
    diffusion = {f"model.{name}": value for name, value in net.state_dict().items()}
    diffusion |= {name: torch.from_numpy(table) for name, table in tables("sigmoid", 50, "v").items()}
    average = {f"ema_model.{name}": value * 2 for name, value in diffusion.items()}
    average |= {f"online_model.{name}": value for name, value in diffusion.items()}
    optimiser = torch.optim.Adam(net.parameters()).state_dict()
    content = {"step": 5, "model": diffusion, "opt": optimiser, "ema": average, "scaler": None, "version": "2.3.4"}
    torch.save(content, tmp_path / "model-1.pt")
    options = {"image_size": 16}
    read = open_backend("float32").read_arrays
    found = import_weights("denoising_diffusion_pytorch", tmp_path / "model-1.pt", read, None, options)
    assert (found.model.schedule, found.model.prediction) == ({"name": "sigmoid", "T": 50}, "v")
    assert found.process_source == "that of the source"
    assert found.note.endswith("read under model.model, with its moving average under ema.ema_model.model")
    for name, value in found.weights.items():
        np.testing.assert_array_equal(found.ema[name], 2 * value)
    estimate = np.random.default_rng(1).standard_normal(IMAGES.shape) if conditioned else None
    rest = (estimate.transpose(0, 3, 1, 2),) if conditioned else ()
    check(found, net, open_backend, np.zeros(2, int), *rest, estimate=estimate)
    arrays = write_weights(lucid.make_name_map(found.model.spec, found.model.program), found.weights)
    for name, value in net.float().state_dict().items():
        np.testing.assert_array_equal(arrays[name], value.numpy())


@pytest.mark.parametrize("schedule", ["sigmoid", "cosine", "linear"])
@pytest.mark.parametrize("objective", ["eps", "x0", "v"])
@pytest.mark.parametrize("limit", [5.0, np.inf])
def test_the_tables_of_a_diffusion_tell_its_process(schedule, objective, limit):
    found = lucid.read_process(*tables(schedule, 1000, objective, limit).values())
    assert found == {"schedule": {"name": schedule, "T": 1000}, "prediction": objective}


def test_betas_without_a_name_are_kept_as_a_list():
    betas = np.linspace(0.01, 0.3, 30, dtype=np.float32)
    found = lucid.read_process(betas, np.ones(30, np.float32))
    assert found == {"schedule": {"name": "betas", "betas": betas.astype(float).tolist()}, "prediction": "eps"}


def test_a_part_without_a_block_is_named(oracles):
    arrays = {name: value.numpy() for name, value in oracles.LucidUnet(8, 8, (False, True, True)).state_dict().items()}
    for name, words in (
        ("downs.0.0.block1.norm.bias", "Duet has no block for GroupNorm after weight-standardised convolutions"),
        ("time_mlp.0.weights", "Duet has no block for random or learned frequencies"),
    ):
        with pytest.raises(DuetError, match=f"^file: {name}: {words}"):
            lucid.read_spec(arrays | {name: np.zeros(8)}, "file", 16)
    with pytest.raises(DuetError, match=r"its attentions have different heads, memories or channels per head"):
        lucid.read_spec(arrays | {"downs.1.2.mem_kv": np.zeros((2, 4, 3, 5))}, "file", 16)
    del arrays["downs.1.2.mem_kv"]
    with pytest.raises(DuetError, match=r"downs.1.2.mem_kv is missing"):
        lucid.read_spec(arrays, "file", 16)
