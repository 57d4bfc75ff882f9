"""Imported transformers compute what their own networks compute; PyTorch's environment owns these formats."""

from __future__ import annotations

import argparse
import importlib.util
import json
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
from diffusion_core.convert import Imported, dit, export_pipeline, export_state_dict, import_weights
from diffusion_core.convert.names import read_weights, write_weights
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks import DiTSpec, lower
from diffusion_core.networks.weights import initial_weights
from diffusion_core.optim.adam import Adam

IMAGES = np.random.default_rng(0).standard_normal((2, 8, 8, 3))
T, LABELS = np.array([0.37, 812.0]), np.array([1, 3])

# By name: the source, the options of the network, those of the import, and those of the spec that it finds.
DITS: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "DiT": ("dit", {}, {}, {"out_channels": 6, "num_classes": 3, "depth": 2}),
    "without learned sigma": ("dit", {"learn_sigma": False, "patch": 4}, {}, {"out_channels": 3, "patch_size": 4}),
    "without label dropout": (
        "dit", {"depth": 1}, {"null_class": "none"}, {"num_classes": 4, "null_class": "none", "depth": 1},
    ),
    "an uneven MLP": ("dit", {"depth": 1, "hidden": 43, "features": 20}, {}, {"embedding_features": 20}),
    "SiT": ("sit", {"discards": True}, {}, {"out_channels": 3, "discarded_channels": 3}),
    "SiT without learned sigma": ("sit", {"learn_sigma": False}, {}, {"out_channels": 3, "discarded_channels": 0}),
}  # fmt: skip


def load(name: str) -> ModuleType:
    found = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def oracles() -> ModuleType:
    return load("transformer_oracles")


@pytest.fixture(scope="module")
def randomised() -> Any:
    return load("torch_oracles").randomised


def never(path: Path) -> dict[str, NDArray]:
    raise AssertionError(f"{path} was given to a framework")


def theirs(net: Any, *inputs: NDArray) -> NDArray:
    """The output of a PyTorch network for images b h w c."""
    import torch

    with torch.no_grad():
        x, *rest = (torch.from_numpy(np.asarray(value)) for value in inputs)
        output = net(x.permute(0, 3, 1, 2), *rest)
        return getattr(output, "sample", output).permute(0, 2, 3, 1).numpy()


def make(oracles: ModuleType, randomised: Any, **options: Any) -> Any:
    """A network in float64 with random weights, whose table of positions is the fixed one."""
    net = oracles.DiT(**options)
    table = net.pos_embed.detach().clone()
    net = randomised(net).double()
    net.pos_embed.data = table.double()
    return net


def imported(net: Any, source: str, path: Path, **options: Any) -> Imported:
    import torch

    torch.save(net.state_dict(), path / "net.pt")
    return import_weights(source, path / "net.pt", never, None, {"heads": 4, **options})


def same_as(expected: NDArray, found: Imported, **inputs: NDArray) -> None:
    assert np.abs(expected).max() > 0.5, "an output of unit scale"
    ours = reference.forward(found.model.program, found.weights, IMAGES, T, LABELS, **inputs)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("source, options, how, spec", DITS.values(), ids=DITS)
def test_a_dit_computes_the_same(source, options, how, spec, tmp_path, open_backend, oracles, randomised):
    net = make(oracles, randomised, **options)
    found = imported(net, source, tmp_path, **how)
    assert {name: getattr(found.model.spec, name) for name in spec} == spec
    expected = theirs(net, IMAGES, T, LABELS)
    same_as(expected, found)
    network = open_backend("float64").network(found.model.program, found.weights)
    np.testing.assert_allclose(
        network.forward(IMAGES, T, LABELS), expected, rtol=0, atol=1e-12 * np.abs(expected).max()
    )


@pytest.mark.parametrize("name", ["without learned sigma", "SiT"])
def test_the_gradients_by_all_parameters_are_the_same(name, tmp_path, open_backend, oracles, randomised):
    """Of the sum of squares of the output: a training step whose target is 0."""
    import torch

    source, options, how, _ = DITS[name]
    net = make(oracles, randomised, **options)
    found = imported(net, source, tmp_path, **how)
    output = net(torch.from_numpy(IMAGES).permute(0, 3, 1, 2), torch.from_numpy(T), torch.from_numpy(LABELS))
    output.square().sum().backward()
    ones, zeros = np.ones(2), np.zeros(2)
    batch = TrainBatch(
        images=IMAGES, noise=np.zeros_like(IMAGES), label=LABELS.astype(np.int32), alpha=ones, sigma=zeros, c_in=ones,
        c_noise=T, target_x0=zeros, target_eps=zeros, weight=ones, importance=ones,
        features=np.zeros((2, 0)), positions=np.arange(2), dropout_key=np.zeros(2, np.int64),
    )  # fmt: skip
    program = found.model.program
    trainer = open_backend("float64").trainer(program, TrainerState.fresh(found.weights), Adam(), "mse")
    ours = {p.name: np.zeros(p.shape) for p in program.parameters} | trainer.gradients(batch)[1]
    arrays = write_weights(dit.make_name_map(found.model.spec, program), ours)
    for parameter, value in net.named_parameters():
        if parameter != "pos_embed":
            wanted = value.grad.numpy()
            got = IMAGES.size * arrays[parameter]
            np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-12 * np.abs(wanted).max(), err_msg=parameter)


