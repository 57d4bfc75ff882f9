"""The UNets of improved-diffusion and guided-diffusion (ADM), from their state dicts.

Names and shapes determine nearly everything: widths, resolutions, blocks, attention, scale and shift, resampling,
classes, and whether a variance per channel is learned (always learned_range). The image size and the heads are
required options. The order of q, k and v is head by head, unless the network was made with `use_new_attention_order`.

The linear schedule of these projects multiplies the betas of 1000 levels by 1000/T; with T = 1000 it is Duet's. With
`rescale_timesteps` the network reads ``t 1000/T`` instead of t. That is the default of improved-diffusion's scripts but
not of guided-diffusion's, and without effect for T = 1000.

References:
    Improved Denoising Diffusion Probabilistic Models (Nichol & Dhariwal, 2021), https://arxiv.org/abs/2102.09672
    Diffusion Models Beat GANs on Image Synthesis (Dhariwal & Nichol, 2021), https://arxiv.org/abs/2105.05233
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.convert.arrays import Reader, read_arrays
from diffusion_core.convert.names import (
    CONV1D,
    SAME,
    Arrays,
    Entry,
    Imported,
    NameMap,
    join_names,
    make_model,
    name_map,
)
from diffusion_core.convert.state_dicts import choose_state_dicts, read_both
from diffusion_core.diffusion.schedule import make_schedule
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks import Node, Program, UNetSpec
from diffusion_core.networks.unet_spec import multipliers

__all__ = ["import_guided_diffusion", "make_name_map", "read_spec"]

_FORMAT, _WHAT = "guided_diffusion", "a state dict of guided-diffusion's UNetModel"
# Head by head, or all of q first; these projects have no other order.
_ORDERS = ("heads", "qkv")
_LEAVES = {
    "norm0": ".in_layers.0",
    "conv0": ".in_layers.2",
    "time": ".emb_layers.1",
    "norm1": ".out_layers.0",
    "conv1": ".out_layers.3",
    "shortcut": ".skip_connection",
    "norm": ".norm",
    "qkv": ".qkv",
    "proj": ".proj_out",
}


def import_guided_diffusion(
    path: Path,
    read: Reader,
    process: Mapping[str, Any] | None,
    *,
    image_size: int,
    heads: int | None = None,
    head_channels: int | None = None,
    qkv_order: str = "heads",
    norm_groups: int = 32,
    dropout: float = 0.0,
    rescale_timesteps: bool = False,
    ema: str | None = None,
    key: str | None = None,
) -> Imported:
    """Import a state dict of `UNetModel`.

    Args:
        path: a `.pt` (read by `read`), `.npz` or `.safetensors` file.
        read: reads a `.pt` file.
        process: see `names.make_model`.
        image_size: height and width in pixels.
        heads: attention heads at every resolution (improved-diffusion: 4); give this or `head_channels`.
        head_channels: channels per head (ADM: 64).
        qkv_order: ``"heads"``, or ``"qkv"`` for `use_new_attention_order`.
        norm_groups: groups of every GroupNorm.
        dropout: of training, which the weights do not determine; to continue training a preset, use its dropout.
        rescale_timesteps: whether the network was trained on t 1000/T. The default is that of guided-diffusion; use
            True for networks of improved-diffusion.
        ema: a second file with the moving average.
        key: which network of a file that holds several, see `state_dicts`.

    Raises:
        DuetError: if a file or an option does not fit.
    """
    if (heads is None) == (head_channels is None):
        raise DuetError(
            "source.heads, source.head_channels: the weights do not determine them; give one of the two, as in "
            "source.heads=4 (improved-diffusion) or source.head_channels=64 (ADM)"
        )
    check_choice("source.qkv_order", qkv_order, _ORDERS)
    if rescale_timesteps and process and "time_scale" in process:
        raise DuetError(
            "source.rescale_timesteps, process.time_scale: both were given; they set the same number, so give one"
        )
    found = choose_state_dicts(read_arrays(path, read), _FORMAT, _WHAT, str(path), key)
    spec = read_spec(
        found.weights,
        found.source,
        image_size=image_size,
        **({"head_channels": head_channels} if heads is None else {"heads": heads}),
        qkv_order=qkv_order,
        norm_groups=norm_groups,
        dropout=dropout,
    )
    # learn_sigma is learned_range; the code also has "learned", but no option that selects it.
    variance = "learned_range" if spec.out_channels == 2 * spec.in_channels else "fixed"
    model, process_source = make_model(spec, process, variance=variance)
    if rescale_timesteps:
        model = replace(model, time_scale=1000 / _whole_table(model))
    names = make_name_map(spec, model.program)
    second = None
    if ema is not None:
        second = choose_state_dicts(read_arrays(Path(ema), read), _FORMAT, _WHAT, ema, key)
    weights, average = read_both(names, model.program, found, second)
    note = f"a UNetModel of guided-diffusion, q k v in the order {qkv_order}{found.note}"
    return Imported(model, weights, weights if average is None else average, note, process_source)


def read_spec(arrays: Arrays, source: str, image_size: int, **options: Any) -> UNetSpec:
    """Return the network of a state dict.

    Args:
        arrays: the state dict.
        source: what errors call it.
        image_size: height and width in pixels.
        options: fields of `UNetSpec` that the state dict does not determine.

    Raises:
        DuetError: if it is not a `UNetModel`.
    """
    for name in (
        "time_embed.0.weight",
        "input_blocks.0.0.weight",
        "output_blocks.0.0.in_layers.0.weight",
        "out.2.weight",
    ):
        if name not in arrays:
            raise DuetError(f"{source}: {name} is missing; this is not a state dict of guided-diffusion's UNetModel")

    def count(part: str) -> int:
        return 1 + max(int(found.group(1)) for name in arrays if (found := re.match(rf"{part}\.(\d+)\.", name)))

    inputs, outputs = count("input_blocks"), count("output_blocks")
    # inputs = 1 + levels blocks + levels - 1 and outputs = levels (blocks + 1) are equal, so the number of levels must
    # come from the resampling between them: its layers in the decoder, or gaps in the encoder if it has no weights.
    ups = [name for name in arrays if re.fullmatch(r"output_blocks\.\d+\.[12]\.(conv|in_layers\.0)\.weight", name)]
    gaps = [k for k in range(inputs) if not any(name.startswith(f"input_blocks.{k}.") for name in arrays)]
    levels = 1 + max(len(ups), len(gaps))
    blocks = outputs // levels - 1
    if blocks < 1 or outputs != levels * (blocks + 1) or inputs != levels * (blocks + 1):
        raise DuetError(
            f"{source}: {inputs} input blocks and {outputs} output blocks with {levels - 1} resamplings do not make a "
            f"UNet with the same number of blocks at every resolution"
        )
    first = [1 + level * (blocks + 1) for level in range(levels)]
    channels = arrays["time_embed.0.weight"].shape[-1]
    widths = [_shape(arrays, f"input_blocks.{k}.0.out_layers.3.weight", source)[0] for k in first]
    stem = _shape(arrays, "input_blocks.0.0.weight", source)[0]
    if stem not in (channels, widths[0]):
        raise DuetError(
            f"{source}: its first convolution has {stem} channels; Duet's UNet takes the base width, {channels}, or "
            f"that of the first resolution, {widths[0]}"
        )
    time, width = _shape(arrays, "input_blocks.1.0.emb_layers.1.weight", source)[0], widths[0]
    has_conv = any(re.fullmatch(r"input_blocks\.\d+\.0\.op\.weight", name) for name in arrays)
    by_block = any("in_layers" in name for name in ups)
    return UNetSpec(
        image_size=image_size,
        in_channels=_shape(arrays, "input_blocks.0.0.weight", source)[1],
        out_channels=arrays["out.2.weight"].shape[0],
        num_classes=arrays["label_emb.weight"].shape[0] if "label_emb.weight" in arrays else 0,
        channels=channels,
        channel_multipliers=multipliers(widths, channels),
        first_conv="channels" if stem == channels else "first",
        blocks_per_resolution=blocks,
        attention_resolutions=tuple(
            image_size // 2**level for level, k in enumerate(first) if f"input_blocks.{k}.1.qkv.weight" in arrays
        ),
        norm_eps=1e-5,
        time="scale_shift" if time == 2 * width else "add",
        embedding_divisor="half",
        embedding_sin_first=False,
        null_class="zero",
        down="pool" if gaps else "block" if by_block and not has_conv else "conv",
        up="nearest" if gaps else "block" if by_block else "conv",
        **options,
    )


def make_name_map(spec: UNetSpec, program: Program) -> NameMap:
    """Return the name map of a `UNetModel`."""
    units = {"mid.block0": "middle_block.0", "mid.attn": "middle_block.1", "mid.block1": "middle_block.2"}
    modules = {
        "embed.dense0": "time_embed.0",
        "embed.dense1": "time_embed.2",
        "embed.label": "label_emb",
        "conv_in": "input_blocks.0.0",
        "out.norm": "out.0",
        "out.conv": "out.2",
    }
    last, blocks = len(spec.channel_multipliers) - 1, spec.blocks_per_resolution
    for level in range(last + 1):
        first = 1 + level * (blocks + 1)
        for i in range(blocks):
            units[f"down.{level}.{i}.block"] = f"input_blocks.{first + i}.0"
            units[f"down.{level}.{i}.attn"] = f"input_blocks.{first + i}.1"
        units[f"down.{level}.down"] = f"input_blocks.{first + blocks}.0"
        modules[f"down.{level}.down.conv"] = f"input_blocks.{first + blocks}.0.op"
        first = (last - level) * (blocks + 1)
        for i in range(blocks + 1):
            units[f"up.{level}.{i}.block"] = f"output_blocks.{first + i}.0"
            units[f"up.{level}.{i}.attn"] = f"output_blocks.{first + i}.1"
        # It follows the last block of the level, and its attention if there is one.
        at = 1 + (spec.image_size // 2**level in spec.attention_resolutions)
        units[f"up.{level}.up"] = f"output_blocks.{first + blocks}.{at}"
        modules[f"up.{level}.up.conv"] = f"output_blocks.{first + blocks}.{at}.conv"
    modules |= join_names(units, _LEAVES)

    def make_entry(node: Node, parameter: str, module: str) -> Entry:
        is_flat = parameter == "weight" and node.name.endswith((".attn.qkv", ".attn.proj"))
        return Entry((f"{module}.{parameter}",), CONV1D if is_flat else SAME)

    return name_map(program, modules, make_entry, "guided-diffusion")


def _shape(arrays: Arrays, name: str, source: str) -> tuple[int, ...]:
    if name not in arrays or arrays[name].ndim < 2:
        raise DuetError(
            f"{source}: {name} is missing or not a weight; this is not a state dict of guided-diffusion's UNetModel"
        )
    return arrays[name].shape


def _whole_table(model: DiffusionModel) -> int:
    """Return the number of timesteps of the schedule before respacing, as the network counts them."""
    return make_schedule(**{key: value for key, value in model.schedule.items() if key != "respacing"}).steps
