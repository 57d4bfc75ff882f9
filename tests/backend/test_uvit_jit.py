"""U-ViT and JiT compute in Duet what they compute in their originals, and their weights come and go."""

from __future__ import annotations

import argparse
import importlib.util
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from diffusion_core.backend import reference
from diffusion_core.backend.interface import TrainBatch, TrainerState
from diffusion_core.common.errors import DuetError
from diffusion_core.convert import export_state_dict, import_weights, jit, uvit
from diffusion_core.convert.names import write_weights
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks import UViTSpec
from diffusion_core.networks.weights import initial_weights, parameter_count
from diffusion_core.optim.adam import Adam

SIZE, LABELS = 8, np.array([2, 0])
IMAGES = np.random.default_rng(0).standard_normal((2, SIZE, SIZE, 3))
UVIT_TIMES, JIT_TIMES = np.array([3.25, 700.0]), np.array([0.137, 0.9])

UVITS: dict[str, dict[str, Any]] = {
    "as cifar10_uvit_small": {},
    "with classes": {"classes": 4},
    "with a row for no class, biases, a time MLP, no last convolution": {
        "classes": 5, "qkv_bias": True, "time_mlp": True, "conv": False,
    },
    "without skips, with an uneven MLP": {"skip": False, "hidden": 47},
}  # fmt: skip
JITS: dict[str, dict[str, Any]] = {
    "context in the middle": {"context": 3, "start": 1},
    "context before all blocks": {"context": 2, "start": 0},
    "no context, with an uneven MLP": {"context": 0, "start": 1, "hidden": 47},
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


def gradients(found: Any, times: NDArray, labels: NDArray, backend: Any) -> dict[str, NDArray]:
    """The gradients of the sum of squares of the output by the parameters, from a training step of the backend."""
    program, dtype = found.model.program, np.float64
    ones, zeros = np.ones(2), np.zeros(2)
    batch = TrainBatch(
        images=IMAGES, noise=np.zeros_like(IMAGES), label=labels.astype(np.int32), alpha=ones, sigma=zeros, c_in=ones,
        c_noise=times, target_x0=zeros, target_eps=zeros, weight=ones, importance=ones,
        features=np.zeros((2, 0), dtype), positions=np.arange(2), dropout_key=np.zeros(2, np.int64),
    )  # fmt: skip
    _, found_gradients = backend.trainer(program, TrainerState.fresh(found.weights), Adam(), "mse").gradients(batch)
    frozen = {p.name: np.zeros(p.shape) for p in program.parameters if not p.trained}
    return {name: IMAGES.size * value for name, value in {**found_gradients, **frozen}.items()}


@pytest.mark.parametrize("source", ["uvit", "jit"])
def test_the_gradients_by_all_parameters_are_the_same(source, tmp_path, open_backend, oracles):
    if source == "uvit":
        net, times, module = make_uvit(oracles, classes=5, qkv_bias=True, time_mlp=True), UVIT_TIMES, uvit
        options: dict[str, Any] = {"heads": 2, "null_class": "last"}
    else:
        net, times, module = make_jit(oracles, context=3, start=1), JIT_TIMES, jit
        options = {"context_start": 1}
    read = open_backend("float32").read_arrays
    found, labels = imported(source, net, tmp_path, read, options), np.array([4, 1])
    _, exact, _ = theirs(net, times, labels)
    names = module.make_name_map(found.model.spec, found.model.program)
    ours = write_weights(names, gradients(found, times, labels, open_backend("float64")))
    for name, wanted in exact.items():
        np.testing.assert_allclose(ours[name], wanted, rtol=0, atol=1e-11 * max(np.abs(wanted).max(), 1e-3))


def test_a_checkpoint_of_jit_holds_weights_and_two_averages(tmp_path, open_backend, oracles):
    """As its training writes them, with the arguments of the command line, which are not read."""
    import torch

    net = make_jit(oracles, context=3, start=1)
    parts = {
        part: {f"net.{name}": value.float() + shift * (name != "pos_embed") for name, value in net.state_dict().items()}
        for part, shift in (("model", 0.0), ("model_ema1", 1.0), ("model_ema2", 2.0))
    }
    optimizer = torch.optim.AdamW(net.parameters()).state_dict()
    content = {**parts, "optimizer": optimizer, "epoch": 3, "args": argparse.Namespace(model="JiT-B/16", lr=None)}
    torch.save(content, tmp_path / "checkpoint-last.pth")
    read = open_backend("float32").read_arrays

    def load(**options: Any) -> Any:
        return import_weights("jit", tmp_path / "checkpoint-last.pth", read, None, {"context_start": 1, **options})

    both, second = load(), load(key="model_ema2")
    assert "a second average is left out, source.key=model_ema2 reads it" in both.note
    for name, value in both.weights.items():
        shift = float(name != "positions.table")
        np.testing.assert_allclose(both.ema[name], value + shift, rtol=0, atol=1e-6)
        np.testing.assert_allclose(second.weights[name], value + 2 * shift, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(second.ema[name], second.weights[name])
    # Nothing in the file tells the dropout, the noise and the block of the context.
    given = load(dropout=0.2, noise_scale=1.5)
    assert (given.model.spec.dropout, given.model.schedule["noise_scale"]) == (0.2, 1.5)
    assert (
        both.model.spec.context_start
        == 1
        == import_weights("jit", tmp_path / "checkpoint-last.pth", read, None, {}).model.spec.context_start
    ), "a third of the depth"


def test_the_average_of_a_uvit_is_a_second_file(tmp_path, open_backend, oracles):
    import torch

    net = make_uvit(oracles)
    torch.save(net.state_dict(), tmp_path / "nnet.pth")
    torch.save({name: value + 1 for name, value in net.state_dict().items()}, tmp_path / "nnet_ema.pth")
    options = {"heads": 2, "ema": str(tmp_path / "nnet_ema.pth")}
    found = import_weights("uvit", tmp_path / "nnet.pth", open_backend("float32").read_arrays, None, options)
    for name, value in found.weights.items():
        np.testing.assert_array_equal(found.ema[name], value + 1)


def never(path: Path) -> dict[str, NDArray]:
    raise AssertionError(f"{path} needs no framework")


def changed(net: Any, folder: Path, **changes: NDArray | None) -> Path:
    """The state dict as a file of NumPy, with other arrays under the names with points for double underscores."""
    arrays = {name: value.numpy() for name, value in net.state_dict().items()}
    for name, value in changes.items():
        arrays[name.replace("__", ".")] = value
    np.savez(folder / "net.npz", **{name: value for name, value in arrays.items() if value is not None})
    return folder / "net.npz"


@pytest.mark.parametrize(("changes", "options", "message"), [
    ({}, {}, "24 channels are no multiple of 64; give the number of heads as source.heads"),
    ({}, {"heads": 5}, "model.heads: 5 heads do not divide 24 channels"),
    ({}, {"heads": 2, "null_class": "zero"}, "source.null_class: 'zero' was given; it must be one of last, none"),
    ({}, {"heads": 2, "null_class": "last"}, "source.null_class: last was given, but .* has no classes; leave it out"),
    ({"context_embed__weight": np.zeros((24, 8))}, {"heads": 2}, "this U-ViT reads tokens of text"),
    ({"mid_block__norm1__weight": None}, {"heads": 2}, "mid_block.norm1.weight is missing; this is not a state dict"),
    ({"pos_embed": np.zeros((1, 16, 24))}, {"heads": 2}, "pos_embed has 15 places of patches"),
    ({"decoder_pred__weight": np.zeros((13, 24))}, {"heads": 2}, "decoder_pred 13 rows"),
    ({"in_blocks__1__norm2__weight": None}, {"heads": 2}, "in_blocks.1.norm2.weight: .* but it is missing"),
    ({"patch_embed__proj__weight": None}, {"heads": 2}, "patch_embed.proj.weight is missing or has other axes"),
])  # fmt: skip
def test_another_state_dict_than_that_of_a_uvit_is_refused(changes, options, message, tmp_path, oracles):
    with pytest.raises(DuetError, match=message):
        import_weights("uvit", changed(make_uvit(oracles), tmp_path, **changes), never, None, options)


@pytest.mark.parametrize(("changes", "options", "message"), [
    ({}, {"context_start": 3}, "model.context_start: 3 was given; it must be one of the 3 blocks, 0 to 2"),
    ({}, {"dropout": 1.5}, "model.dropout: 1.5 was given; it must be a probability below 1"),
    ({}, {"key": "ema"}, "source.key: 'ema' was given, but .* holds networks only under"),
    ({"pos_embed": np.zeros((1, 15, 24))}, {}, "pos_embed has 15 places and final_layer.linear 12 rows"),
    ({"x_embedder__proj1__weight": None}, {}, "x_embedder.proj1.weight is missing; this is not a state dict of JiT"),
    ({"y_embedder__embedding_table__weight": np.zeros((1, 24))}, {}, "model.context: 3 was given, but its tokens hold"),
    ({"blocks__2__mlp__w3__bias": None}, {}, "blocks.2.mlp.w3.bias: .* but it is missing"),
    ({"in_context_posemb": np.zeros((1, 3, 20))}, {}, "in_context_posemb: the network needs shape"),
])  # fmt: skip
def test_another_state_dict_than_that_of_a_jit_is_refused(changes, options, message, tmp_path, oracles):
    with pytest.raises(DuetError, match=message):
        net = make_jit(oracles, context=3, start=1)
        import_weights("jit", changed(net, tmp_path, **changes), never, None, options)


def test_what_the_projects_do_not_have_is_not_written(oracles):
    spec = UViTSpec(8, 3, 3, patch_size=2, channels=16, depth=2, heads=2)
    model = DiffusionModel(spec, "linear", "eps")
    with pytest.raises(DuetError, match=r"target.project: jit was given, but the network is a UViTSpec; use uvit"):
        export_state_dict(model, initial_weights(model.program, 0), "jit")
    model = DiffusionModel(replace(spec, self_conditioning=True), "linear", "eps")
    with pytest.raises(DuetError, match=r"model.self_conditioning: True was given; a network of uvit has False"):
        export_state_dict(model, initial_weights(model.program, 0), "uvit")