@pytest.mark.parametrize("source, options, how, spec", DITS.values(), ids=DITS)
def test_an_exported_dit_loads_with_the_same_bits(source, options, how, spec, tmp_path, oracles, randomised):
    import torch

    net = make(oracles, randomised, **options).float()
    found = imported(net, source, tmp_path, **how)
    arrays = export_state_dict(found.model, found.weights, source)
    again = oracles.DiT(**options)
    again.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    for name, value in net.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_the_processes_are_those_of_the_code(tmp_path, oracles, randomised):
    dit = imported(make(oracles, randomised, depth=1), "dit", tmp_path)
    assert dit.model.variance == "learned_range" and dit.model.prediction == "eps"
    assert dit.objective == {"label_dropout": 0.1, "bound_cdf": "tanh"}
    assert dit.process_source == "that of DiT's code, since these files do not say it; set process=NAME for another"
    plan = plan_of(dit)
    assert (plan.rows, plan.guidance_channels, plan.clip) == (250, 3, None)
    np.testing.assert_array_equal(plan.guidance_scale, 4.0)
    # The timesteps of space_timesteps(1000, "250").
    np.testing.assert_array_equal(plan.t[::-1], np.round(np.arange(250) * (999 / 249)))
    sit = imported(make(oracles, randomised, depth=1, discards=True), "sit", tmp_path)
    assert plan_of(sit).guidance_channels == 3 and sit.sampler["name"] == "sit_sde"
    columns = sit.model.process.columns(np.array([0.25]))
    # x_s = s data + (1 - s) noise at s = 0.75, and the network predicts data - noise from s.
    assert (columns.c_noise, columns.target_x0, columns.target_eps) == (0.75, 1.0, -1.0)


def plan_of(found: Imported) -> Any:
    options = dict(found.sampler)
    return found.model.plan(options.pop("name"), **options)


def test_a_checkpoint_of_its_training_has_both_networks(tmp_path, oracles, randomised):
    """With the optimiser's state and the arguments of the command line next to them, as its script saves them."""
    import torch

    net, average = (make(oracles, randomised, depth=1, width=16) for _ in range(2))
    average.pos_embed.data = net.pos_embed.data
    average.final_layer.linear.bias.data += 1.0
    state = {"model": net.state_dict(), "ema": average.state_dict(), "opt": {"state": {}, "param_groups": []},
             "args": argparse.Namespace(model="DiT-S/2")}  # fmt: skip
    torch.save(state, tmp_path / "0050000.pt")
    found = import_weights("dit", tmp_path / "0050000.pt", never, None, {"heads": 4})
    difference = found.ema["final.dense.bias"] - found.weights["final.dense.bias"]
    np.testing.assert_allclose(difference, 1.0)
    assert "moving average under ema" in found.note


