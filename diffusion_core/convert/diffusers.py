"""`UNet2DModel` and `DDPMPipeline` of Hugging Face diffusers, read and written.

    DIR/config.json, diffusion_pytorch_model.safetensors      a UNet2DModel
    DIR/model_index.json, unet/, scheduler/                   a DDPMPipeline; the first ones kept all in DIR itself

The entries of its configuration and the fields of a `UNetSpec`:

    freq_shift 0, 1                    embedding_divisor half, half_minus_one
    flip_sin_to_cos                    not embedding_sin_first
    downsample_padding 1, 0            down_padding (1, 1), (0, 1)
    attention_head_dim                 head_channels; null is one head
    Attn...Block2D                     a level with attention
    downsample_type conv, resnet       down conv, block

An entry that a `UNetSpec` cannot express raises an error that names it.

Known differences of its `DDPMScheduler`: its tables are float32 throughout (1 - alphas_cumprod has a relative error of
up to 2e-4), it adds noise after every row except t = 0, and it steps from t to ``t - T // N``. With `timestep_spacing`
"leading" and N dividing T these are Duet's levels, and neither adds noise after the last row.

References:
    Diffusers: State-of-the-art diffusion models (von Platen et al., 2022), https://github.com/huggingface/diffusers
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import numpy as tensors

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.convert.arrays import Reader, describe_folder, read_config
from diffusion_core.convert.diffusers_files import WeightFiles, find_weight_files
from diffusion_core.convert.diffusers_process import FIXED, PREDICTIONS, read_process
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
    read_weights,
    siblings,
    write_weights,
)
from diffusion_core.convert.state_dicts import choose_state_dicts
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks import Node, Program, UNetSpec, lower
from diffusion_core.networks.blocks import Attention, GroupNorm
from diffusion_core.networks.unet_spec import multipliers
from diffusion_core.networks.weights import Weights

__all__ = ["export_pipeline", "import_diffusers", "make_name_map", "read_spec"]

_WEIGHTS = "diffusion_pytorch_model"
# The arguments of UNet2DModel that a UNetSpec can express, with the defaults for entries that a file leaves out.
_DEFAULTS: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [224, 448, 672, 896],
    "layers_per_block": 2,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "num_class_embeds": None,
    "num_train_timesteps": None,
    "mid_block_type": "UNetMidBlock2D",
    "mid_block_scale_factor": 1,
    "act_fn": "silu",
}
# The arguments that it cannot express, with the only allowed values; the first one is written.
_FIXED: dict[str, tuple[Any, ...]] = {
    "center_input_sample": (False,),
    "time_embedding_type": ("positional",),
    "class_embed_type": (None,),
}
# What EMAModel adds to the configuration of the network that it averages.
_AVERAGING = (
    "decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup", "inv_gamma", "power",
    "foreach", "model_cls", "model_config",
)  # fmt: skip
# The block types of each direction: whether they have attention, and how they resample unless the file says it.
_BLOCKS: dict[str, dict[str, tuple[bool, str | None]]] = {
    "down": {
        "DownBlock2D": (False, "conv"),
        "AttnDownBlock2D": (True, None),
        "ResnetDownsampleBlock2D": (False, "resnet"),
    },
    "up": {
        "UpBlock2D": (False, "conv"),
        "AttnUpBlock2D": (True, None),
        "ResnetUpsampleBlock2D": (False, "resnet"),
    },
}
_RESAMPLE = {"conv": "conv", "resnet": "block"}
_TIME = {"default": "add", "scale_shift": "scale_shift"}
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "relu": "relu", "gelu": "gelu"}
# What stands for the parts of a configuration that Duet has no blocks for, in an error.
_MISSING = {
    "center_input_sample": "a block that computes 2 x - 1 of its input",
    "time_embedding_type": "random frequencies of log(t), and a table of learned time embeddings",
    "class_embed_type": "an embedding of numbers or vectors in place of classes",
    "SkipDownBlock2D": "FIR filters in the encoder (source=edm reads NCSN++ of EDM)",
    "AttnSkipDownBlock2D": "FIR filters in the encoder (source=edm reads NCSN++ of EDM)",
    "SkipUpBlock2D": "FIR filters in the decoder (source=edm reads NCSN++ of EDM)",
    "AttnSkipUpBlock2D": "FIR filters in the decoder (source=edm reads NCSN++ of EDM)",
    "mish": "the activation Mish",
    "ada_group": "group norms whose scale and shift a dense layer makes",
    "spatial": "norms that a second image modulates",
    "CrossAttnDownBlock2D": "cross-attention", "CrossAttnUpBlock2D": "cross-attention",
    "SimpleCrossAttnDownBlock2D": "cross-attention", "SimpleCrossAttnUpBlock2D": "cross-attention",
}  # fmt: skip
_RESIDUAL = {"norm0": "norm1", "conv0": "conv1", "time": "time_emb_proj", "norm1": "norm2", "conv1": "conv2"}
_LEAVES = {
    **{f"{ours}": f".{theirs}" for ours, theirs in _RESIDUAL.items()},
    "shortcut": ".conv_shortcut",
    "norm": ".group_norm",
    "qkv": ".qkv",
    "proj": ".to_out.0",
    "conv": ".conv",
}
# The names of attention layers until 2023.
_FORMER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def import_diffusers(
    path: Path,
    read: Reader,
    process: Mapping[str, Any] | None,
    *,
    image_size: int | None = None,
    null_class: str = "zero",
    variant: str | None = None,
    key: str | None = None,
) -> Imported:
    """Import a `UNet2DModel` or `DDPMPipeline` directory.

    The folder `unet_ema`, which the training script of diffusers writes next to `unet`, is its moving average.

    Args:
        path: the directory, or a file of weights next to its config.json.
        read: reads `.bin` weights.
        process: see `names.make_model`; None takes the pipeline's, or that of DDPM.
        image_size: height and width in pixels, for a configuration without sample_size.
        null_class: ``"zero"``, or ``"last"`` if the last row of the class table was trained to mean "no class".
        variant: which of several files, as in "fp16"; see `diffusers_files`.
        key: which network of a file that holds several, see `state_dicts`.

    Raises:
        DuetError: if something is missing, does not fit, or cannot be expressed by a `UNetSpec`.
    """
    file, folder = (path, path.parent) if path.is_file() else (None, path)
    is_pipeline = (folder / "model_index.json").exists()
    if is_pipeline:
        _check_pipeline(read_config(folder / "model_index.json"), str(folder / "model_index.json"))
    unet = folder / "unet" if (folder / "unet").is_dir() else folder
    if not (unet / "config.json").exists():
        raise DuetError(
            f"{path}: this is neither a UNet2DModel (config.json) nor a DDPMPipeline (model_index.json, "
            f"unet/config.json); {describe_folder(unet)}"
        )
    spec = read_spec(read_config(unet / "config.json"), str(unet / "config.json"), image_size, null_class)
    own, sampler, remark, variance = None, None, "", "fixed"
    if is_pipeline:
        scheduler = folder / "scheduler" if (folder / "scheduler").is_dir() else folder
        file_of_it = scheduler / "scheduler_config.json"
        config = read_config(file_of_it)
        own = read_process(config, str(file_of_it)) if process is None else None
        if config.get("variance_type") == "learned_range" and spec.out_channels == 2 * spec.in_channels:
            variance = "learned_range"
    model, process_source = make_model(spec, process, own, variance)
    if is_pipeline:
        sampler, other = read_sampler(config, float(np.exp(model.process.schedule.log_ratio_range[1])))
        remark = f"; its scheduler {config.get('_class_name')}" + (f": {', '.join(other)}" if other else "")
    names = make_name_map(spec, model.program)

    def read_one(files: WeightFiles) -> tuple[Weights, Weights | None, str]:
        arrays = {_current_name(name): array for name, array in files.read(read).items()}
        what = "a state dict of UNet2DModel"
        found = choose_state_dicts(arrays, "diffusers", what, files.source, key)
        weights = read_weights(names, model.program, found.weights, found.source)
        average = None
        if found.average is not None:
            average = read_weights(names, model.program, found.average, found.average_source)
        return weights, average, f"{files.note}{found.note}"

    files = WeightFiles(folder, (file.name,), "", (), None) if file else find_weight_files(unet, variant)
    weights, average, where = read_one(files)
    if average is None and unet.name == "unet" and (unet.parent / "unet_ema").is_dir():
        average, _, _ = read_one(find_weight_files(unet.parent / "unet_ema", variant))
        where += ", with its moving average in unet_ema"
    note = f"a {'DDPMPipeline' if is_pipeline else 'UNet2DModel'} of diffusers{where}{remark}"
    return Imported(model, weights, weights if average is None else average, note, process_source, sampler)


def _check_pipeline(index: Mapping[str, Any], source: str) -> None:
    """Refuse pipelines with parts beside the network and the scheduler: its images are not those of the network."""
    parts = [name for name, value in index.items() if isinstance(value, list) and value and value[0] is not None]
    if other := [name for name in parts if name not in ("unet", "scheduler")]:
        raise DuetError(
            f"{source}: this {index.get('_class_name')} has {' and '.join(other)}, which Duet does not have: the "
            f"network alone does not make its images; path=.../unet imports the network without them"
        )


def read_spec(
    config: Mapping[str, Any], source: str, image_size: int | None = None, null_class: str = "zero"
) -> UNetSpec:
    """Return the network of a `UNet2DModel` configuration.

    Raises:
        DuetError: names the first entry that a `UNetSpec` cannot express.
    """

    def refuse(name: str, allowed: str) -> DuetError:
        return _refused(source, name, config[name], allowed)

    if config.get("_class_name", "UNet2DModel") != "UNet2DModel":
        raise refuse("_class_name", "UNet2DModel")
    config = {name: value for name, value in config.items() if name not in _AVERAGING}
    for name in config:
        if name not in {*_DEFAULTS, *_FIXED, "_class_name"}:
            raise one_of(f"{source}: entry", name, sorted({*_DEFAULTS, *_FIXED}))
    config = _DEFAULTS | {name: values[0] for name, values in _FIXED.items()} | dict(config)
    for name, values in _FIXED.items():
        if config[name] not in values:
            raise refuse(name, " or ".join(map(repr, values)))
    widths = config["block_out_channels"]
    size = config["sample_size"] if image_size is None else image_size
    size = size[0] if isinstance(size, list) and len(set(size)) == 1 else size
    if not isinstance(size, int):
        raise refuse("sample_size", "one integer; set source.image_size=PIXELS")
    if not isinstance(widths, list) or not widths or any(type(w) is not int or w < 1 for w in widths):
        raise refuse("block_out_channels", "a list of whole numbers")
    down_attention, down = _resampling(config, "down", source)
    up_attention, up = _resampling(config, "up", source)
    for name, known in (
        ("freq_shift", (0, 1)),
        ("downsample_padding", (0, 1)),
        ("resnet_time_scale_shift", tuple(_TIME)),
        ("flip_sin_to_cos", (False, True)),
        ("act_fn", tuple(_ACTIVATIONS)),
        ("mid_block_type", ("UNetMidBlock2D", None)),
    ):
        if config[name] not in known:
            raise refuse(name, " or ".join(map(repr, known)))
    scale = config["mid_block_scale_factor"]
    if type(scale) not in (int, float) or not scale > 0:
        raise refuse("mid_block_scale_factor", "a positive number")
    # Without a number of its own, the norm of the middle attention has the groups of the others, or does not exist.
    groups, middle_groups = config["norm_num_groups"], config["attn_norm_num_groups"]
    if middle_groups is None and config["resnet_time_scale_shift"] != "default":
        middle_groups = 0
    time_width = config["time_embedding_dim"]

    def sizes(attention: list[bool]) -> tuple[int, ...]:
        return tuple(size // 2**level for level, attends in enumerate(attention) if attends)

    classes = config["num_class_embeds"] or 0
    try:
        return UNetSpec(
            image_size=size,
            in_channels=config["in_channels"],
            out_channels=config["out_channels"],
            num_classes=classes - 1 if classes and null_class == "last" else classes,
            channels=widths[0],
            channel_multipliers=multipliers(widths, widths[0]),
            blocks_per_resolution=config["layers_per_block"],
            attention_resolutions=sizes(down_attention),
            up_attention_resolutions=None if up_attention == down_attention else sizes(up_attention),
            middle=config["mid_block_type"] is not None,
            middle_attention=config["add_attention"],
            middle_norm_groups=None if middle_groups == groups else middle_groups,
            middle_skip_scale=None if scale == 1 else 1 / scale,
            activation=_ACTIVATIONS[config["act_fn"]],
            embedding_width=None if time_width == 4 * widths[0] else time_width,
            head_channels=config["attention_head_dim"],
            norm_groups=groups,
            norm_eps=config["norm_eps"],
            dropout=config["dropout"],
            time=_TIME[config["resnet_time_scale_shift"]],
            embedding_divisor="half_minus_one" if config["freq_shift"] else "half",
            embedding_sin_first=not config["flip_sin_to_cos"],
            null_class=null_class,
            down=down,
            up=up,
            down_padding=(1, 1) if config["downsample_padding"] else (0, 1),
        )
    except TypeError as error:  # null or text where there must be a number
        raise DuetError(f"{source}: an entry has the wrong type ({error})") from error


def _refused(source: str, name: str, value: object, allowed: str) -> DuetError:
    parts = value if isinstance(value, list) else [value]
    lacks = [_MISSING[key] for key in (name, *parts) if isinstance(key, str) and key in _MISSING]
    why = f"; it has no block for {lacks[0]}" if lacks else ""
    return DuetError(f"{source}: {name}: {value!r} was given; Duet's UNet takes {allowed}{why}")


def _resampling(config: Mapping[str, Any], way: str, source: str) -> tuple[list[bool], str | tuple[str, ...]]:
    """Return (whether each level has attention, how the levels resample) of one direction, largest level first."""
    name, kinds = f"{way}_block_types", _BLOCKS[way]
    types = config[name]
    if not isinstance(types, list) or len(types) != len(config["block_out_channels"]):
        raise _refused(
            source, name, types, f"one block for each of the {len(config['block_out_channels'])} block_out_channels"
        )
    types = [str(kind).removeprefix("UNetRes") for kind in (types if way == "down" else types[::-1])]
    if unknown := [kind for kind in types if kind not in kinds]:
        if unknown[0] in _MISSING:
            raise _refused(source, name, unknown[0], ", ".join(kinds))
        raise one_of(f"{source}: {name}", unknown[0], kinds)
    default = config[f"{way}sample_type"]
    if default not in _RESAMPLE:
        raise _refused(source, f"{way}sample_type", default, " or ".join(_RESAMPLE))
    # The last level of the encoder does not resample, and neither does the largest level of the decoder.
    resampling = types[:-1] if way == "down" else types[1:]
    ways = tuple(_RESAMPLE[kinds[kind][1] or default] for kind in resampling)
    return [kinds[kind][0] for kind in types], ways[0] if len(set(ways)) == 1 else ways or "conv"


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


def _current_name(name: str) -> str:
    """Return the name that present versions of diffusers give an array."""
    *module, leaf, parameter = name.split(".") if name.count(".") > 1 else ("", "", name)
    return ".".join([*module, _FORMER[leaf], parameter]) if ".attentions." in name and leaf in _FORMER else name


def export_pipeline(
    model: DiffusionModel, weights: Weights, variance: str = "fixed_small", clip: float | None = 1.0
) -> dict[str, bytes]:
    """Return the files of a `DDPMPipeline` directory by their paths in it.

    Args:
        model: the network and the process.
        weights: the weights by name.
        variance: ``"fixed_small"`` or ``"fixed_large"``, as in Duet's sampler ddpm; ignored for a network that predicts
            a variance, which is exported as ``"learned_range"``.
        clip: bound of the estimates, or None.

    Raises:
        DuetError: names the first field of the network or of the process that diffusers cannot express.
    """
    if variance not in FIXED:
        raise one_of("target.variance", variance, FIXED)
    if clip is not None and not 0 < clip < math.inf:
        raise DuetError(f"target.clip: {clip} was given; it must be positive, or null")
    if not isinstance(model.spec, UNetSpec):
        raise DuetError(
            f"model: a {type(model.spec).__name__} was given; target=diffusers exports UNetSpec networks only"
        )
    if tuple(model.value_range) != (-1.0, 1.0):
        raise DuetError(f"value_range: {model.value_range} was given; DDPMPipeline needs images in (-1, 1)")
    if model.time_scale != 1:
        raise DuetError(
            f"process.time_scale: {model.time_scale:g} was given; the network of a DDPMPipeline reads t "
            "itself, so 1 is needed"
        )
    if model.variance == "learned":
        raise DuetError("process.variance: learned was given; DDPMScheduler needs learned_range")
    if model.uncertainty:
        raise DuetError("process.uncertainty: true was given; UNet2DModel has no channel for it")
    spec = model.spec
    config = _make_config(spec, model.program)
    if not spec.qkv_bias:  # its attention always has biases
        spec = UNetSpec(**{**vars(spec), "qkv_bias": True})
    program = lower(spec)
    weights = {p.name: weights.get(p.name, np.zeros(p.shape, np.float32)) for p in program.parameters}
    scheduler = _make_scheduler(model, variance, clip)
    index = {
        "_class_name": "DDPMPipeline",
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    arrays = write_weights(make_name_map(spec, program), weights)
    return {
        "model_index.json": _json(index),
        "unet/config.json": _json(config),
        f"unet/{_WEIGHTS}.safetensors": tensors.save(arrays, metadata={"format": "pt"}),
        "scheduler/scheduler_config.json": _json(scheduler),
    }


def _make_config(spec: UNetSpec, program: Program) -> dict[str, Any]:
    """Return the configuration of a `UNet2DModel`; the inverse of `read_spec`."""
    downs, ups = spec.resampling("down"), spec.resampling("up")
    for name, allowed in (
        ("up_attention", ("every",)),
        ("embedding", ("sinusoid",)),
        ("embedding_multiplier", (1,)),
        ("class_embedding", ("after",) if spec.num_classes else (spec.class_embedding,)),
        ("augment_dim", (0,)),
        ("down_padding", ((1, 1), (0, 1)) if "conv" in downs else (tuple(spec.down_padding),)),
        ("encoder", ("standard",)),
        ("skip_scale", (1.0,)),
        ("self_conditioning", (False,)),
        ("first_conv", (spec.first_conv,) if spec.widths[0] == spec.channels else ("channels",)),
        ("channel_multipliers", (spec.channel_multipliers,) if spec.widths[0] == spec.channels else ()),
    ):
        value = getattr(spec, name)
        if (tuple(value) if isinstance(value, list) else value) not in allowed:
            raise _cannot(name, value, " or ".join(map(str, allowed)) or "1 for the first resolution")
    for name, ways in (("down", downs), ("up", ups)):
        if other := [how for how in ways if how not in ("conv", "block")]:
            raise _cannot(name, other[0], "conv or block")
    if "block" in (*downs, *ups):
        if len(set(spec.resample_filter)) > 1 or len(spec.resample_filter) > 2:
            raise _cannot("resample_filter", spec.resample_filter, "(1, 1)")
        if spec.resample_projection:
            raise _cannot("resample_projection", True, "false")
    groups = {
        node.block.groups for node in program.nodes
        if isinstance(node.block, GroupNorm) and not node.name.startswith("mid.attn.")
    }  # fmt: skip
    if len(groups) > 1:
        raise _cannot("norm_group_channels", spec.norm_group_channels, "1, the same number of groups in every norm")
    middle = {n.block.groups for n in program.nodes if isinstance(n.block, GroupNorm) and n.name == "mid.attn.norm"}
    if spec.middle and spec.middle_attention and not middle and spec.time != "scale_shift":
        raise _cannot("middle_norm_groups", 0, "a norm where model.time is add")
    attentions = [node.block for node in program.nodes if isinstance(node.block, Attention)]
    widths = {block.channels // block.heads for block in attentions}
    one_head = all(block.heads == 1 for block in attentions)
    if len(widths) > 1 and not one_head:
        raise _cannot(
            "heads", spec.heads, "one head, or the same channels per head at every resolution (head_channels)"
        )
    down_types = [
        _block_type("down", size in spec.attention_resolutions, how)
        for size, how in zip(spec.resolutions, (*downs, downs[-1] if downs else "conv"), strict=True)
    ]
    up_types = [
        _block_type("up", size in spec.decoder_attention, how)
        for size, how in zip(spec.resolutions, (ups[0] if ups else "conv", *ups), strict=True)
    ]
    table = next((p.shape[0] for p in program.parameters if p.name == "embed.label.weight"), None)
    return {
        "_class_name": "UNet2DModel",
        **{name: values[0] for name, values in _FIXED.items()},
        "sample_size": spec.image_size,
        "in_channels": spec.in_channels,
        "out_channels": spec.out_channels,
        "freq_shift": int(spec.embedding_divisor == "half_minus_one"),
        "flip_sin_to_cos": not spec.embedding_sin_first,
        "down_block_types": down_types,
        "up_block_types": up_types[::-1],
        "block_out_channels": list(spec.widths),
        "layers_per_block": spec.blocks_per_resolution,
        "downsample_padding": int(tuple(spec.down_padding) != (0, 1)),
        "downsample_type": _attended(spec, "down", downs, spec.attention_resolutions),
        "upsample_type": _attended(spec, "up", ups, spec.decoder_attention),
        "dropout": spec.dropout,
        "attention_head_dim": None if one_head else widths.pop(),
        "norm_num_groups": groups.pop(),
        "attn_norm_num_groups": middle.pop() if middle else None,
        "mid_block_type": "UNetMidBlock2D" if spec.middle else None,
        "mid_block_scale_factor": 1 if spec.middle_skip_scale is None else _inverse(spec.middle_skip_scale),
        "act_fn": spec.activation,
        "time_embedding_dim": spec.embedding_width,
        "norm_eps": spec.norm_eps,
        "resnet_time_scale_shift": next(theirs for theirs, ours in _TIME.items() if ours == spec.time),
        "add_attention": spec.middle_attention,
        "num_class_embeds": table,
    }


def _block_type(way: str, attends: bool, resample: str) -> str:
    kind = next(theirs for theirs, ours in _RESAMPLE.items() if ours == resample)
    return next(name for name, options in _BLOCKS[way].items() if options in ((attends, kind), (attends, None)))


def _attended(spec: UNetSpec, way: str, ways: tuple[str, ...], attention: tuple[int, ...]) -> str:
    """Return how the levels with attention resample, which share one entry; the others have it in their block type."""
    sizes = spec.resolutions[:-1] if way == "down" else spec.resolutions[1:]
    kinds = {how for size, how in zip(sizes, ways, strict=True) if size in attention} or set(ways[:1])
    if len(kinds) > 1:
        raise _cannot(way, getattr(spec, way), "one way at all resolutions with attention")
    return next((theirs for theirs, ours in _RESAMPLE.items() if ours in kinds), "conv")


def _inverse(scale: float) -> int | float:
    """Return the divisor that a factor came from: the nearest whole number if its inverse is the factor."""
    whole = round(1 / scale)
    return whole if whole and 1 / whole == scale else 1 / scale


def _make_scheduler(model: DiffusionModel, variance: str, clip: float | None) -> dict[str, Any]:
    """Return the configuration of a `DDPMScheduler`."""
    prediction = next((theirs for theirs, ours in PREDICTIONS.items() if ours == model.prediction), None)
    if prediction is None:
        raise DuetError(
            f"process.prediction: {model.prediction} was given; DDPMScheduler has {', '.join(PREDICTIONS.values())}"
        )
    schedule = model.process.schedule
    if not schedule.variance_preserving:
        raise DuetError(
            f"process.schedule: {schedule.name} was given; DDPMScheduler needs a schedule with alpha^2 + sigma^2 = 1"
        )
    if schedule.timesteps is not None:
        raise DuetError(
            f"process.schedule.respacing: {model.schedule['respacing']} was given; the network of a DDPMPipeline reads "
            "every timestep of its table, so export a model without respacing"
        )
    signal = schedule.alpha**2
    betas = 1.0 - signal / np.append(1.0, signal[:-1])
    return {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": schedule.steps,
        **_beta_options(model.schedule, betas),
        "prediction_type": prediction,
        "variance_type": "learned_range" if model.spec.out_channels > model.spec.in_channels else variance,
        "clip_sample": clip is not None,
        "clip_sample_range": 1.0 if clip is None else clip,
        "timestep_spacing": "leading",
        "steps_offset": 0,
        "thresholding": False,
        "rescale_betas_zero_snr": False,
    }


def _beta_options(schedule: Mapping[str, Any], betas: NDArray) -> dict[str, Any]:
    """Return the betas by the name of their schedule in diffusers, or as a list."""
    options = {"beta_start": 1e-4, "beta_end": 0.02, **schedule}
    ends = {name: options[name] for name in ("beta_start", "beta_end")}
    named = schedule["name"] if schedule.keys() <= {"name", "T", *ends} else None  # other options change the betas
    if named == "linear" or (named == "scaled_linear" and ends.keys() <= schedule.keys()):
        return {"beta_schedule": schedule["name"], **ends, "trained_betas": None}
    if named == "cosine":
        return {"beta_schedule": "squaredcos_cap_v2", **ends, "trained_betas": None}
    return {"beta_schedule": "linear", **ends, "trained_betas": betas.tolist()}


def _cannot(name: str, value: object, allowed: str) -> DuetError:
    return DuetError(f"model.{name}: {value} was given; UNet2DModel supports only {allowed}")


def _json(data: Mapping[str, Any]) -> bytes:
    return (json.dumps(data, indent=2) + "\n").encode()
