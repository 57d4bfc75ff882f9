"""`UNet2DModel`, `DDPMPipeline`, `DiTTransformer2DModel` and `DiTPipeline` of Hugging Face diffusers, read.

    DIR/config.json, diffusion_pytorch_model.safetensors      a network; see `diffusers_config`, `diffusers_dit`,
                                                              `diffusers_files`
    DIR/model_index.json, unet/, scheduler/                   a DDPMPipeline; see `diffusers_process`,
                                                              `diffusers_sampler`. The first ones kept all in DIR itself
    DIR/model_index.json, transformer/, scheduler/, vae/      a DiTPipeline, whose vae decodes what is sampled

References:
    Diffusers: State-of-the-art diffusion models (von Platen et al., 2022), https://github.com/huggingface/diffusers
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_core.common.errors import DuetError
from diffusion_core.convert import diffusers_dit
from diffusion_core.convert.arrays import Reader, describe_folder, read_config
from diffusion_core.convert.diffusers_config import read_spec
from diffusion_core.convert.diffusers_files import WeightFiles, current_name, find_weight_files
from diffusion_core.convert.diffusers_process import read_process
from diffusion_core.convert.diffusers_sampler import read_sampler
from diffusion_core.convert.names import (
    DENSE_1X1,
    SAME,
    Entry,
    Imported,
    NameMap,
    join_names,
    make_model,
    name_map,
    qkv,
    siblings,
)
from diffusion_core.convert.state_dicts import StateDicts, choose_state_dicts, read_both
from diffusion_core.networks import DiTSpec, NetworkSpec, Node, Program, UNetSpec
from diffusion_core.networks.blocks import Attention

__all__ = ["import_diffusers", "make_name_map"]

_RESIDUAL = {"norm0": "norm1", "conv0": "conv1", "time": "time_emb_proj", "norm1": "norm2", "conv1": "conv2"}
_LEAVES = {
    **{f"{ours}": f".{theirs}" for ours, theirs in _RESIDUAL.items()},
    "shortcut": ".conv_shortcut",
    "norm": ".group_norm",
    "qkv": ".qkv",
    "proj": ".to_out.0",
    "conv": ".conv",
}


def import_diffusers(
    path: Path,
    read: Reader,
    process: Mapping[str, Any] | None,
    *,
    image_size: int | None = None,
    null_class: str | None = None,
    variant: str | None = None,
    key: str | None = None,
) -> Imported:
    """Import a directory of a `UNet2DModel`, `DDPMPipeline`, `DiTTransformer2DModel` or `DiTPipeline`.

    The folder `unet_ema`, which the training script of diffusers writes next to `unet`, is its moving average.

    Args:
        path: the directory, or a file of weights next to its config.json.
        read: reads `.bin` weights.
        process: see `names.make_model`; None takes the pipeline's, or that of DDPM.
        image_size: height and width in pixels, for a configuration without sample_size.
        null_class: of a UNet2DModel: ``"zero"``, the default, or ``"last"`` if the last row of the class table was
            trained to mean "no class", as it is in every DiT.
        variant: which of several files, as in "fp16"; see `diffusers_files`.
        key: which network of a file that holds several, see `state_dicts`.

    Raises:
        DuetError: if something is missing, does not fit, or cannot be expressed by a `UNetSpec` or `DiTSpec`.
    """
    file, folder = (path, path.parent) if path.is_file() else (None, path)
    is_pipeline = (folder / "model_index.json").exists()
    if is_pipeline:
        _check_pipeline(read_config(folder / "model_index.json"), str(folder / "model_index.json"))
    unet = next((folder / part for part in ("unet", "transformer") if (folder / part).is_dir()), folder)
    if not (unet / "config.json").exists():
        raise DuetError(
            f"{path}: this is neither a network of diffusers (config.json) nor a pipeline (model_index.json, "
            f"unet/config.json or transformer/config.json); {describe_folder(unet)}"
        )
    spec = _read_network(unet, image_size, null_class)
    files = WeightFiles(folder, (file.name,), "", (), None) if file else find_weight_files(unet, variant)
    is_dit = isinstance(spec, DiTSpec)
    title, form = ("DiTTransformer2DModel", "diffusers_dit") if is_dit else ("UNet2DModel", "diffusers")

    def read_one(files: WeightFiles) -> StateDicts:
        arrays = {current_name(name): array for name, array in files.read(read).items()}
        return choose_state_dicts(arrays, form, f"a state dict of {title}", files.source, key)

    found = read_one(files)
    if isinstance(spec, DiTSpec) and diffusers_dit.has_equal_embedders(found.weights):
        spec = replace(spec, embedders="shared")
    own, sampler, remark, variance = None, None, "", "fixed"
    if is_pipeline:
        scheduler = folder / "scheduler" if (folder / "scheduler").is_dir() else folder
        file_of_it = scheduler / "scheduler_config.json"
        if not file_of_it.is_file():
            raise DuetError(
                f"{folder}: {file_of_it.relative_to(folder)} is missing, which says the process; give the network "
                f"alone, with its process: path={unet} process=eps_linear"
            )
        config = read_config(file_of_it)
        own = read_process(config, str(file_of_it)) if process is None else None
        if config.get("variance_type") == "learned_range" and spec.out_channels == 2 * spec.in_channels:
            variance = "learned_range"
    if is_dit and spec.out_channels == 2 * spec.in_channels:
        variance = "learned_range"  # its pipeline discards it
    model, process_source = make_model(spec, process, own, variance)
    if is_pipeline:
        sampler, other = read_sampler(config, float(np.exp(model.process.schedule.log_ratio_range[1])))
        remark = f"; its scheduler {config.get('_class_name')}" + (f": {', '.join(other)}" if other else "")
    names = (diffusers_dit.make_name_map if is_dit else make_name_map)(spec, model.program)
    weights, average = read_both(names, model.program, found)
    where = f"{files.note}{found.note}"
    if average is None and unet.name == "unet" and (unet.parent / "unet_ema").is_dir():
        average, _ = read_both(names, model.program, read_one(find_weight_files(unet.parent / "unet_ema", variant)))
        where += ", with its moving average in unet_ema"
    pipeline = "DiTPipeline (sample.autoencoder decodes with its vae)" if is_dit else "DDPMPipeline"
    note = f"a {pipeline if is_pipeline else title} of diffusers{where}{remark}"
    objective: dict[str, Any] = {"label_dropout": 0.1} if is_dit else {}
    objective |= {"bound_cdf": "tanh"} if is_dit and model.variance == "learned_range" else {}
    average = weights if average is None else average
    return Imported(model, weights, average, note, process_source, sampler, objective)


def _read_network(folder: Path, image_size: int | None, null_class: str | None) -> NetworkSpec:
    """Return the network of a folder with a configuration."""
    config, source = read_config(folder / "config.json"), str(folder / "config.json")
    if config.get("_class_name") not in diffusers_dit.CLASSES:
        return read_spec(config, source, image_size, "zero" if null_class is None else null_class)
    if null_class not in (None, "last"):
        raise DuetError(
            f"source.null_class: {null_class!r} was given; the last row of the class table of a DiT means "
            "'no class', so leave it out"
        )
    return diffusers_dit.read_spec(config, source, image_size)


def _check_pipeline(index: Mapping[str, Any], source: str) -> None:
    """Refuse pipelines with parts beside the network and the scheduler: its images are not those of the network."""
    parts = [name for name, value in index.items() if isinstance(value, list) and value and value[0] is not None]
    known = ("transformer", "scheduler", "vae") if "transformer" in parts else ("unet", "scheduler")
    if other := [name for name in parts if name not in known]:
        raise DuetError(
            f"{source}: this {index.get('_class_name')} has {' and '.join(other)}, which Duet does not have: the "
            f"network alone does not make its images; path=.../unet imports the network without them"
        )


def make_name_map(spec: UNetSpec, program: Program) -> NameMap:
    """Return the name map of a `UNet2DModel`."""
    last = len(spec.widths) - 1
    units = {
        "mid.block0": "mid_block.resnets.0",
        "mid.attn": "mid_block.attentions.0",
        "mid.block1": "mid_block.resnets.1",
    }
    for level in range(last + 1):
        ways = (("down", f"down_blocks.{level}", 0), ("up", f"up_blocks.{last - level}", 1))
        for way, theirs, one_more in ways:
            units[f"{way}.{level}.{way}"] = f"{theirs}.{way}samplers.0"
            for i in range(spec.blocks_per_resolution + one_more):
                units[f"{way}.{level}.{i}.block"] = f"{theirs}.resnets.{i}"
                units[f"{way}.{level}.{i}.attn"] = f"{theirs}.attentions.{i}"
    modules = {
        "embed.dense0": "time_embedding.linear_1",
        "embed.dense1": "time_embedding.linear_2",
        "embed.label": "class_embedding",
        "conv_in": "conv_in",
        "out.norm": "conv_norm_out",
        "out.conv": "conv_out",
        **join_names(units, _LEAVES),
    }
    attentions = {node.name: node.block for node in program.nodes if isinstance(node.block, Attention)}

    def make_entry(node: Node, parameter: str, module: str) -> Entry:
        if node.name.endswith(".qkv"):
            layout = qkv(
                DENSE_1X1 if parameter == "weight" else SAME, attentions[f"{node.name.removesuffix('qkv')}attend"]
            )
            return Entry(tuple(f"{m}.{parameter}" for m in siblings(module, "to_q", "to_k", "to_v")), layout)
        is_dense = node.name.endswith(".attn.proj") and parameter == "weight"
        return Entry((f"{module}.{parameter}",), DENSE_1X1 if is_dense else SAME)

    return name_map(program, modules, make_entry, "diffusers")
