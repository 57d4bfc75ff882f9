r"""The networks of EDM, SongUNet (DDPM++ and NCSN++) and DhariwalUNet (ADM), from plain state dicts.

Names and shapes determine everything except the channels per head of ADM (64) and the dropout. SongUNet adds the class
before the dense layers as ``W sqrt(K) one_hot + b``, with zeros for "no class". So the row of a class in Duet's table
is ``sqrt(K) W[:, class] + b``, and the row of "no class" is b. DhariwalUNet has neither b nor the factor.

The published `.pkl` files contain code and are refused; the error of `arrays.read_arrays` says how to convert them.

The raw output F is equal. The arrays do not say which preconditioning the network was trained with, except for iDDPM's,
which stores its noise levels u, those of the cosine schedule. The default is therefore iDDPM's or EDM's own process;
``process=vp_sde`` and ``process=ve_sde`` are the other two.

References:
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022),
    https://arxiv.org/abs/2206.00364
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.convert.arrays import Reader, read_arrays
from diffusion_core.convert.names import (
    SAME,
    TRANSPOSED,
    Arrays,
    Entry,
    Imported,
    Layout,
    NameMap,
    join_names,
    make_model,
    name_map,
    read_weights,
    shape_of,
)
from diffusion_core.convert.state_dicts import choose_state_dicts
from diffusion_core.networks import Node, Program, UNetSpec
from diffusion_core.networks.unet_spec import multipliers
from diffusion_core.networks.weights import Weights

__all__ = ["import_edm", "make_name_map", "read_spec"]

_WHAT = "a state dict of SongUNet or DhariwalUNet"
# Of a preconditioning; they do not belong to the network.
_CONSTANTS = ("u", "sigma_min", "sigma_max")
_LEAVES = {
    "norm0": ".norm0",
    "conv0": ".conv0",
    "time": ".affine",
    "norm1": ".norm1",
    "conv1": ".conv1",
    "shortcut": ".skip",
}
_ATTENTION = {"norm": ".norm2", "qkv": ".qkv", "proj": ".proj"}


def import_edm(
    path: Path,
    read: Reader,
    process: Mapping[str, Any] | None,
    *,
    head_channels: int = 64,
    norm_groups: int = 32,
    dropout: float = 0.0,
    key: str | None = None,
) -> Imported:
    """Import a state dict of SongUNet or DhariwalUNet, also with the prefix `model.` of a preconditioning.

    Args:
        path: a `.pt` (read by `read`), `.npz` or `.safetensors` file.
        read: reads a `.pt` file.
        process: see `names.make_model`.
        head_channels: channels per head of DhariwalUNet; SongUNet has one head.
        norm_groups: maximal number of groups of a GroupNorm; a group has at least 4 channels.
        dropout: of training, which the weights do not determine; to continue training a preset, use its dropout.
        key: which network of a file that holds several, see `state_dicts`.

    Raises:
        DuetError: if the file does not fit, or is a pickle with code.
    """
    everything = read_arrays(path, read)
    found = choose_state_dicts(everything, "edm", _WHAT, str(path), key, _CONSTANTS)
    arrays = found.weights
    spec = read_spec(arrays, found.source, head_channels, norm_groups=norm_groups, dropout=dropout)
    # The constants of a preconditioning stand next to the network, or among its arrays if that has no prefix.
    u = everything.get(f"{found.prefix.removesuffix('model.')}u", arrays.get("u"))
    model, process_source = make_model(spec, process, _read_process(u))
    names = make_name_map(spec, model.program)

    def read_one(arrays: Arrays, source: str) -> Weights:
        extras = [name for name in arrays if name.endswith(".resample_filter") or name in _CONSTANTS]
        return read_weights(names, model.program, arrays, source, extras)

    weights = read_one(arrays, found.source)
    average = weights if found.average is None else read_one(found.average, found.average_source)
    which = "SongUNet" if _is_song(arrays) else "DhariwalUNet"
    if process is None and u is None:
        process_source = (
            "assumed to be EDM's, since these files do not say it; set process=vp_sde, ve_sde or iddpm for another"
        )
    note = f"the {which} of EDM, whose raw output F is equal{found.note}"
    return Imported(model, weights, average, note, process_source)


def _read_process(u: NDArray | None) -> dict[str, Any]:
    """Return the process of a state dict: iDDPM's, whose noise levels u determine their number, or EDM's."""
    if u is not None:
        return {"schedule": {"name": "cosine", "T": len(u) - 1}, "prediction": "iddpm"}
    return {"schedule": {"name": "edm"}, "prediction": "edm", "sigma_data": 0.5}


def read_spec(arrays: Arrays, source: str, head_channels: int = 64, **options: Any) -> UNetSpec:
    """Return the network of a state dict.

    Args:
        arrays: the state dict.
        source: what errors call it.
        head_channels: channels per head of DhariwalUNet.
        options: fields of `UNetSpec` that the state dict does not determine.

    Raises:
        DuetError: if it is not a SongUNet or DhariwalUNet.
    """
    sizes = sorted({int(f.group(1)) for n in arrays if (f := re.match(r"enc\.(\d+)x\1_block\d+\.", n))}, reverse=True)
    if not sizes or sizes != [sizes[0] >> level for level in range(len(sizes))]:
        raise DuetError(
            f"{source}: it has blocks of sizes {sizes}; this is not a state dict of SongUNet or DhariwalUNet"
        )
    for name in arrays:
        if re.search(r"aux_(down|skip|up)\.", name):
            raise DuetError(f"{source}: {name}: Duet's UNet has no encoder or decoder of type 'skip'")

    shape = partial(shape_of, arrays, source=source, what="a SongUNet or DhariwalUNet")
    is_song, size = _is_song(arrays), sizes[0]
    first = shape(f"enc.{size}x{size}_conv.weight", 4)
    features = shape("map_layer0.weight", 2)[1]
    # SongUNet starts with the base width. DhariwalUNet starts with the width of its first level; its embedding has the
    # base width.
    channels = first[0] if is_song else features
    widths = [shape(f"enc.{s}x{s}_block0.conv1.weight", 4)[0] for s in sizes]
    if features % channels:
        raise DuetError(
            f"{source}: its embedding has {features} features; Duet's UNet takes multiples of the base width, "
            f"{channels}"
        )
    width = shape("map_layer1.weight", 2)[0]
    classes = shape("map_label.weight", 2)[1] if "map_label.weight" in arrays else 0
    common = {
        "image_size": size,
        "in_channels": first[1],
        "out_channels": shape(f"dec.{size}x{size}_aux_conv.weight" if is_song else "out_conv.weight", 4)[0],
        "num_classes": classes,
        "channels": channels,
        "channel_multipliers": multipliers(widths, channels),
        "first_conv": "channels" if first[0] == channels else "first",
        "embedding_width": None if width == 4 * channels else width,
        "blocks_per_resolution": len({n.split(".")[1] for n in arrays if n.startswith(f"enc.{size}x{size}_block")}),
        "attention_resolutions": tuple(s for s in sizes if f"enc.{s}x{s}_block0.qkv.weight" in arrays),
        "norm_group_channels": 4,
        "augment_dim": shape("map_augment.weight", 2)[1] if "map_augment.weight" in arrays else 0,
        "down": "block",
        "up": "block",
        "qkv_order": "interleaved",
        "resample_filter": _taps(arrays, source),
        **options,
    }
    if not is_song:
        return UNetSpec(
            **common,
            time="scale_shift",
            norm_eps=1e-5,
            embedding_divisor="half",
            embedding_sin_first=False,
            head_channels=head_channels,
            null_class="zero",
        )
    return UNetSpec(
        **common,
        norm_eps=1e-6,
        embedding="fourier" if "map_noise.freqs" in arrays else "sinusoid",
        embedding_multiplier=features // channels,
        up_attention="last",
        class_embedding="before",
        encoder="residual" if any("aux_residual" in name for name in arrays) else "standard",
        resample_projection=True,
        skip_scale=math.sqrt(0.5),
    )


def _is_song(arrays: Arrays) -> bool:
    return not any(name.startswith("out_conv.") for name in arrays)


def _taps(arrays: Arrays, source: str) -> tuple[float, ...]:
    """Return the taps of the one filter of all resampling blocks, scaled to small integers."""
    filters = [array for name, array in arrays.items() if name.endswith(".resample_filter")]
    if not filters:
        return (1.0, 1.0)
    first = filters[0]
    sides = first.reshape(first.shape[-2:]).sum(axis=0)
    if any(array.shape != first.shape or not np.array_equal(array, first) for array in filters) or not sides.all():
        raise DuetError(f"{source}: its resample_filters differ; Duet's UNet has one filter for all blocks")
    return tuple(float(tap) for tap in np.round(sides / sides[0], 4))


def make_filters(spec: UNetSpec, program: Program) -> dict[str, NDArray]:
    """Return the filters of the resampling layers, constants of a state dict: the outer square of the taps."""
    taps = np.asarray(spec.resample_filter, np.float32)
    kernel = (np.outer(taps, taps) / taps.sum() ** 2)[None, None]
    modules = _modules(spec)
    names = {node.name for node in program.nodes}
    resampling = [name.removesuffix(".resample") for name in names if name.endswith(".resample")]
    layers = [f"{modules[f'{name}.conv0'].removesuffix('.conv0')}.{leaf}" for name in resampling
              for leaf in ("conv0", "skip")]  # fmt: skip
    layers += [modules[name] for name in names if name.endswith(".image.conv")]
    return {f"{layer}.resample_filter": kernel for layer in layers}


def make_name_map(spec: UNetSpec, program: Program) -> NameMap:
    """Return the name map of a SongUNet or a DhariwalUNet."""
    is_song, modules = spec.up_attention == "last", _modules(spec)

    def make_entry(node: Node, parameter: str, module: str) -> Entry:
        if node.name == "embed.features":
            return Entry((f"{module}.freqs",))
        if node.name == "embed.label":
            if is_song:
                return Entry((f"{module}.weight", f"{module}.bias"), _class_table(spec.num_classes))
            return Entry((f"{module}.weight",), TRANSPOSED)
        return Entry((f"{module}.{parameter}",), SAME)

    return name_map(program, modules, make_entry, "edm")


def _modules(spec: UNetSpec) -> dict[str, str]:
    """Return the module of each node."""
    is_song = spec.up_attention == "last"
    last, size = len(spec.channel_multipliers) - 1, spec.image_size
    side = [f"{size >> level}x{size >> level}" for level in range(last + 1)]
    residuals = {"mid.block0": f"dec.{side[last]}_in0", "mid.block1": f"dec.{side[last]}_in1"}
    attentions = {"mid.attn": f"dec.{side[last]}_in0"}
    modules = {
        "embed.features": "map_noise",
        "embed.augment": "map_augment",
        "embed.dense0": "map_layer0",
        "embed.dense1": "map_layer1",
        "embed.label": "map_label",
        "conv_in": f"enc.{side[0]}_conv",
        "out.norm": f"dec.{side[0]}_aux_norm" if is_song else "out_norm",
        "out.conv": f"dec.{side[0]}_aux_conv" if is_song else "out_conv",
    }
    for level in range(last + 1):
        for way, theirs, blocks in (
            ("down", "enc", spec.blocks_per_resolution),
            ("up", "dec", spec.blocks_per_resolution + 1),
        ):
            for i in range(blocks):
                residuals[f"{way}.{level}.{i}.block"] = f"{theirs}.{side[level]}_block{i}"
                attentions[f"{way}.{level}.{i}.attn"] = f"{theirs}.{side[level]}_block{i}"
        # Both are named after the resolution that they lead to.
        if level < last:
            residuals[f"down.{level}.down"] = f"enc.{side[level + 1]}_down"
            modules[f"down.{level}.image.conv"] = f"enc.{side[level + 1]}_aux_residual"
        if level:
            residuals[f"up.{level}.up"] = f"dec.{side[level - 1]}_up"
    return modules | join_names(residuals, _LEAVES) | join_names(attentions, _ATTENTION)


def _class_table(classes: int) -> Layout:
    """Return the layout of a dense layer on one-hot labels times sqrt(K), as a table whose last row is "no class".

    The table stays float64: sqrt(K) W + b is no float32 where W and b are.
    """
    scale = math.sqrt(classes)

    def to_duet(weight: NDArray, bias: NDArray) -> NDArray:
        rows = weight.astype(np.float64).T * scale + bias
        return np.concatenate([rows, bias[None]])

    def from_duet(table: NDArray) -> tuple[NDArray, NDArray]:
        return ((table[:-1] - table[-1]) / scale).T, table[-1]

    return Layout(to_duet, from_duet)
