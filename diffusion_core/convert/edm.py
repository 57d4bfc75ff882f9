r"""The networks of EDM, SongUNet (DDPM++ and NCSN++) and DhariwalUNet (ADM), from plain state dicts.

Names and shapes tell everything but the width of a head of ADM (64) and the dropout. A class enters SongUNet in front
of the dense layers as ``W sqrt(K) one_hot + b`` with zeros for "no class", so its row of Duet's table is
``sqrt(K) W[:, class] + b`` and the row of "no class" is b. DhariwalUNet has no such b and no factor.

The published `.pkl` files carry code and are refused; see `arrays.read_arrays` for how to convert them elsewhere.

The forward F is equal. Which preconditioning it was trained in the arrays do not say, but for iDDPM's, which keeps its
noise levels u beside the network: those of the cosine schedule. Unless a process is given it is that one or EDM's own;
``process=vp_sde`` and ``process=ve_sde`` are the other two.

References:
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022),
    https://arxiv.org/abs/2206.00364
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
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
    make_model,
    name_map,
    prefixes,
    read_weights,
)
from diffusion_core.networks import Node, Program, UNetSpec

__all__ = ["import_edm", "model_names", "spec_of"]

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
) -> Imported:
    """A state dict of SongUNet or DhariwalUNet, alone or under `model.` of a preconditioning.

    Args:
        path: `.pt` (read by `read`), `.npz` or `.safetensors`.
        process: see `names.make_model`.
        head_channels: channels per head of DhariwalUNet; SongUNet has one head.
        norm_groups: most groups of a GroupNorm; a group has at least 4 channels.
        dropout: of training, which the weights do not tell; to go on with a preset it must be the preset's.

    Raises:
        DuetError: if it does not fit, or is a pickle with code.
    """
    arrays = {name.removeprefix("model."): a for name, a in read_arrays(path, read).items()}
    spec = spec_of(arrays, str(path), head_channels, norm_groups=norm_groups, dropout=dropout)
    model, whose = make_model(spec, process, _process_of(arrays))
    filters = [name for name in arrays if name.endswith(".resample_filter")]
    # Constants of a preconditioning, which are no part of its network.
    constants = [name for name in arrays if name in ("u", "sigma_min", "sigma_max")]
    names = model_names(spec, model.program)
    weights = read_weights(names, model.program, arrays, str(path), extras=(*filters, *constants))
    which = "SongUNet" if _is_song(arrays) else "DhariwalUNet"
    if process is None and "u" not in arrays:
        whose = "EDM's, assumed, as these files do not say it; process=vp_sde, ve_sde or iddpm gives another"
    note = f"the {which} of EDM, whose raw output F is equal"
    return Imported(model, weights, weights, note, whose)


def _process_of(arrays: Arrays) -> dict[str, Any]:
    """The process of a state dict: iDDPM's, whose constants tell its number of levels, or EDM's."""
    if "u" in arrays:
        return {"schedule": {"name": "cosine", "T": len(arrays["u"]) - 1}, "prediction": "iddpm"}
    return {"schedule": {"name": "edm"}, "prediction": "edm", "sigma_data": 0.5}


def spec_of(arrays: Arrays, source: str, head_channels: int = 64, **options: Any) -> UNetSpec:
    """The network that a state dict is of.

    Args:
        options: fields of `UNetSpec` that it does not tell.

    Raises:
        DuetError: if it is of something else.
    """
    sizes = sorted({int(f.group(1)) for n in arrays if (f := re.match(r"enc\.(\d+)x\1_block\d+\.", n))}, reverse=True)
    if not sizes or sizes != [sizes[0] >> level for level in range(len(sizes))]:
        raise DuetError(f"{source}: it has blocks of sizes {sizes}; this is no state dict of SongUNet or DhariwalUNet")
    for name in arrays:
        if re.search(r"aux_(down|skip|up)\.", name):
            raise DuetError(f"{source}: {name}: Duet's UNet has no encoder or decoder of the kind 'skip'")

    def shape(name: str, axes: int) -> tuple[int, ...]:
        if name not in arrays or arrays[name].ndim != axes:
            raise DuetError(f"{source}: {name} is missing or has other axes; this is no SongUNet or DhariwalUNet")
        return arrays[name].shape

    is_song, size = _is_song(arrays), sizes[0]
    first = shape(f"enc.{size}x{size}_conv.weight", 4)
    features = shape("map_layer0.weight", 2)[1]
    # SongUNet starts with the base width; DhariwalUNet with that of its first level, and embeds in the base width.
    channels = first[0] if is_song else features
    widths = [shape(f"enc.{s}x{s}_block0.conv1.weight", 4)[0] for s in sizes]
    if any(width % channels for width in widths) or features % channels:
        raise DuetError(
            f"{source}: its levels have {widths} channels and its embedding {features}; Duet's UNet takes multiples "
            f"of the base width, {channels}"
        )
    classes = shape("map_label.weight", 2)[1] if "map_label.weight" in arrays else 0
    common = {
        "image_size": size,
        "in_channels": first[1],
        "out_channels": shape(f"dec.{size}x{size}_aux_conv.weight" if is_song else "out_conv.weight", 4)[0],
        "num_classes": classes,
        "channels": channels,
        "channel_multipliers": tuple(width // channels for width in widths),
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
    """The taps of the one filter that all its resampling has, as small whole numbers."""
    found = [array for name, array in arrays.items() if name.endswith(".resample_filter")]
    if not found:
        return (1.0, 1.0)
    sides = found[0].reshape(found[0].shape[-2:]).sum(axis=0)
    if any(array.shape != found[0].shape or not np.array_equal(array, found[0]) for array in found) or not sides.all():
        raise DuetError(f"{source}: its resample_filters differ; Duet's UNet has one filter")
    return tuple(float(tap) for tap in np.round(sides / sides[0], 4))


def model_names(spec: UNetSpec, program: Program) -> NameMap:
    """The name map of a SongUNet (class in front of the dense layers) or DhariwalUNet."""
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
        # Both are named by the size that they lead to.
        if level < last:
            residuals[f"down.{level}.down"] = f"enc.{side[level + 1]}_down"
            modules[f"down.{level}.image.conv"] = f"enc.{side[level + 1]}_aux_residual"
        if level:
            residuals[f"up.{level}.up"] = f"dec.{side[level - 1]}_up"
    modules |= prefixes(residuals, _LEAVES) | prefixes(attentions, _ATTENTION)

    def spell(node: Node, parameter: str, module: str) -> Entry:
        if node.name == "embed.features":
            return Entry((f"{module}.freqs",))
        if node.name == "embed.label":
            if is_song:
                return Entry((f"{module}.weight", f"{module}.bias"), _class_table(spec.num_classes))
            return Entry((f"{module}.weight",), TRANSPOSED)
        return Entry((f"{module}.{parameter}",), SAME)

    return name_map(program, modules, spell, "edm")


def _class_table(classes: int) -> Layout:
    """A dense layer on one-hot labels times sqrt(K) as a table with a last row for "no class"."""
    scale = math.sqrt(classes)

    def take(weight: NDArray, bias: NDArray) -> NDArray:
        rows = weight.astype(np.float64).T * scale + bias
        return np.concatenate([rows, bias[None]]).astype(weight.dtype)

    def give(table: NDArray) -> tuple[NDArray, NDArray]:
        return ((table[:-1] - table[-1]) / scale).T, table[-1]

    return Layout(take, give)
