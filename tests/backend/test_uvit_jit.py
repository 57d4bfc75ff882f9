"""U-ViT and JiT compute in Duet what they compute in their originals, and their weights come and go."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from diffusion_core.backend import reference
from diffusion_core.convert import export_state_dict, import_weights
from diffusion_core.networks.weights import parameter_count

SIZE, LABELS = 8, np.array([2, 0])
IMAGES = np.random.default_rng(0).standard_normal((2, SIZE, SIZE, 3))
UVIT_TIMES, JIT_TIMES = np.array([3.25, 700.0]), np.array([0.137, 0.9])

UVITS: dict[str, dict[str, Any]] = {
    "as cifar10_uvit_small": {},
    "with classes": {"classes": 4},
    "with a row for no class, biases, a time MLP, no last convolution": {
        "classes": 5, "qkv_bias": True, "time_mlp": True, "conv": False,
    },
    "without skips": {"skip": False},
}  # fmt: skip
JITS: dict[str, dict[str, Any]] = {
    "context in the middle": {"context": 3, "start": 1},
    "context before all blocks": {"context": 2, "start": 0},
    "no context": {"context": 0, "start": 1},
}


@pytest.fixture(scope="module")
def oracles() -> ModuleType:
    found = importlib.util.spec_from_file_location("oracles", Path(__file__).with_name("uvit_jit_oracles.py"))
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def randomised(net: Any) -> Any:
    """The network in evaluation and in float64, with random norms and no layer left at zero."""
    import torch

    generator, net = torch.Generator().manual_seed(0), net.double().eval()
    with torch.no_grad():
        for p in net.parameters():
            if p.requires_grad:
                draw = torch.randn(p.shape, generator=generator, dtype=torch.float64)
                p.copy_(1.5 * draw / p[0].numel() ** 0.5 if p.ndim > 1 and len(p) > 1 else 0.3 * draw + 0.5)
    return net


def make_uvit(oracles: ModuleType, **options: Any) -> Any:
    return randomised(oracles.UViT(SIZE, 2, 3, 24, 4, 2, **options))


def make_jit(oracles: ModuleType, **options: Any) -> Any:
    return randomised(oracles.JiT(SIZE, 2, 3, 24, 3, 2, 5, 4, **options))


def imported(source: str, net: Any, folder: Path, read: Any, options: dict[str, Any]) -> Any:
    import torch

    torch.save(net.state_dict(), folder / "net.pth")
    return import_weights(source, folder / "net.pth", read, None, options)


def theirs(net: Any, times: NDArray, labels: NDArray | None) -> tuple[NDArray, dict[str, NDArray], NDArray]:
    """The output, and the gradients of its sum of squares by the parameters and by the images."""
    import torch

    images = torch.from_numpy(IMAGES).permute(0, 3, 1, 2).requires_grad_()
    rest = (torch.from_numpy(times),) if labels is None else (torch.from_numpy(times), torch.from_numpy(labels))
    net.zero_grad()
    output = net(images, *rest)
    output.square().sum().backward()
    gradients = {name: p.grad.numpy() for name, p in net.named_parameters() if p.grad is not None}
    return output.detach().permute(0, 2, 3, 1).numpy(), gradients, images.grad.permute(0, 2, 3, 1).numpy()


def check(found: Any, net: Any, times: NDArray, labels: NDArray | None, open_backend: Any) -> None:
    """Output and gradient by the image, in the reference and in the backend, against those of the original."""
    program, label = found.model.program, np.zeros(2, np.int64) if labels is None else labels
    assert parameter_count(program) == sum(p.numel() for p in net.parameters() if p.requires_grad)
    exact, _, by_image = theirs(net, times, labels)
    assert 0.3 < np.abs(exact).max() < 30, "an output of about unit scale"
    got = reference.forward(program, found.weights, IMAGES, times, label)
    np.testing.assert_allclose(got, exact, rtol=0, atol=1e-12 * np.abs(exact).max())
    for precision, rtol in (("float64", 1e-12), ("float32", 2e-5)):
        network = open_backend(precision).network(program, found.weights)
        ours = network.forward(IMAGES.astype(precision), times, label)
        np.testing.assert_allclose(ours, exact, rtol=0, atol=rtol * np.abs(exact).max())
        output, pulled = network.vjp(IMAGES.astype(precision), times, label, (2 * exact).astype(precision))
        np.testing.assert_allclose(output, ours, rtol=0, atol=rtol)
        np.testing.assert_allclose(pulled, by_image, rtol=0, atol=10 * rtol * np.abs(by_image).max())


@pytest.mark.parametrize("options", UVITS.values(), ids=UVITS)
def test_a_uvit_computes_the_same(options, tmp_path, open_backend, oracles):
    net = make_uvit(oracles, **options)
    null = "last" if options.get("classes") == 5 else None
    read = open_backend("float32").read_arrays
    found = imported("uvit", net, tmp_path, read, {"heads": 2, "null_class": null})
    spec = found.model.spec
    assert (spec.image_size, spec.num_classes) == (SIZE, {0: 0, 4: 4, 5: 4}[options.get("classes", 0)])
    assert found.model.program.null_label == (4 if null else None)
    check(found, net, UVIT_TIMES, np.array([4, 1]) if null else LABELS if "classes" in options else None, open_backend)
    assert (found.model.schedule, found.model.time_scale) == ({"name": "vp_sde"}, 999.0)
    assert found.objective == ({"label_dropout": 0.1} if null else {})
    arrays = export_state_dict(found.model, found.weights, "uvit")
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(arrays.pop(name), value.numpy().astype(np.float32))
    assert not arrays


@pytest.mark.parametrize("options", JITS.values(), ids=JITS)
def test_a_jit_computes_the_same(options, tmp_path, open_backend, oracles):
    net = make_jit(oracles, **options)
    read = open_backend("float32").read_arrays
    found = imported("jit", net, tmp_path, read, {"context_start": options["start"]})
    assert (found.model.spec.num_classes, found.model.program.null_label) == (4, 4)
    check(found, net, JIT_TIMES, np.array([4, 1]), open_backend)
    assert found.model.plan(**{"sampler": found.sampler["name"]}, steps=4, spacing="trailing").rows == 7
    assert found.objective["weighting"] == {"name": "velocity"}
    arrays = export_state_dict(found.model, found.weights, "jit")
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(arrays.pop(name), value.numpy().astype(np.float32))
    assert not arrays
