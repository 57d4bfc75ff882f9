"""Import of the original DDPM in TensorFlow, from the variables of its checkpoint.

Every variable ``model/.../W`` has a moving average ``model/.../W/ExponentialMovingAverage``, which the paper samples
with. Optimiser slots and the global step are recognised and not read.

References:
    Denoising Diffusion Probabilistic Models (Ho et al., 2020), https://arxiv.org/abs/2006.11239
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from diffusion_core.common.errors import DuetError
from diffusion_core.convert.arrays import Reader, read_arrays
from diffusion_core.convert.names import (
    HWIO,
    SAME,
    TRANSPOSED,
    TRANSPOSED_1X1,
    Arrays,
    Entry,
    Imported,
    NameMap,
    count_numbers,
    join_names,
    make_model,
    name_map,
    qkv,
    read_weights,
    shape_of,
    siblings,
)
from diffusion_core.networks import Node, Program, UNetSpec
from diffusion_core.networks.blocks import Attention
from diffusion_core.networks.unet_spec import multipliers

__all__ = ["import_ddpm_tf", "make_name_map", "module_names", "read_spec"]

_WHAT = "a checkpoint of the original DDPM"
_AVERAGE = "/ExponentialMovingAverage"
_EXTRA = re.compile(r"(.*/)?(Adam(_\d+)?|beta\d_power(_\d+)?|global_step|save_counter/.*)")
_LEAVES = {
    "norm0": "norm1", "conv0": "conv1", "time": "temb_proj", "norm1": "norm2", "conv1": "conv2",
    "shortcut": "nin_shortcut", "norm": "norm", "qkv": "qkv", "proj": "proj_out", "conv": "conv",
}  # fmt: skip


def import_ddpm_tf(
    path: Path,
    read: Reader,
    process: Mapping[str, Any] | None,
    *,
    image_size: int,
    norm_groups: int = 32,
    dropout: float = 0.0,
) -> Imported:
    """Import a checkpoint of the original DDPM.

    Args:
        path: the prefix of the checkpoint (read by `read`), or an `.npz` or `.safetensors` file with the same names.
        read: reads a TensorFlow checkpoint.
        process: see `names.make_model`.
        image_size: height and width in pixels.
        norm_groups: groups of every GroupNorm.
        dropout: of training, which the weights do not determine; to continue training a preset, use its dropout.

    Raises:
        DuetError: if the checkpoint does not fit.
    """
    arrays = {name: a for name, a in read_arrays(path, read).items() if not _EXTRA.fullmatch(name)}
    average = {name.removesuffix(_AVERAGE): a for name, a in arrays.items() if name.endswith(_AVERAGE)}
    arrays = {name: a for name, a in arrays.items() if not name.endswith(_AVERAGE)}
    root = next((name.removesuffix("temb/dense0/W") for name in arrays if name.endswith("temb/dense0/W")), None)
    if root is None:
        raise DuetError(f"{path}: temb/dense0/W is missing; this is not {_WHAT}")
    spec = read_spec(
        {name.removeprefix(root): a for name, a in arrays.items()},
        str(path),
        image_size=image_size,
        norm_groups=norm_groups,
        dropout=dropout,
    )
    model, process_source = make_model(spec, process)
    names = make_name_map(spec, model.program, root)
    weights = read_weights(names, model.program, arrays, str(path))
    ema = read_weights(names, model.program, average, f"{path}, moving average") if average else weights
    note = "the original DDPM" + (" with its moving average" if average else "; the file has no moving average")
    return Imported(model, weights, ema, note, process_source)


def read_spec(arrays: Arrays, source: str, image_size: int, **options: Any) -> UNetSpec:
    """Return the network of the variables, given without their common root.

    Args:
        arrays: the variables by name.
        source: what errors call them.
        image_size: height and width in pixels.
        options: fields of `UNetSpec` that the variables do not determine.

    Raises:
        DuetError: if they are not a DDPM network.
    """

    shape = partial(shape_of, arrays, source=source, what=_WHAT)
    levels, blocks = count_numbers(arrays, r"down_(\d+)/"), count_numbers(arrays, r"down_0/block_(\d+)/")
    channels = shape("temb/dense0/W", 2)[0]
    widths = [shape(f"down_{level}/block_0/conv2/W", 4)[3] for level in range(levels)]
    if not blocks:
        raise DuetError(f"{source}: down_0/block_0 is missing; this is not {_WHAT}")
    has_conv = levels == 1 or "down_0/downsample/conv/W" in arrays
    return UNetSpec(
        image_size=image_size,
        in_channels=shape("conv_in/W", 4)[2],
        out_channels=shape("conv_out/W", 4)[3],
        channels=channels,
        channel_multipliers=multipliers(widths, channels),
        blocks_per_resolution=blocks,
        attention_resolutions=tuple(
            image_size // 2**level for level in range(levels) if f"down_{level}/attn_0/q/W" in arrays
        ),
        norm_eps=1e-6,
        down="conv" if has_conv else "pool",
        up="conv" if has_conv else "nearest",
        down_padding=(0, 1),
        **options,
    )


def module_names(spec: UNetSpec, path: Callable[..., str]) -> dict[str, str]:
    """Return the module of each node but those of the embedding; DDPM's code in PyTorch has the same tree.

    Args:
        spec: the network.
        path: joins the parts of a name; a number belongs to the part before it.
    """
    units = {
        "mid.block0": path("mid", "block_1"),
        "mid.attn": path("mid", "attn_1"),
        "mid.block1": path("mid", "block_2"),
    }
    for level in range(len(spec.widths)):
        for way, blocks in (("down", spec.blocks_per_resolution), ("up", spec.blocks_per_resolution + 1)):
            units[f"{way}.{level}.{way}"] = path(way, level, f"{way}sample")
            for i in range(blocks):
                units[f"{way}.{level}.{i}.block"] = path(way, level, "block", i)
                units[f"{way}.{level}.{i}.attn"] = path(way, level, "attn", i)
    leaves = {ours: path("", theirs) for ours, theirs in _LEAVES.items()}
    return {"conv_in": "conv_in", "out.norm": "norm_out", "out.conv": "conv_out", **join_names(units, leaves)}


def _path(*parts: str | int) -> str:
    return re.sub(r"/(?=\d)", "_", "/".join(map(str, parts)))


def make_name_map(spec: UNetSpec, program: Program, root: str = "model/") -> NameMap:
    """Return the name map of the variables."""
    modules = {"embed.dense0": "temb/dense0", "embed.dense1": "temb/dense1", **module_names(spec, _path)}
    attentions = {node.name: node.block for node in program.nodes if isinstance(node.block, Attention)}
    weights = {"Linear": TRANSPOSED, "Conv": HWIO, "GroupNorm": SAME}

    def make_entry(node: Node, parameter: str, module: str) -> Entry:
        leaf = {"weight": "gamma", "bias": "beta"} if node.kind == "GroupNorm" else {"weight": "W", "bias": "b"}
        layout = weights[node.kind] if parameter == "weight" else SAME
        if parameter == "weight" and node.kind == "Conv" and node.block.kernel == 1:
            layout = TRANSPOSED_1X1
        if node.name.endswith(".qkv"):
            layout = qkv(layout, attentions[f"{node.name.removesuffix('qkv')}attend"])
            return Entry(tuple(f"{root}{m}/{leaf[parameter]}" for m in siblings(module, "q", "k", "v")), layout)
        return Entry((f"{root}{module}/{leaf[parameter]}",), layout)

    return name_map(program, modules, make_entry, "ddpm_tf")
