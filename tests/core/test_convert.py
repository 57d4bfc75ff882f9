"""Formats of other projects without their frameworks: writing and reading a network keeps every bit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import numpy as tensors

from diffusion_core.common.errors import DuetError
from diffusion_core.convert import (
    ddpm_tf,
    ddpm_torch,
    diffusers_config,
    edm,
    export_pipeline,
    export_state_dict,
    guided_diffusion,
    import_weights,
)
from diffusion_core.convert.arrays import read_arrays
from diffusion_core.convert.names import CONV1D, DENSE_1X1, HWIO, SAME, TRANSPOSED, TRANSPOSED_1X1, qkv, write_weights
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks import UNetSpec, lower
from diffusion_core.networks.blocks import ATTENTION_ORDERS, Attention
from diffusion_core.networks.weights import initial_weights

SMALL = UNetSpec(
    8, channels=8, channel_multipliers=(1, 2), blocks_per_resolution=1, attention_resolutions=(4,), norm_groups=4
)
ADM = replace(
    SMALL, time="scale_shift", embedding_divisor="half", embedding_sin_first=False, norm_eps=1e-5, null_class="zero",
    qkv_order="heads", head_channels=4, num_classes=3, down="block", up="block", out_channels=6,
)  # fmt: skip
SONG = replace(
    SMALL, up_attention="last", norm_groups=32, norm_group_channels=4, down="block", up="block", augment_dim=9,
    resample_projection=True, skip_scale=0.5**0.5, class_embedding="before", qkv_order="interleaved",
)  # fmt: skip
EDM_ADM = replace(ADM, norm_groups=32, norm_group_channels=4, qkv_order="interleaved", out_channels=3)

# Source, network, options of the import. Names and shapes must determine the network up to the options.
GUIDED = {"image_size": 8, "norm_groups": 4}
CASES = {
    "diffusers": ("diffusers", replace(SMALL, down_padding=(0, 1)), {}),
    "diffusers, ADM": ("diffusers", replace(ADM, qkv_order="qkv"), {}),
    "diffusers, last class": ("diffusers", replace(SMALL, num_classes=3), {"null_class": "last"}),
    "diffusers, mixed": ("diffusers", replace(SMALL, down="block", dropout=0.1, middle_attention=False), {}),
    "diffusers, one level": ("diffusers", replace(SMALL, channel_multipliers=(1,), attention_resolutions=()), {}),
    "guided": ("guided_diffusion", ADM, GUIDED | {"head_channels": 4}),
    "guided, three levels": (
        "guided_diffusion",
        replace(
            ADM, channel_multipliers=(1, 2, 3), attention_resolutions=(8, 2), blocks_per_resolution=2, num_classes=0
        ),
        GUIDED | {"head_channels": 4},
    ),
    "improved": (
        "guided_diffusion",
        replace(ADM, down="conv", up="conv", head_channels=None, heads=4, num_classes=0),
        GUIDED | {"heads": 4},
    ),
    "diffusers, other widths": ("diffusers", replace(SMALL, channel_multipliers=(1, 12 / 8), norm_groups=2), {}),
    "guided, half the base width first": (
        "guided_diffusion",
        replace(ADM, channels=16, channel_multipliers=(0.5, 1.75), first_conv="first"),
        GUIDED | {"head_channels": 4},
    ),
    "ddpm, other widths": (
        "ddpm_tf",
        replace(SMALL, down_padding=(0, 1), channel_multipliers=(1, 12 / 8)),
        {"image_size": 8, "norm_groups": 4},
    ),
    "EDM's ADM, other widths": (
        "edm",
        replace(EDM_ADM, channels=16, channel_multipliers=(0.5, 1.25), first_conv="first"),
        {"head_channels": 4},
    ),
    "guided, pooling": (
        "guided_diffusion",
        replace(ADM, down="pool", up="nearest", time="add", qkv_order="qkv", channel_multipliers=(1, 1, 2)),
        GUIDED | {"head_channels": 4, "qkv_order": "qkv"},
    ),
    "guided, one level": (
        "guided_diffusion",
        replace(
            ADM,
            channel_multipliers=(2,),
            attention_resolutions=(8,),
            down="conv",
            up="conv",
            channels=8,
            blocks_per_resolution=3,
        ),
        GUIDED | {"head_channels": 4},
    ),
    "ddpm": ("ddpm_tf", replace(SMALL, down_padding=(0, 1)), {"image_size": 8, "norm_groups": 4}),
    "ddpm in PyTorch": ("ddpm_torch", replace(SMALL, down_padding=(0, 1)), {"image_size": 8, "norm_groups": 4}),
    "ddpm, pooling": (
        "ddpm_tf",
        replace(
            SMALL,
            down="pool",
            up="nearest",
            down_padding=(0, 1),
            channel_multipliers=(1, 2, 2),
            attention_resolutions=(8,),
        ),
        {"image_size": 8, "norm_groups": 4},
    ),
    "DDPM++": ("edm", SONG, {}),
    "NCSN++": (
        "edm",
        replace(
            SONG, embedding="fourier", embedding_multiplier=2, encoder="residual", resample_filter=(1.0, 3.0, 3.0, 1.0)
        ),
        {},
    ),
    "EDM's ADM": ("edm", EDM_ADM, {"head_channels": 4}),
}
NAMES = {
    "guided_diffusion": guided_diffusion.make_name_map,
    "ddpm_tf": ddpm_tf.make_name_map,
    "ddpm_torch": ddpm_torch.make_name_map,
    "edm": edm.make_name_map,
}


def never(path: Path) -> dict[str, NDArray]:
    raise AssertionError(f"{path} was given to a framework")


def weights_of(spec: UNetSpec) -> dict[str, NDArray]:
    """Return weights without constant layers, so that two of the same shape cannot be confused."""
    program = lower(replace(spec, zero_init=False))
    return {name: value + 0.1 for name, value in initial_weights(program, 0, np.float32).items()}


def foreign(source: str, spec: UNetSpec, folder: Path) -> Path:
    """Write the weights of a network as another project stores them."""
    if source == "diffusers":
        model = DiffusionModel(spec, {"name": "linear", "T": 1000}, "eps")
        for name, content in export_pipeline(model, weights_of(spec)).items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
        return folder
    arrays = write_weights(NAMES[source](spec, lower(spec)), weights_of(spec))
    if source == "edm":
        side = np.array(spec.resample_filter, np.float32)
        arrays |= {f"enc.4x4_down.{name}.resample_filter": np.outer(side, side)[None, None] / side.sum() ** 2
                   for name in ("conv0", "skip")}  # fmt: skip
    np.savez(folder / "weights.npz", **arrays)
    return folder / "weights.npz"


@pytest.mark.parametrize("name", CASES)
def test_what_is_written_is_read_as_the_same_network(name, tmp_path):
    source, spec, options = CASES[name]
    found = import_weights(source, foreign(source, spec, tmp_path), never, None, options)
    assert found.model.program.describe() == lower(spec).describe()
    assert found.model.program.sha256 == lower(spec).sha256
    assert found.weights.keys() == weights_of(spec).keys()
    for parameter, value in weights_of(spec).items():
        np.testing.assert_array_equal(found.weights[parameter], value, err_msg=parameter)
        np.testing.assert_array_equal(found.ema[parameter], value)


@pytest.mark.parametrize("name", [name for name, (source, *_) in CASES.items() if source != "diffusers"])
def test_a_state_dict_that_is_written_is_imported_unchanged(name, tmp_path):
    source, spec, options = CASES[name]
    arrays = export_state_dict(DiffusionModel(spec, "linear", "eps"), weights_of(spec), source)
    np.savez(tmp_path / "weights.npz", **arrays)
    found = import_weights(source, tmp_path / "weights.npz", never, None, options)
    assert found.model.program.sha256 == lower(spec).sha256
    for parameter, value in weights_of(spec).items():
        np.testing.assert_array_equal(found.weights[parameter], value, err_msg=parameter)


@pytest.mark.parametrize("source, spec, words", [
    ("guided_diffusion", replace(ADM, norm_eps=1e-6), "model.norm_eps: 1e-06 was given; a network of guided.* 1e-05"),
    ("guided_diffusion", replace(ADM, skip_scale=0.5), "model.skip_scale: 0.5 was given; .* has 1.0"),
    ("guided_diffusion", replace(ADM, self_conditioning=True, out_channels=3), "model.self_conditioning: True"),
    ("guided_diffusion", replace(ADM, middle=False), "middle_block.0|model.middle: False"),
    ("ddpm_tf", replace(SMALL, activation="gelu", down_padding=(0, 1)), "model.activation: gelu .* has silu"),
    ("ddpm_tf", replace(SMALL, num_classes=3), "this format has no name for embed.label"),
    ("edm", replace(SONG, norm_eps=1e-5), "model.norm_eps: 1e-05 was given; a network of edm has 1e-06"),
    ("dome272", SMALL, "target.project: dome272 was given, .* is a UNetSpec; use guided_diffusion or ddpm"),
    ("edn", SMALL, "target.project: 'edn' was given; .* Did you mean 'edm'"),
])  # fmt: skip
def test_a_network_that_a_project_does_not_have_is_refused_by_its_option(source, spec, words):
    with pytest.raises(DuetError, match=words):
        export_state_dict(DiffusionModel(spec, "linear", "eps"), weights_of(spec), source)


@pytest.mark.parametrize("source, spec, options", [
    ("guided_diffusion", ADM, GUIDED | {"head_channels": 4}),
    ("ddpm_tf", replace(SMALL, down_padding=(0, 1)), {"image_size": 8, "norm_groups": 4}),
    ("edm", SONG, {}),
], ids=["guided_diffusion", "ddpm_tf", "edm"])  # fmt: skip
def test_a_mismatch_is_named_and_the_rest_is_counted(source, spec, options, tmp_path):
    path = foreign(source, spec, tmp_path)
    with np.load(path) as file:
        whole = dict(file)

    def read(**changes: NDArray | None) -> None:
        np.savez(path, **{name: value for name, value in (whole | changes).items() if value is not None})
        import_weights(source, path, never, None, options)

    last = next(name for name in reversed(whole) if "filter" not in name)
    other = next(name for name in whole if whole[name].shape == (8,))
    read()
    with pytest.raises(DuetError, match=rf"weights.npz: {last}: the network needs shape \(.*\), but it is missing$"):
        read(**{last: None})
    with pytest.raises(DuetError, match=rf"{other}: the network needs shape \(8,\), but \(9,\) was given$"):
        read(**{other: np.zeros(9, np.float32)})
    with pytest.raises(DuetError, match=r"npz: more: no parameter of the network uses it \(and 1 more\)$"):
        read(more=np.zeros(1), still=np.zeros(1))
    kinds = rf"{last}: .* missing; {other}: .* but \(9,\) was given; more: no parameter of the network uses it$"
    with pytest.raises(DuetError, match=kinds):
        read(**{last: None, other: np.zeros(9, np.float32), "more": np.zeros(1)})
    wrong = f"{last}_"
    nearest = rf"missing \(the nearest unused name is {wrong}\); {wrong}: .* \(the nearest missing name is {last}\)$"
    with pytest.raises(DuetError, match=nearest):
        read(**{last: None, wrong: whole[last]})
    for value in (np.nan, np.inf):
        bad = whole[last].copy()
        bad.flat[0] = value
        with pytest.raises(DuetError, match=rf"hold NaN or infinity: {last} \(1 of {bad.size} values\); import"):
            read(**{last: bad})
    with pytest.raises(DuetError, match=rf"{other}: the network needs floating-point values, but int64 was given$"):
        read(**{other: np.zeros(8, np.int64)})
    with pytest.raises(DuetError, match=r"weights.npz: "):
        import_weights(source, empty(path), never, None, options)


def empty(path: Path) -> Path:
    np.savez(path, something=np.zeros(3))
    return path


@pytest.mark.parametrize("layout, shape", [
    (SAME, (2, 3)), (TRANSPOSED, (2, 3)), (HWIO, (2, 3, 4, 5)), (DENSE_1X1, (2, 3, 1, 1)),
    (TRANSPOSED_1X1, (2, 3, 1, 1)), (CONV1D, (2, 3, 1, 1)),
    *((qkv(DENSE_1X1, Attention(4, 2, order)), (12, 4, 1, 1)) for order in ATTENTION_ORDERS),
])  # fmt: skip
def test_a_layout_is_invertible(layout, shape):
    array = np.arange(np.prod(shape)).reshape(shape)
    np.testing.assert_array_equal(layout.to_duet(*layout.from_duet(array)), array)


def test_q_k_and_v_are_placed_as_each_order_reads_them():
    q, k, v = (np.array([f"{part}{n}{d}" for n in range(2) for d in range(2)]) for part in "qkv")
    placed = {order: " ".join(qkv(SAME, Attention(4, 2, order)).to_duet(q, k, v)) for order in ATTENTION_ORDERS}
    assert placed == {
        "qkv": "q00 q01 q10 q11 k00 k01 k10 k11 v00 v01 v10 v11",
        "heads": "q00 q01 k00 k01 v00 v01 q10 q11 k10 k11 v10 v11",
        "interleaved": "q00 k00 v00 q01 k01 v01 q10 k10 v10 q11 k11 v11",
    }


def test_half_precision_is_widened_exactly(tmp_path):
    path = foreign("edm", SONG, tmp_path)
    with np.load(path) as file:
        np.savez(path, **{name: value.astype(np.float16) for name, value in file.items()})
    found = import_weights("edm", path, never, None, {})
    for name, value in weights_of(SONG).items():
        assert found.weights[name].dtype == np.float32
        np.testing.assert_array_equal(found.weights[name], value.astype(np.float16))


def test_the_class_table_of_songunet_contains_its_dense_layer(tmp_path):
    spec = replace(SONG, num_classes=3)
    path = foreign("edm", spec, tmp_path)
    with np.load(path) as file:
        weight, bias = file["map_label.weight"], file["map_label.bias"]
    table = import_weights("edm", path, never, None, {}).weights["embed.label.weight"]
    for k in range(3):
        np.testing.assert_allclose(table[k], weight.astype(float) @ (np.eye(3)[k] * 3**0.5) + bias, rtol=0, atol=1e-15)
    np.testing.assert_array_equal(table[3], bias)


@pytest.mark.parametrize("order", ATTENTION_ORDERS)
def test_every_qkv_order_is_exported_as_the_same_q_k_and_v(order, tmp_path):
    """diffusers has three layers, each of which must contain the channels of every head."""
    spec = replace(ADM, qkv_order=order)
    folder = foreign("diffusers", spec, tmp_path)
    arrays = tensors.load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    rows = weights_of(spec)["mid.attn.qkv.weight"][:, :, 0, 0]
    layout = {"qkv": (3, 4, 4), "heads": (4, 3, 4), "interleaved": (4, 4, 3)}[order]
    index = np.arange(48).reshape(layout)
    axis = layout.index(3)
    for part, name in enumerate(("to_q", "to_k", "to_v")):
        mine = rows[index.take(part, axis).ravel()]
        np.testing.assert_array_equal(arrays[f"mid_block.attentions.0.{name}.weight"], mine)


def config(**changes: object) -> dict[str, object]:
    return {
        "_class_name": "UNet2DModel", "sample_size": 8, "block_out_channels": [8, 16], "norm_num_groups": 4,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
        **changes,
    }  # fmt: skip


@pytest.mark.parametrize("changes, words", [
    ({"_class_name": "UNet2DConditionModel"}, "_class_name: 'UNet2DConditionModel' was given; .* UNet2DModel"),
    ({"act_fn": "geglu"}, "act_fn: 'geglu' was given; Duet's UNet takes 'silu' or 'swish' or 'relu'"),
    ({"center_input_sample": True}, "center_input_sample: .*; it has no block for a block that computes 2 x - 1"),
    ({"time_embedding_type": "fourier"}, "time_embedding_type: 'fourier' .*; it has no block for random frequencies"),
    ({"class_embed_type": "timestep"}, "class_embed_type"),
    ({"mid_block_scale_factor": 0}, "mid_block_scale_factor"),
    ({"mid_block_type": "UNetMidBlock2DCrossAttn"}, "mid_block_type"),
    ({"time_embedding_dim": "8"}, "an entry has the wrong type"),
    ({"freq_shift": 2}, "freq_shift: 2 was given; .* 0 or 1"),
    ({"downsample_padding": 2}, "downsample_padding"),
    ({"sample_size": None}, "sample_size: None was given; .*source.image_size=PIXELS"),
    ({"sample_size": [8, 16]}, "sample_size"),
    ({"block_out_channels": [8, 12.5]}, "block_out_channels: .* a list of whole numbers"),
    ({"down_block_types": ["DownBlock2D"]}, "down_block_types: .* one block for each of the 2"),
    ({"down_block_types": ["SkipDownBlock2D", "DownBlock2D"]}, "down_block_types: 'SkipDown.* no block for FIR"),
    ({"up_block_types": ["AttnUpBlock", "UpBlock2D"]}, "up_block_types: 'AttnUpBlock' .* Did you mean 'AttnUpBlock2D'"),
    ({"downsample_type": "nearest"}, "downsample_type"),
    ({"resnet_time_scale_shift": "spatial", "attn_norm_num_groups": 4}, "resnet_time_scale_shift"),
    ({"resnet_time_scale_shift": "ada_group"}, "resnet_time_scale_shift: .*; it has no block for group norms whose"),
    ({"norm_groups": 4}, "entry: 'norm_groups' .* Did you mean 'norm_num_groups'?"),
    ({"layers_per_block": None}, "an entry has the wrong type"),
])  # fmt: skip
def test_entries_that_a_spec_cannot_express_are_refused_by_name(changes, words):
    assert diffusers_config.read_spec(config(), "config.json").attention_resolutions == (4,)
    with pytest.raises(DuetError, match=f"^config.json: {words}"):
        diffusers_config.read_spec(config(**changes), "config.json")


@pytest.mark.parametrize("changes, words", [
    ({"up_attention": "last"}, "up_attention"),
    ({"embedding": "fourier"}, "embedding"),
    ({"embedding_multiplier": 2}, "embedding_multiplier"),
    ({"class_embedding": "before", "num_classes": 2}, "class_embedding"),
    ({"augment_dim": 2}, "augment_dim"),
    ({"down": "pool"}, "down: pool was given; UNet2DModel supports only conv or block"),
    ({"up": "nearest"}, "up: nearest"),
    ({"down_padding": (1, 0)}, "down_padding"),
    ({"encoder": "residual"}, "encoder"),
    ({"skip_scale": 0.5}, "skip_scale"),
    ({"self_conditioning": True}, "self_conditioning: True was given; UNet2DModel supports only False"),
    ({"down": "block", "resample_filter": (1.0, 3.0, 3.0, 1.0)}, "resample_filter"),
    ({"up": "block", "resample_projection": True}, "resample_projection"),
    ({"norm_group_channels": 4}, "norm_group_channels"),
    ({"first_conv": "first", "channel_multipliers": (2, 1)}, "first_conv: first was given; UNet2DModel .* channels"),
    ({"channel_multipliers": (2, 1)}, "channel_multipliers: .* 1 for the first resolution"),
    ({"middle_norm_groups": 0}, "middle_norm_groups: 0"),
    ({"heads": 2, "attention_resolutions": (8, 4)},
     "heads: 2 was given; UNet2DModel supports only one head, or the same channels per head"),
])  # fmt: skip
def test_fields_that_diffusers_cannot_express_are_refused_by_name(changes, words):
    spec = replace(SMALL, **changes)
    with pytest.raises(DuetError, match=f"^model.{words}"):
        export_pipeline(DiffusionModel(spec, {"name": "linear"}, "eps"), initial_weights(lower(spec), 0))


@pytest.mark.parametrize("schedule, prediction, words", [
    ({"name": "flow", "T": 10}, "v", "process.schedule: flow was given; DDPMScheduler needs a schedule"),
    ({"name": "linear", "T": 10}, "next_level", "process.prediction: next_level was given"),
])  # fmt: skip
def test_a_schedule_or_prediction_that_diffusers_lacks_is_refused(schedule, prediction, words):
    with pytest.raises(DuetError, match=words):
        export_pipeline(DiffusionModel(SMALL, schedule, prediction), initial_weights(lower(SMALL), 0))


@pytest.mark.parametrize("changes, words", [
    ({"variance": "learned"}, "process.variance: learned was given; .* needs learned_range"),
    ({"variance": "learned_range", "uncertainty": True}, "process.uncertainty: true was given; UNet2DModel"),
])  # fmt: skip
def test_an_output_that_diffusers_cannot_read_is_refused(changes, words):
    model = DiffusionModel(ADM, {"name": "linear"}, "eps", **changes)
    with pytest.raises(DuetError, match=f"^{words}"):
        export_pipeline(model, initial_weights(model.program, 0))


@pytest.mark.parametrize("changed", [
    {"name": "linear", "zero_terminal_snr": True}, {"name": "linear", "log_snr_shift": -1.0},
    {"name": "scaled_linear", "beta_start": 0.001, "beta_end": 0.1, "zero_terminal_snr": True},
    {"name": "cosine", "shift_from": 32, "shift_to": 64}, {"name": "cosine", "s": 0.1}, {"name": "constant"},
])  # fmt: skip
def test_betas_without_a_name_in_diffusers_are_written_as_a_list(changed):
    model = DiffusionModel(SMALL, changed | {"T": 7}, "v")
    config = json.loads(export_pipeline(model, weights_of(SMALL))["scheduler/scheduler_config.json"])
    # Their table is the plain product.
    signal = np.cumprod(1 - np.array(config["trained_betas"]))
    np.testing.assert_allclose(signal, model.process.schedule.alpha**2, rtol=1e-12)


@pytest.mark.parametrize("changes, words", [
    ({"value_range": (0.0, 1.0)}, r"value_range: \(0.0, 1.0\) was given; DDPMPipeline"),
    ({"time_scale": 0.25}, r"process.time_scale: 0.25 was given; .* DDPMPipeline"),
])  # fmt: skip
def test_value_range_and_time_scale_of_a_pipeline_are_fixed(changes, words):
    with pytest.raises(DuetError, match=words):
        export_pipeline(DiffusionModel(SMALL, {"name": "linear"}, "eps", **changes), weights_of(SMALL))


@pytest.mark.parametrize("schedule", [
    {"name": "linear", "T": 7}, {"name": "linear", "T": 7, "beta_end": 0.5}, {"name": "cosine", "T": 7},
    {"name": "scaled_linear", "T": 7, "beta_start": 0.001, "beta_end": 0.1}, {"name": "sigmoid_betas", "T": 7},
    {"name": "linear", "T": 7, "zero_terminal_snr": True}, {"name": "jsd", "T": 7}, {"name": "laplace", "T": 7},
])  # fmt: skip
def test_a_schedule_survives_a_round_trip_through_diffusers(schedule, tmp_path):
    for name, content in export_pipeline(DiffusionModel(SMALL, schedule, "v"), weights_of(SMALL)).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    found = import_weights("diffusers", tmp_path, never, None, {})
    assert found.model.prediction == "v"
    expected = DiffusionModel(SMALL, schedule, "v").process.schedule.alpha
    # A list of betas is rounded once more than the name of a schedule.
    listed = found.model.schedule["name"] == "betas"
    np.testing.assert_allclose(found.model.process.schedule.alpha, expected, rtol=1e-13 if listed else 0, atol=0)


@pytest.mark.parametrize("changes, options, remark", [
    ({}, {"name": "ddpm", "steps": None, "variance": "fixed_small", "clip": 1.0}, ""),
    ({"variance_type": "fixed_large", "clip_sample_range": 2.5}, {"variance": "fixed_large", "clip": 2.5}, ""),
    ({"clip_sample": False}, {"clip": None}, ""),
    ({"clip_sample_range": None}, {"clip": None}, ""),
    ({"variance_type": "learned_range"}, {"variance": "learned_range"}, ""),
    ({"variance_type": "learned"}, {"variance": "fixed_small"}, ": its variance learned"),
    ({"thresholding": True}, {"clip": 1.0}, ""),  # its upper limit is 1
    ({"thresholding": True, "sample_max_value": 4.0}, {"clip": 1.0, "threshold": 0.995, "threshold_max": 4.0},
     ""),
    ({"_class_name": "DDIMScheduler"}, {"name": "ddim", "steps": 50, "use_clipped_model_output": False}, ""),
    ({"_class_name": "PNDMScheduler", "set_alpha_to_one": False, "clip_sample": False}, {"name": "pndm", "clip": None},
     ": its last step stays at t = 0; here it leads to clean data"),
    ({"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True, "algorithm_type": "sde-dpmsolver++"},
     {"name": "dpm_solver", "sde": True, "predict": "x0"}, ""),
    ({"_class_name": "DDIMInverseScheduler"}, None, ": Duet has no sampler for DDIMInverseScheduler"),
])  # fmt: skip
def test_the_scheduler_of_a_pipeline_becomes_its_sampler(changes, options, remark, tmp_path):
    foreign("diffusers", SMALL, tmp_path)
    file = tmp_path / "scheduler" / "scheduler_config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps(config))
    found = import_weights("diffusers", tmp_path, never, None, {})
    assert found.note == f"a DDPMPipeline of diffusers; its scheduler {config['_class_name']}{remark}"
    if options is None:
        assert found.sampler is None
    else:
        assert options.items() <= found.sampler.items()


SOURCES = {
    "guided_diffusion": (ADM, GUIDED | {"head_channels": 4}),
    "ddpm_tf": (replace(SMALL, down_padding=(0, 1)), {"image_size": 8, "norm_groups": 4}),
    "edm": (SONG, {}),
    "diffusers": (SMALL, {}),
}


@pytest.mark.parametrize("source", SOURCES)
def test_the_source_of_the_process_is_reported(source, tmp_path):
    spec, options = SOURCES[source]
    path = foreign(source, spec, tmp_path)
    own = import_weights(source, path, never, None, options)
    expected = ("edm", "edm") if source == "edm" else ("linear", "eps")
    assert (own.model.schedule["name"], own.model.prediction) == expected
    assumed = "assumed to be EDM's" if source == "edm" else "assumed to be DDPM's"
    assert (
        own.process_source == "that of the source" if source == "diffusers" else own.process_source.startswith(assumed)
    )
    given = {"schedule": {"name": "cosine", "T": 9}, "prediction": "v", "value_range": [0, 1], "time_scale": 0.5}
    found = import_weights(source, path, never, given, options)
    assert found.process_source == "set by the user"
    variance = "learned_range" if source == "guided_diffusion" else "fixed"
    expected = DiffusionModel(found.model.spec, given["schedule"], "v", (0.0, 1.0), 0.5, variance=variance)
    assert found.model == expected


@pytest.mark.parametrize("source", ["diffusers", "guided_diffusion"])
@pytest.mark.parametrize("channels, variance", [(3, "fixed"), (6, "learned_range")])
def test_a_predicted_variance_is_imported_with_its_meaning(source, channels, variance, tmp_path):
    spec = replace(ADM, out_channels=channels, qkv_order="qkv" if source == "diffusers" else "heads")
    path, options = foreign(source, spec, tmp_path), SOURCES[source][1]
    assert import_weights(source, path, never, None, options).model.variance == variance
    given = {"schedule": {"name": "cosine", "T": 9}, "prediction": "eps"}
    assert import_weights(source, path, never, given, options).model.variance == variance
    given["variance"] = "fixed"
    assert import_weights(source, path, never, given, options).model.variance == "fixed"


@pytest.mark.parametrize("type_of_it", ["fixed_small", "learned"])
def test_a_scheduler_without_learned_range_imports_a_fixed_variance(type_of_it, tmp_path):
    foreign("diffusers", replace(ADM, qkv_order="qkv"), tmp_path)
    file = tmp_path / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"variance_type": type_of_it}))
    assert import_weights("diffusers", tmp_path, never, None, {}).model.variance == "fixed"


def test_the_levels_of_iddpm_identify_its_process(tmp_path):
    path = foreign("edm", SONG, tmp_path)
    with np.load(path) as file:
        np.savez(path, u=np.zeros(501), **file)
    found = import_weights("edm", path, never, None, {})
    assert (found.model.schedule, found.model.prediction) == ({"name": "cosine", "T": 500}, "iddpm")
    assert found.process_source == "that of the source"


def test_a_unet_without_a_pipeline_is_assumed_to_have_the_process_of_ddpm(tmp_path):
    foreign("diffusers", SMALL, tmp_path)
    assert import_weights("diffusers", tmp_path / "unet", never, None, {}).process_source.startswith(
        "assumed to be DDPM's"
    )


@pytest.mark.parametrize("changes, words", [
    ({"schedule": None}, r"process.schedule: no value was given; start from .* process=eps_linear"),
    ({"prediction": None}, r"process.prediction: no value was given"),
    ({"schedule": "linear"}, r"process.schedule: 'linear' was given; it must have a name"),
    ({"schedule": {"T": 3}}, r"process.schedule: .* was given; it must have a name"),
    ({"schedule": {"name": "liner"}}, r"'liner' was given"),
    ({"drop_lable": 0.1}, r"process, for an import: 'drop_lable' was given"),
    ({"prediction": "w"}, r"process.prediction: 'w' was given"),
    ({"value_range": "ab"}, r"process.value_range: 'ab' was given; it must be \(black, white\)"),
    ({"value_range": [1, 0]}, r"value.range: \(1.0, 0.0\) was given"),
    ({"time_scale": "fast"}, r"process.time_scale: 'fast' was given; it must be a number"),
    ({"time_scale": 0}, r"process.time_scale: 0 was given"),
])  # fmt: skip
def test_an_invalid_process_is_a_one_line_error(changes, words, tmp_path):
    path = foreign("edm", SONG, tmp_path)
    given = {"schedule": {"name": "linear", "T": 9}, "prediction": "eps"} | changes
    with pytest.raises(DuetError, match=rf"\A.*{words}.*\Z"):
        import_weights("edm", path, never, {name: value for name, value in given.items() if value is not None}, {})


@pytest.mark.parametrize("T", [1000, 4000])
def test_rescaled_timesteps_set_the_time_scale(T, tmp_path):
    path = foreign("guided_diffusion", ADM, tmp_path)
    process = {"schedule": {"name": "cosine", "T": T}, "prediction": "eps"}
    options = GUIDED | {"head_channels": 4}
    plain, rescaled = (
        import_weights("guided_diffusion", path, never, process, options | {"rescale_timesteps": given}).model
        for given in (False, True)
    )
    assert import_weights("guided_diffusion", path, never, process, options).model == plain
    t = np.array([0, 1, T - 1])
    np.testing.assert_array_equal(plain.process.columns(t).c_noise, t)
    np.testing.assert_array_equal(rescaled.process.columns(t).c_noise, t * (1000 / T))
    assert (rescaled == plain) == (T == 1000)
    with pytest.raises(DuetError, match=r"source.rescale_timesteps, process.time_scale: both were given"):
        import_weights("guided_diffusion", path, never, process | {"time_scale": 1.0},
                       options | {"rescale_timesteps": True})  # fmt: skip


@pytest.mark.parametrize("options, words", [
    ({"heads": 0}, "model.heads: 0 was given"),
    ({"head_channels": 0}, "model.head_channels: 0 was given"),
    ({"heads": 2, "qkv_order": "interleaved"}, "source.qkv_order: 'interleaved' was given; .* heads, qkv"),
])  # fmt: skip
def test_an_unknown_option_of_a_format_is_refused(options, words, tmp_path):
    path = foreign("guided_diffusion", ADM, tmp_path)
    with pytest.raises(DuetError, match=words):
        import_weights("guided_diffusion", path, never, None, GUIDED | options)


@pytest.mark.parametrize("options, words", [
    ({"clip": -1.0}, "target.clip: -1.0 was given; it must be positive, or null"),
    ({"clip": 0.0}, "target.clip: 0.0 was given"),
    ({"clip": float("nan")}, "target.clip: nan was given"),
    ({"clip": float("inf")}, "target.clip: inf was given"),
    ({"variance": "learned_range"}, "target.variance: 'learned_range' was given"),
])  # fmt: skip
def test_an_invalid_option_of_the_export_is_refused(options, words):
    with pytest.raises(DuetError, match=words):
        export_pipeline(DiffusionModel(SMALL, {"name": "linear"}, "eps"), weights_of(SMALL), **options)


def test_a_pipeline_in_one_folder_is_imported(tmp_path):
    model = DiffusionModel(SMALL, {"name": "linear", "T": 7}, "v")
    for name, content in export_pipeline(model, weights_of(SMALL)).items():
        (tmp_path / Path(name).name).write_bytes(content)
    found = import_weights("diffusers", tmp_path, never, None, {})
    assert (found.model.process.schedule.steps, found.model.prediction) == (7, "v")
    assert found.model.program.sha256 == model.program.sha256


@pytest.mark.parametrize("changes, words", [
    ({"beta_schedule": "sigmoidal"}, "beta_schedule: 'sigmoidal' was given; .* Did you mean 'sigmoid'"),
    ({"trained_betas": 0.1}, "trained_betas: 0.1 was given; it must be a list"),
    ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr: true was given with prediction_type epsilon"),
    ({"_class_name": "EDMEulerScheduler", "prediction_type": "v_prediction"}, "prediction_type: 'v_prediction'"),
    ({"prediction_type": "flow"}, "prediction_type: 'flow' was given"),
    ({"use_flow_sigmas": True}, "use_flow_sigmas: Duet has no such process; set a process"),
    ({"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True}, "invert_sigmas: true was given"),
    ({"timestep_type": "continuous"}, "timestep_type: Duet has no such process"),
    *(
        ({"_class_name": name}, f"_class_name: {name!r} was given; Duet does not know its process; set a")
        for name in ("FlowMatchLCMScheduler", "KarrasVeScheduler", None)
    ),
])  # fmt: skip
def test_a_scheduler_with_an_unknown_process_needs_one(changes, words, tmp_path):
    foreign("diffusers", SMALL, tmp_path)
    file = tmp_path / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(DuetError, match=f"scheduler_config.json: {words}"):
        import_weights("diffusers", tmp_path, never, None, {})
    given = {"schedule": {"name": "linear", "T": 20}, "prediction": "x0"}
    assert import_weights("diffusers", tmp_path, never, given, {}).model.prediction == "x0"


def test_invalid_files_are_a_one_line_error(tmp_path):
    for name in ("a.npz", "a.safetensors"):
        with pytest.raises(DuetError, match=rf"{name}: it cannot be read \(No such file or directory\); .* holds "):
            read_arrays(tmp_path / name, never)
        for content in (b"", b"garbage", b"PK\x03\x04garbage"):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(DuetError, match=rf"\A.*{name}: it is not an? \S+ file( of arrays)? \(.*\)\Z"):
                read_arrays(tmp_path / name, never)
    for source in ("edm", "edm2"):
        with pytest.raises(DuetError, match=r"edm\.pkl: reading a pickle runs code, so Duet refuses it; .*") as error:
            import_weights(source, tmp_path / "edm.pkl", never, None, {})
        code = str(error.value).split('python -c "')[1].split('"')[0]
        assert [line.split("(")[0] for line in code.split("; ")] == [
            "import pickle, torch", "network = pickle.load", "torch.save",
        ]  # fmt: skip
    np.savez(tmp_path / "objects.npz", a=np.array([{}], dtype=object))
    with pytest.raises(DuetError, match=r"objects.npz: it is not an .npz file of arrays"):
        read_arrays(tmp_path / "objects.npz", never)
    with pytest.raises(DuetError, match=r"this is neither a network of diffusers \(config.json\)"):
        import_weights("diffusers", tmp_path, never, None, {})
    for content, words in (
        ("{", "it is not JSON"),
        ("[]", "it holds a list"),
        ('{"time_embedding_type": "learned"}', "time_embedding_type: 'learned'"),
    ):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(DuetError, match=rf"config.json: {words}"):
            import_weights("diffusers", tmp_path, never, None, {})


def test_options_that_the_weights_do_not_determine_are_required(tmp_path):
    path = foreign("guided_diffusion", ADM, tmp_path)
    for heads in ({}, {"heads": 2, "head_channels": 4}):
        with pytest.raises(DuetError, match=r"source.heads, source.head_channels: the weights do not determine them"):
            import_weights("guided_diffusion", path, never, None, GUIDED | heads)
    with pytest.raises(DuetError, match=r"source 'guided_diffusion': no image_size was given"):
        import_weights("guided_diffusion", path, never, None, {"heads": 2})
    with pytest.raises(
        DuetError, match=r"source.name: 'guided_difusion' was given; .* Did you mean 'guided_diffusion'?"
    ):
        import_weights("guided_difusion", path, never, None, {})


def test_a_second_file_holds_the_moving_average(tmp_path):
    path = foreign("guided_diffusion", ADM, tmp_path)
    average = tmp_path / "ema.npz"
    with np.load(path) as file:
        np.savez(average, **{name: value + 1 for name, value in file.items()})
    options = GUIDED | {"head_channels": 4, "ema": str(average)}
    found = import_weights("guided_diffusion", path, never, None, options)
    for name, value in weights_of(ADM).items():
        np.testing.assert_array_equal(found.weights[name], value)
        np.testing.assert_array_equal(found.ema[name], value + 1)
