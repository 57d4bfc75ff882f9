"""`AutoencoderKL` of diffusers, read and written.

DIR/config.json, diffusion_pytorch_model.safetensors      an autoencoder
DIR/model_index.json, vae/                                a pipeline, whose vae is taken

block_out_channels, layers_per_block    channels, blocks_per_level
norm_num_groups, mid_block_add_attention  norm_groups, middle_attention
use_quant_conv, use_post_quant_conv     quant_conv, post_quant_conv
sample_size                             image_size
shift_factor null                       shift_factor 0
latents_mean, latents_std               the same; null is ()
image_range                             the same; an entry of Duet, where it is not [-1, 1]
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import numpy as tensors

from diffusion_core.common.errors import DuetError
from diffusion_core.convert.arrays import Reader, describe_folder, read_config
from diffusion_core.convert.diffusers_files import current_name, find_weight_files
from diffusion_core.convert.names import (
    DENSE_1X1,
    SAME,
    Entry,
    NameMap,
    join_names,
    name_map,
    qkv,
    read_weights,
    siblings,
    write_weights,
)
from diffusion_core.data.pixels import VALUE_RANGE
from diffusion_core.networks import Node
from diffusion_core.networks.autoencoder import Autoencoder, AutoencoderSpec
from diffusion_core.networks.blocks import Attention

__all__ = ["export_autoencoder", "import_autoencoder"]

_CLASS = "AutoencoderKL"
_FIELDS = {
    "in_channels": "in_channels",
    "out_channels": "out_channels",
    "latent_channels": "latent_channels",
    "block_out_channels": "channels",
    "layers_per_block": "blocks_per_level",
    "norm_num_groups": "norm_groups",
    "mid_block_add_attention": "middle_attention",
    "use_quant_conv": "quant_conv",
    "use_post_quant_conv": "post_quant_conv",
    "scaling_factor": "scaling_factor",
    "shift_factor": "shift_factor",
    "latents_mean": "latents_mean",
    "latents_std": "latents_std",
    "image_range": "image_range",
    "sample_size": "image_size",
}
# Entries that an autoencoder of Duet has at these values only.
_FIXED: dict[str, tuple[Any, ...]] = {"act_fn": ("silu", "swish")}
_BLOCKS = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}
# What decides a number type or cuts images into tiles, but changes no function.
_IGNORED = ("force_upcast", "_class_name")
_LEAVES = {"norm0": ".norm1", "conv0": ".conv1", "norm1": ".norm2", "conv1": ".conv2", "shortcut": ".conv_shortcut"}


def import_autoencoder(path: str | Path, read: Reader) -> Autoencoder:
    """Read the folder of an `AutoencoderKL`, or of a pipeline that has one as vae.

    Args:
        path: the folder.
        read: reads `.bin` weights.

    Raises:
        DuetError: if something is missing, does not fit, or cannot be expressed by an `AutoencoderSpec`.
    """
    folder = Path(path).expanduser()
    if not (folder / "config.json").is_file() and (folder / "vae").is_dir():
        folder = folder / "vae"
    if not (folder / "config.json").is_file():
        raise DuetError(
            f"autoencoder: {str(path)!r} was given; it must be the folder of an {_CLASS} of diffusers (config.json and "
            f"weights) or of a pipeline with a vae; {describe_folder(folder)}"
        )
    spec = _read_spec(read_config(folder / "config.json"), str(folder / "config.json"))
    files = find_weight_files(folder)
    arrays = {current_name(name): array for name, array in files.read(read).items()}
    known = {name for part in ("encoder", "decoder") for entry in _names(spec, part).values() for name in entry.names}
    if other := [name for name in arrays if name not in known]:
        raise DuetError(f"{files.source}: {other[0]} is no part of this {_CLASS} ({len(other)} such arrays)")
    encoder, decoder = (
        read_weights(_names(spec, part), program, arrays, files.source, known)
        for part, program in (("encoder", spec.encoder), ("decoder", spec.decoder))
    )
    return Autoencoder(spec, encoder, decoder)


def export_autoencoder(autoencoder: Autoencoder) -> dict[str, bytes]:
    """Return the files of the folder of an `AutoencoderKL` by their names; the inverse of `import_autoencoder`."""
    spec = autoencoder.spec
    arrays = write_weights(_names(spec, "encoder"), autoencoder.encoder)
    arrays |= write_weights(_names(spec, "decoder"), autoencoder.decoder)
    config: dict[str, Any] = {"_class_name": _CLASS, "act_fn": "silu"}
    config |= {theirs: getattr(spec, ours) for theirs, ours in _FIELDS.items()}
    config |= {name: config[name] or None for name in ("latents_mean", "latents_std")}
    if spec.image_range == VALUE_RANGE:
        del config["image_range"]
    config |= {theirs: [block] * len(spec.channels) for theirs, block in _BLOCKS.items()}
    return {
        "config.json": (json.dumps(config, indent=2) + "\n").encode(),
        "diffusion_pytorch_model.safetensors": tensors.save(arrays, metadata={"format": "pt"}),
    }


def _read_spec(config: Mapping[str, Any], source: str) -> AutoencoderSpec:
    """Return the spec of a configuration; entries that are missing have the defaults of diffusers."""
    if config.get("_class_name", _CLASS) != _CLASS:
        raise DuetError(f"{source}: it is a {config['_class_name']}; an autoencoder must be an {_CLASS}")
    for name, allowed in _FIXED.items():
        if name in config and config[name] not in allowed:
            raise DuetError(f"{source}: {name} is {config[name]!r}; Duet has {allowed[0]!r} only")
    levels = len(config.get("block_out_channels", (64,)))
    for name, block in _BLOCKS.items():
        if list(config.get(name, [block])) != [block] * levels:
            raise DuetError(f"{source}: {name} is {config.get(name)!r}; it must be {block} for each of {levels} levels")
    known = {*_FIELDS, *_FIXED, *_BLOCKS, *_IGNORED}
    if unknown := [name for name in config if name not in known]:
        raise DuetError(f"{source}: {unknown[0]} is an unknown entry; Duet cannot tell what it changes")
    options = {ours: config[theirs] for theirs, ours in _FIELDS.items() if config.get(theirs) is not None}
    try:
        return AutoencoderSpec(**{name: tuple(v) if isinstance(v, list) else v for name, v in options.items()})
    except TypeError as error:
        raise DuetError(f"{source}: a value has the wrong type ({error})") from error


def _names(spec: AutoencoderSpec, part: str) -> NameMap:
    """Return the name map of the encoder or the decoder."""
    program, last = getattr(spec, part), len(spec.channels)
    units = {"mid.0": f"{part}.mid_block.resnets.0", "mid.1": f"{part}.mid_block.resnets.1"}
    modules = {
        "conv_in": f"{part}.conv_in",
        "out.norm": f"{part}.conv_norm_out",
        "out.conv": f"{part}.conv_out",
        "quant": "quant_conv" if part == "encoder" else "post_quant_conv",
        "mid.attn.norm": f"{part}.mid_block.attentions.0.group_norm",
        "mid.attn.qkv": f"{part}.mid_block.attentions.0.qkv",
        "mid.attn.proj": f"{part}.mid_block.attentions.0.to_out.0",
    }
    way = "down" if part == "encoder" else "up"
    for level in range(last):
        block = f"{part}.{way}_blocks.{level}"
        modules[f"{way}.{level}.conv"] = f"{block}.{way}samplers.0.conv"
        for i in range(spec.blocks_per_level + 1):
            units[f"{way}.{level}.{i}"] = f"{block}.resnets.{i}"
    attention = next((node.block for node in program.nodes if isinstance(node.block, Attention)), None)

    def make_entry(node: Node, parameter: str, module: str) -> Entry:
        dense = DENSE_1X1 if parameter == "weight" else SAME
        if node.name == "mid.attn.qkv":
            three = siblings(module, "to_q", "to_k", "to_v")
            return Entry(tuple(f"{m}.{parameter}" for m in three), qkv(dense, attention))
        return Entry((f"{module}.{parameter}",), dense if node.name == "mid.attn.proj" else SAME)

    return name_map(program, modules | join_names(units, _LEAVES), make_entry, _CLASS)
