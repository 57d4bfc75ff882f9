"""The configuration of a `UNet2DModel` as a `UNetSpec`, and back.

    freq_shift 0, 1                    embedding_divisor half, half_minus_one
    flip_sin_to_cos                    not embedding_sin_first
    time_embedding_dim                 embedding_width
    block_out_channels                 channels times channel_multipliers, which may be fractions
    downsample_padding 1, 0            down_padding (1, 1), (0, 1)
    attention_head_dim                 head_channels; null is one head
    Attn...Block2D                     a level with attention
    downsample_type conv, resnet       down conv, block
    attn_norm_num_groups               middle_norm_groups
    mid_block_scale_factor             1 / middle_skip_scale

An entry that a `UNetSpec` cannot express raises an error that names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.networks import Program, UNetSpec
from diffusion_core.networks.blocks import Attention, GroupNorm
from diffusion_core.networks.unet_spec import multipliers

__all__ = ["make_config", "read_spec"]

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
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "relu": "relu", "gelu": "gelu", "mish": "mish"}
# What stands for the parts of a configuration that Duet has no blocks for, in an error.
_MISSING = {
    "center_input_sample": "a block that computes 2 x - 1 of its input",
    "time_embedding_type": "random frequencies of log(t), and a table of learned time embeddings",
    "class_embed_type": "an embedding of numbers or vectors in place of classes",
    "SkipDownBlock2D": "FIR filters in the encoder (source=edm reads NCSN++ of EDM)",
    "AttnSkipDownBlock2D": "FIR filters in the encoder (source=edm reads NCSN++ of EDM)",
    "SkipUpBlock2D": "FIR filters in the decoder (source=edm reads NCSN++ of EDM)",
    "AttnSkipUpBlock2D": "FIR filters in the decoder (source=edm reads NCSN++ of EDM)",
    "ada_group": "group norms whose scale and shift a dense layer makes",
    "spatial": "norms that a second image modulates",
    "CrossAttnDownBlock2D": "cross-attention", "CrossAttnUpBlock2D": "cross-attention",
    "SimpleCrossAttnDownBlock2D": "cross-attention", "SimpleCrossAttnUpBlock2D": "cross-attention",
}  # fmt: skip


def read_spec(
    config: Mapping[str, Any], source: str, image_size: int | None = None, null_class: str = "zero"
) -> UNetSpec:
    """Return the network of a `UNet2DModel` configuration.

    Raises:
        DuetError: names the first entry that a `UNetSpec` cannot express.
    """

    def refuse(name: str, allowed: str) -> DuetError:
        return _refused(source, name, config[name], allowed)

    if config.get("_class_name") == "AutoencoderKL":
        raise DuetError(
            f"{source}: it is an AutoencoderKL, which is no diffusion model; it encodes data and decodes samples: "
            f"python3 -m duet prepare data=NAME autoencoder=DIR out=LATENTS backend=torch"
        )
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


def make_config(spec: UNetSpec, program: Program) -> dict[str, Any]:
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


def _cannot(name: str, value: object, allowed: str) -> DuetError:
    return DuetError(f"model.{name}: {value} was given; UNet2DModel supports only {allowed}")
