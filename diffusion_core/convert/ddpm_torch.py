"""The network of DDPM in PyTorch, as in ermongroup/ddim and pesser/pytorch_diffusion, from their state dicts.

It is the network of `ddpm_tf` under other names: ``down_0/block_0/conv1/W`` is ``down.0.block.0.conv1.weight`` here,
with the axes of PyTorch, and q, k and v are 1 x 1 convolutions. The checkpoints of ddim are lists: the state dict of
the model, that of the optimiser, the epoch, the step, and the moving average of the weights.

References:
    Denoising Diffusion Implicit Models (Song et al., 2020), https://arxiv.org/abs/2010.02502, and its code
    https://github.com/pesser/pytorch_diffusion
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from diffusion_core.common.errors import DuetError
from diffusion_core.convert.arrays import Reader, read_arrays
from diffusion_core.convert.ddpm_tf import module_names
from diffusion_core.convert.names import (
    SAME,
    Arrays,
    Entry,
    Imported,
    NameMap,
    count_numbers,
    make_model,
    name_map,
    qkv,
    shape_of,
    siblings,
)
from diffusion_core.convert.state_dicts import choose_state_dicts, read_both
from diffusion_core.networks import Node, Program, UNetSpec
from diffusion_core.networks.blocks import Attention
from diffusion_core.networks.unet_spec import multipliers

__all__ = ["import_ddpm_torch", "make_name_map", "read_spec"]

_FORMAT, _WHAT = "ddpm_torch", "a state dict of DDPM's network in PyTorch"
# The position of the moving average in the lists that ddim writes.
_AVERAGE = ("4.", "4.module.")


def import_ddpm_torch(
    path: Path,
    read: Reader,
    process: Mapping[str, Any] | None,
    *,
    image_size: int,
    norm_groups: int = 32,
    dropout: float = 0.0,
    ema: str | None = None,
    key: str | None = None,
) -> Imported:
    """Import a state dict, or a checkpoint of ddim.

    Args:
        path: a `.pt`, `.ckpt`, `.npz` or `.safetensors` file.
        read: reads a file of PyTorch from before version 1.6.
        process: see `names.make_model`.
        image_size: height and width in pixels.
        norm_groups: groups of every GroupNorm.
        dropout: of training, which the weights do not determine; to continue training a preset, use its dropout.
        ema: a second file with the moving average.
        key: which network of a file that holds several, see `state_dicts`.

    Raises:
        DuetError: if a file does not fit.
    """
    found = choose_state_dicts(read_arrays(path, read), _FORMAT, _WHAT, str(path), key, averages=_AVERAGE)
    spec = read_spec(found.weights, found.source, image_size, norm_groups=norm_groups, dropout=dropout)
    model, process_source = make_model(spec, process)
    names = make_name_map(spec, model.program)
    second = None
    if ema is not None:
        second = choose_state_dicts(read_arrays(Path(ema), read), _FORMAT, _WHAT, ema, key, averages=_AVERAGE)
    weights, average = read_both(names, model.program, found, second)
    note = f"the network of DDPM in PyTorch{found.note}"
    return Imported(model, weights, weights if average is None else average, note, process_source)


def read_spec(arrays: Arrays, source: str, image_size: int, **options: Any) -> UNetSpec:
    """Return the network of a state dict.

    Args:
        arrays: the state dict.
        source: what errors call it.
        image_size: height and width in pixels.
        options: fields of `UNetSpec` that the state dict does not determine.

    Raises:
        DuetError: if it is not this network.
    """

    shape = partial(shape_of, arrays, source=source, what=_WHAT)
    levels, blocks = count_numbers(arrays, r"down\.(\d+)\."), count_numbers(arrays, r"down\.0\.block\.(\d+)\.")
    channels, first = shape("temb.dense.0.weight", 2)[1], shape("conv_in.weight", 4)
    widths = [shape(f"down.{level}.block.0.conv2.weight", 4)[0] for level in range(levels)]
    if not blocks or first[0] != channels:
        raise DuetError(f"{source}: conv_in has {first[0]} channels, temb {channels}; this is not {_WHAT}")
    has_conv = levels == 1 or "down.0.downsample.conv.weight" in arrays
    return UNetSpec(
        image_size=image_size,
        in_channels=first[1],
        out_channels=shape("conv_out.weight", 4)[0],
        channels=channels,
        channel_multipliers=multipliers(widths, channels),
        blocks_per_resolution=blocks,
        attention_resolutions=tuple(
            image_size // 2**level for level in range(levels) if f"down.{level}.attn.0.q.weight" in arrays
        ),
        norm_eps=1e-6,
        down="conv" if has_conv else "pool",
        up="conv" if has_conv else "nearest",
        down_padding=(0, 1),
        **options,
    )


def make_name_map(spec: UNetSpec, program: Program) -> NameMap:
    """Return the name map of the network."""
    modules = {
        "embed.dense0": "temb.dense.0",
        "embed.dense1": "temb.dense.1",
        **module_names(spec, lambda *parts: ".".join(map(str, parts))),
    }
    attentions = {node.name: node.block for node in program.nodes if isinstance(node.block, Attention)}

    def make_entry(node: Node, parameter: str, module: str) -> Entry:
        if node.name.endswith(".qkv"):
            layout = qkv(SAME, attentions[f"{node.name.removesuffix('qkv')}attend"])
            return Entry(tuple(f"{m}.{parameter}" for m in siblings(module, "q", "k", "v")), layout)
        return Entry((f"{module}.{parameter}",), SAME)

    return name_map(program, modules, make_entry, "ddpm_torch")