def test_two_times_are_embedded_and_added(oracles, randomised):
    """The network of MeanFlow: c = t + h + y."""
    net = make(oracles, randomised, depth=1, two_times=True, learn_sigma=False)
    spec = DiTSpec(8, 3, 3, num_classes=3, channels=16, depth=1, heads=4, embedding_features=32, second_time=True)
    arrays = {name: value.numpy() for name, value in net.state_dict().items()}
    names = {"embed.second.dense0": "h_embedder.mlp.0", "embed.second.dense1": "h_embedder.mlp.2"}
    one_time = lower(replace(spec, second_time=False))
    rest = {name: value for name, value in arrays.items() if not name.startswith("h_embedder")}
    weights = read_weights(dit.make_name_map(spec, one_time), one_time, rest, "")
    weights |= {
        f"{ours}.{leaf}": arrays[f"{other}.{leaf}"] for ours, other in names.items() for leaf in ("weight", "bias")
    }
    h = np.array([0.2, 0.9])
    expected = theirs(net, IMAGES, T, LABELS, h)
    ours = reference.forward(lower(spec), weights, IMAGES, T, LABELS, second_time=h)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {}, "source.heads: no value was given; the weights do not determine it for 16 channels"),
        ({}, {"heads": 5}, "model.heads: 5 heads do not divide 16 channels"),
        ({}, {"heads": 4, "null_class": "zero"}, "source.null_class: 'zero' was given; it must be one of last, none"),
        ({"blocks.0.mlp.fc1.weight": None}, {"heads": 4}, "blocks.0.mlp.fc1.weight is missing"),
        ({"blocks.1.attn.proj.bias": None}, {"heads": 4}, "blocks.1.attn.proj.bias"),
        ({"pos_embed": np.zeros((1, 15, 16))}, {"heads": 4}, "pos_embed has 15 rows"),
        ({"final_layer.linear.weight": np.zeros((20, 16))}, {"heads": 4}, "final_layer.linear has 20 rows"),
        ({"x_embedder.proj.weight": None}, {"heads": 4}, "x_embedder.proj.weight is missing; this is not a state dict"),
        ({"h_embedder.mlp.0.weight": np.zeros((16, 32))}, {"heads": 4}, "h_embedder.mlp.0.weight: no parameter"),
    ],
)
def test_what_does_not_fit_is_refused(change, options, message, tmp_path, oracles, randomised):
    arrays = {name: value.numpy() for name, value in make(oracles, randomised).state_dict().items()} | change
    np.savez(tmp_path / "net.npz", **{name: value for name, value in arrays.items() if value is not None})
    with pytest.raises(DuetError, match=message):
        import_weights("dit", tmp_path / "net.npz", never, None, options)


def test_a_network_that_the_project_has_not_is_not_written():
    spec = DiTSpec(8, 3, 3, num_classes=3, channels=16, depth=1, heads=4, norm_eps=1e-5, mlp_norm_eps=1e-5)
    model = DiffusionModel(spec, "linear", "eps")
    with pytest.raises(DuetError, match=r"model\.(mlp_)?norm_eps: 1e-05 was given; a network of dit has 1e-06"):
        export_state_dict(model, initial_weights(model.program, 0), "dit")


# DiTTransformer2DModel of diffusers

DIFFUSERS: dict[str, dict[str, Any]] = {
    "learned sigma": {"out_channels": 6},
    "without biases of q, k and v": {"attention_bias": False, "norm_eps": 1e-6, "num_layers": 1, "patch_size": 4},
}


def public(randomised: Any, equal: bool, **options: Any) -> Any:
    """A DiTTransformer2DModel in float64 with random weights, whose embedders are equal or not, with exact waves."""
    import torch
    from diffusers import DiTTransformer2DModel

    given = {"num_attention_heads": 4, "attention_head_dim": 4, "in_channels": 3, "num_layers": 2, "sample_size": 8,
             "num_embeds_ada_norm": 3}  # fmt: skip
    net = randomised(DiTTransformer2DModel(**given | options)).double()
    if equal:
        for block in net.transformer_blocks[1:]:
            block.norm1.emb.load_state_dict(net.transformer_blocks[0].norm1.emb.state_dict())

    def waves(t: Any) -> Any:
        frequencies = 10000.0 ** (-torch.arange(128, dtype=torch.float64) / 127)
        angle = t.double()[:, None] * frequencies
        return torch.cat([angle.cos(), angle.sin()], dim=1)

    for block in net.transformer_blocks:
        block.norm1.emb.time_proj.forward = waves  # its own are float32
    return net


@pytest.mark.parametrize("equal", [True, False], ids=["shared", "per block"])
@pytest.mark.parametrize("options", DIFFUSERS.values(), ids=DIFFUSERS)
def test_a_dit_of_diffusers_computes_the_same(options, equal, tmp_path, randomised):
    net = public(randomised, equal, **options)
    net.save_pretrained(tmp_path)
    found = import_weights("diffusers", tmp_path, never, None, {})
    spec = found.model.spec
    assert spec.embedders == ("shared" if equal or spec.depth == 1 else "per_block")
    assert (spec.embedding_divisor, spec.mlp_norm_eps) == ("half_minus_one", options.get("norm_eps", 1e-5))
    assert found.model.variance == ("learned_range" if "out_channels" in options else "fixed")
    bound = {"bound_cdf": "tanh"} if "out_channels" in options else {}
    assert found.objective == {"label_dropout": 0.1} | bound
    same_as(theirs(net, IMAGES, T, LABELS), found)


