"""Files of other projects: types of numbers, prefixes and nesting, shards and variants; what is missing is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import numpy as tensors

from diffusion_core.common.errors import DuetError
from diffusion_core.convert import export_pipeline, guided_diffusion, import_weights
from diffusion_core.convert.names import write_weights
from diffusion_core.diffusion.schedule import make_schedule
from diffusion_core.files.safe_read import read_safetensors
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks import UNetSpec, lower
from diffusion_core.networks.weights import initial_weights

SPEC = UNetSpec(8, channels=8, channel_multipliers=(1, 2), blocks_per_resolution=1, norm_groups=4)
GUIDED = replace(
    SPEC, time="scale_shift", embedding_divisor="half", embedding_sin_first=False, norm_eps=1e-5, null_class="zero",
    head_channels=4, qkv_order="heads",
)  # fmt: skip
OPTIONS = {"image_size": 8, "norm_groups": 4, "head_channels": 4}
STEM = "diffusion_pytorch_model"


def never(path: Path) -> dict[str, NDArray]:
    raise AssertionError(f"{path} was given to a framework")


def state_dict(seed: int = 0) -> dict[str, NDArray]:
    """Return a small UNetModel of guided-diffusion."""
    program = lower(replace(GUIDED, zero_init=False))
    weights = initial_weights(program, seed, np.float32)
    return write_weights(guided_diffusion.make_name_map(GUIDED, program), weights)


PLAIN, OTHER = state_dict(), state_dict(1)


def under(prefix: str, arrays: dict[str, NDArray] = PLAIN) -> dict[str, NDArray]:
    return {prefix + name: array for name, array in arrays.items()}


def read(tmp_path: Path, arrays: dict[str, NDArray], **options: object):
    np.savez(tmp_path / "file.npz", **arrays)
    return import_weights("guided_diffusion", tmp_path / "file.npz", never, None, OPTIONS | options)


def check(found, weights: dict[str, NDArray], average: dict[str, NDArray]) -> None:
    names = guided_diffusion.make_name_map(GUIDED, found.model.program)
    for ours, theirs in ((found.weights, weights), (found.ema, average)):
        for name, array in write_weights(names, ours).items():
            np.testing.assert_array_equal(array, theirs[name])


def to_bytes(bits: NDArray, dtype: str) -> bytes:
    header = json.dumps({"a": {"dtype": dtype, "shape": [len(bits)], "data_offsets": [0, bits.nbytes]}}).encode()
    return len(header).to_bytes(8, "little") + header + bits.tobytes()


def test_narrow_floats_are_read_exactly(tmp_path):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    file = tmp_path / "a.safetensors"
    for name, kind, bits in (
        ("BF16", ml_dtypes.bfloat16, np.arange(2**16, dtype=np.uint16)),
        ("F8_E4M3", ml_dtypes.float8_e4m3fn, np.arange(256, dtype=np.uint8)),
        ("F8_E5M2", ml_dtypes.float8_e5m2, np.arange(256, dtype=np.uint8)),
        ("F16", np.float16, np.arange(2**16, dtype=np.uint16)),
    ):
        file.write_bytes(to_bytes(bits, name))
        with np.errstate(invalid="ignore"):
            np.testing.assert_array_equal(read_safetensors(file)["a"], bits.view(kind).astype(np.float32))
    file.write_bytes(to_bytes(np.zeros(4, np.uint8), "F8_E8M0"))
    with pytest.raises(DuetError, match=r"a.safetensors: a has the type F8_E8M0; only F64, .*BF16"):
        read_safetensors(file)


@pytest.mark.parametrize("prefix", [
    "module.", "model.", "ema_model.", "model.diffusion_model.", "denoise_fn.", "unet.", "ema.",
    "module._orig_mod.", "state_dict.model.", "0.",
])  # fmt: skip
def test_a_prefix_or_a_nested_mapping_is_recognised(prefix, tmp_path):
    found = read(tmp_path, under(prefix) | {"optimizer.state.0.exp_avg": np.zeros(3, np.float32)})
    check(found, PLAIN, PLAIN)
    assert "not read: optimizer" in found.note


def test_what_compilation_adds_to_names_is_removed(tmp_path):
    check(read(tmp_path, under("_orig_mod.")), PLAIN, PLAIN)
    inner = {name.replace("middle_block.", "middle_block._orig_mod."): array for name, array in PLAIN.items()}
    check(read(tmp_path, inner), PLAIN, PLAIN)


def test_weights_and_moving_average_of_one_file_are_both_read(tmp_path):
    file = under("model.") | under("ema.", OTHER) | {"step": np.zeros(1)}
    found = read(tmp_path, file)
    check(found, PLAIN, OTHER)
    assert "read under model, with its moving average under ema; not read: step" in found.note
    check(read(tmp_path, file, key="ema"), OTHER, OTHER)
    check(read(tmp_path, file, key="model"), PLAIN, PLAIN)
    check(read(tmp_path, PLAIN | under("ema.", OTHER)), PLAIN, OTHER)
    # The wrapper of the average keeps a copy of the weights.
    copies = under("model.model.") | under("ema.online_model.model.") | under("ema.ema_model.model.", OTHER)
    check(read(tmp_path, copies), PLAIN, OTHER)


def test_several_networks_are_offered_by_name(tmp_path):
    file = under("generator.") | under("teacher.", OTHER)
    with pytest.raises(DuetError, match=r"2 networks; choose one with source.key=teacher or source.key=generator"):
        read(tmp_path, file)
    check(read(tmp_path, file, key="teacher"), OTHER, OTHER)
    with pytest.raises(DuetError, match=r"source.key: 'ema' was given, but .* only under: teacher, generator"):
        read(tmp_path, file, key="ema")
    with pytest.raises(DuetError, match=r"input_blocks.0.0.weight is missing; .* it holds a, b"):
        read(tmp_path, {"a.x": np.zeros(1), "b.y": np.zeros(1)})
    with pytest.raises(DuetError, match=r"UNetModel; its names are those of source=edm; it holds"):
        read(tmp_path, {"ema.map_layer0.weight": np.zeros(1)})


def test_a_moving_average_without_names_is_recognised(tmp_path):
    shadow = {f"ema.shadow_params.{i}": array for i, array in enumerate(OTHER.values())}
    check(read(tmp_path, under("model.module.") | shadow), PLAIN, OTHER)
    squeezed = {"model_ema.diffusion_model" + name.replace(".", ""): array for name, array in OTHER.items()}
    check(read(tmp_path, under("model.diffusion_model.") | squeezed), PLAIN, OTHER)


def folder_of(tmp_path: Path) -> tuple[Path, dict[str, NDArray]]:
    """Write a pipeline; return the folder of its network, and its arrays."""
    model = DiffusionModel(SPEC, {"name": "linear", "T": 1000}, "v")
    weights = initial_weights(lower(replace(SPEC, zero_init=False)), 0, np.float32)
    for name, content in export_pipeline(model, weights).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return tmp_path / "unet", tensors.load_file(tmp_path / "unet" / f"{STEM}.safetensors")


def is_read(path: Path, arrays: dict[str, NDArray], **options: object) -> None:
    found = import_weights("diffusers", path, never, None, options)
    np.testing.assert_array_equal(found.weights["conv_in.weight"], arrays["conv_in.weight"])


def test_variants_and_shards_of_diffusers_are_read(tmp_path):
    unet, arrays = folder_of(tmp_path)
    main = (unet / f"{STEM}.safetensors").rename(unet / f"{STEM}.fp16.safetensors")
    is_read(tmp_path, arrays)
    tensors.save_file({name: array + 1 for name, array in arrays.items()}, unet / f"{STEM}.non_ema.safetensors")
    with pytest.raises(DuetError, match=r"2 variants; choose one with source.variant=fp16 or source.variant=non_ema"):
        is_read(tmp_path, arrays)
    is_read(tmp_path, arrays, variant="fp16")
    with pytest.raises(DuetError, match=r"source.variant: 'ema' was given; it must be one of fp16, non_ema"):
        is_read(tmp_path, arrays, variant="ema")
    (unet / f"{STEM}.non_ema.safetensors").unlink()
    main.unlink()
    names = list(arrays)
    for variant, early in (("", True), (".fp16", True), (".fp16", False)):
        for place, late in (("safetensors.index", ""), ("safetensors.index", variant)):
            index = {"weight_map": {}}
            for number in (1, 2, 3):
                count = f"-{number:05}-of-00003"
                name = f"{STEM}{variant if early else ''}{count}{'' if early else variant}.safetensors"
                part = {n: arrays[n] for n in names[number - 1 :: 3]}
                tensors.save_file(part, unet / name)
                index["weight_map"] |= dict.fromkeys(part, name)
            (unet / f"{STEM}.{place}{late}.json").write_text(json.dumps(index))
            is_read(tmp_path, arrays)
            shard = unet / index["weight_map"][names[0]]
            shard.unlink()
            with pytest.raises(DuetError, match=r"shard 1 of 3 is missing; .*unet holds config.json, "):
                is_read(tmp_path, arrays)
            for file in unet.glob(f"{STEM}*"):
                file.unlink()
    with pytest.raises(DuetError, match=rf"unet: there are no weights, as in {STEM}.safetensors; .* holds config.json"):
        is_read(tmp_path, arrays)


def test_the_average_of_a_training_folder_is_read(tmp_path):
    unet, arrays = folder_of(tmp_path)
    average = tmp_path / "unet_ema"
    average.mkdir()
    tensors.save_file({name: array + 1 for name, array in arrays.items()}, average / f"{STEM}.safetensors")
    config = json.loads((unet / "config.json").read_text()) | {"decay": 0.9999, "optimization_step": 5, "power": 0.75}
    (unet / "config.json").write_text(json.dumps(config))
    found = import_weights("diffusers", tmp_path, never, None, {})
    np.testing.assert_array_equal(found.ema["conv_in.weight"], found.weights["conv_in.weight"] + 1)
    assert "with its moving average in unet_ema" in found.note
    # A file of weights may be given itself.
    is_read(unet / f"{STEM}.safetensors", arrays)


def test_a_pipeline_of_latents_is_refused(tmp_path):
    folder_of(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text()) | {"vqvae": ["diffusers", "VQModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(DuetError, match=r"model_index.json: this DDPMPipeline has vqvae, which Duet does not have"):
        import_weights("diffusers", tmp_path, never, None, {})
    assert import_weights("diffusers", tmp_path / "unet", never, None, {})


@pytest.mark.parametrize("changes, schedule", [
    ({"beta_schedule": "sigmoid"}, {"name": "sigmoid_betas", "T": 1000, "beta_start": 1e-4, "beta_end": 0.02}),
    ({"rescale_betas_zero_snr": True},
     {"name": "linear", "T": 1000, "beta_start": 1e-4, "beta_end": 0.02, "zero_terminal_snr": True}),
    ({"trained_betas": [0.1, 0.2]}, {"name": "betas", "betas": [0.1, 0.2]}),
    ({"beta_schedule": "laplace", "timestep_spacing": "trailing", "steps_offset": 1}, {"name": "laplace", "T": 1000}),
    ({"_class_name": "TCDScheduler", "beta_schedule": "scaled_linear"},
     {"name": "scaled_linear", "T": 1000, "beta_start": 1e-4, "beta_end": 0.02}),
    ({"_class_name": "EDMEulerScheduler", "sigma_max": 50.0, "prediction_type": "epsilon"},
     {"name": "edm", "sigma_max": 50.0}),
])  # fmt: skip
def test_a_schedule_that_duet_has_is_imported(changes, schedule, tmp_path):
    folder_of(tmp_path)
    file = tmp_path / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    found = import_weights("diffusers", tmp_path, never, None, {})
    assert (found.model.schedule, found.process_source) == (schedule, "that of the source")


def test_flow_matching_is_the_straight_line_with_the_time_of_the_source(tmp_path):
    folder_of(tmp_path)
    file = tmp_path / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}))
    process = import_weights("diffusers", tmp_path, never, None, {}).model.process
    sigma = np.array([0.001, 0.25, 1.0])  # their timesteps are 1000 sigma
    columns = process.columns(sigma)
    np.testing.assert_allclose(columns.c_noise, 1000 * sigma, rtol=1e-15)
    np.testing.assert_allclose(process.schedule(sigma), (1 - sigma, sigma), rtol=0, atol=1e-15)
    # The network gives eps - x_0.
    np.testing.assert_allclose((columns.target_x0, columns.target_eps), (-np.ones(3), np.ones(3)), rtol=1e-12)


def test_listed_betas_are_a_schedule():
    np.testing.assert_allclose(make_schedule("betas", betas=[0.1, 0.5]).alphas_cumprod, [0.9, 0.45], rtol=1e-15)
    linear = make_schedule("linear", T=7)
    listed = make_schedule("betas", betas=np.linspace(1e-4, 0.02, 7).tolist(), T=7)
    np.testing.assert_array_equal(listed.alpha, linear.alpha)
    for options, words in (
        ({"betas": [0.1, 0.2], "T": 3}, "schedule.T: 3 was given with 2 betas"),
        ({"betas": [0.1]}, "schedule.betas: 1 betas"),
        ({"betas": [0.1, 1.5]}, "every beta must be in"),
        ({}, "no betas was given"),
    ):
        with pytest.raises(DuetError, match=words):
            make_schedule("betas", **options)