@pytest.mark.parametrize("equal", [True, False], ids=["shared", "per block"])
@pytest.mark.parametrize("options", DIFFUSERS.values(), ids=DIFFUSERS)
def test_an_exported_dit_of_diffusers_has_the_same_bits(options, equal, tmp_path, randomised):
    import torch
    from diffusers import DiTPipeline, DiTTransformer2DModel

    net = public(randomised, equal, **options).float()
    net.save_pretrained(tmp_path / "there")
    found = import_weights("diffusers", tmp_path / "there", never, None, {})
    write(tmp_path / "back", export_pipeline(found.model, found.weights))
    again = DiTTransformer2DModel.from_pretrained(tmp_path / "back", subfolder="transformer")
    for (name, given), (same, got) in zip(net.state_dict().items(), again.state_dict().items(), strict=True):
        assert name == same and torch.equal(given, got)
    assert {k: v for k, v in again.config.items() if k in found_config(net)} == found_config(net)
    assert DiTPipeline.from_pretrained(tmp_path / "back", vae=None).transformer.config.num_layers == len(
        net.transformer_blocks
    )
    twice = import_weights("diffusers", tmp_path / "back", never, None, {})
    assert twice.model.spec == found.model.spec and twice.sampler["name"] == "ddpm"


def found_config(net: Any) -> dict[str, Any]:
    names = ("num_attention_heads", "attention_head_dim", "in_channels", "num_layers", "attention_bias", "norm_eps",
             "sample_size", "patch_size", "num_embeds_ada_norm")  # fmt: skip
    return {name: net.config[name] for name in names}


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def test_a_pipeline_of_diffusers_is_read_without_its_vae(tmp_path, randomised):
    """Its folders as DiTPipeline saves them; the configuration is that of the class of 2023."""
    from diffusers import DDIMScheduler

    net = public(randomised, True)
    net.save_pretrained(tmp_path / "transformer")
    config = json.loads((tmp_path / "transformer/config.json").read_text())
    config |= {"_class_name": "Transformer2DModel", "cross_attention_dim": None, "num_vector_embeds": None,
               "only_cross_attention": False, "use_linear_projection": False}  # fmt: skip
    (tmp_path / "transformer/config.json").write_text(json.dumps(config))
    DDIMScheduler(clip_sample=False).save_pretrained(tmp_path / "scheduler")
    index = {"_class_name": "DiTPipeline", "id2label": {"0": "a"}, "scheduler": ["diffusers", "DDIMScheduler"],
             "transformer": ["diffusers", "Transformer2DModel"], "vae": ["diffusers", "AutoencoderKL"]}  # fmt: skip
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    found = import_weights("diffusers", tmp_path, never, None, {})
    assert "a DiTPipeline (sample.autoencoder decodes with its vae) of diffusers" in found.note
    assert found.sampler["name"] == "ddim" and found.model.schedule["name"] == "linear"
    same_as(theirs(net, IMAGES, T, LABELS), found)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"activation_fn": "gelu"}, {}, "activation_fn: 'gelu' was given; Duet's DiT takes 'gelu-approximate'"),
        ({"norm_type": "layer_norm"}, {}, "norm_type: 'layer_norm' was given; Duet's DiT takes 'ada_norm_zero'"),
        ({"cross_attention_dim": 8}, {}, "cross_attention_dim: 8 was given; Duet's DiT takes None"),
        ({"sample_size": None}, {}, "sample_size: None was given; it must be a whole number; set source.image_size"),
        ({"num_layerz": 2}, {}, "num_layerz"),
        ({}, {"null_class": "zero"}, "source.null_class: 'zero' was given; the last row"),
        ({"attention_head_dim": 5}, {}, "the network needs shape"),
    ],
)
def test_a_dit_of_diffusers_that_does_not_fit_is_refused(change, options, message, tmp_path, randomised):
    public(randomised, True).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(DuetError, match=message):
        import_weights("diffusers", tmp_path, never, None, options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"embedding_divisor": "half"},
            "model.embedding_divisor: half was given; a DiTTransformer2DModel has half_minus",
        ),
        ({"mlp_ratio": 2.0}, "model.mlp_ratio: 2.0 was given; a DiTTransformer2DModel has 4.0"),
        ({"second_time": True}, "model.second_time: True was given; a DiTTransformer2DModel has False"),
        ({"num_classes": 0}, "model.num_classes: 0 was given; a DiTTransformer2DModel needs classes"),
        ({}, "positions.table: it differs from the fixed table"),
    ],
)
def test_a_dit_that_diffusers_has_not_is_not_written(change, message):
    spec = replace(DiTSpec(8, 3, 3, num_classes=3, channels=16, depth=1, heads=4, embedding_divisor="half_minus_one",
                           mlp_norm_eps=1e-5), **change)  # fmt: skip
    model = DiffusionModel(spec, "linear", "eps")
    weights = initial_weights(model.program, 0)
    if not change:
        weights["positions.table"] = weights["positions.table"] + 0.5
    with pytest.raises(DuetError, match=message):
        export_pipeline(model, weights)
