r"""The networks of EDM2, from plain state dicts, and back.

A state dict of `Precond` holds the U-Net under `unet.` and the log-variance of the loss beside it; that of the U-Net
alone is read too. Names are those of Duet's program except

    emb_fourier.freqs, .phases     emb_fourier.frequencies, .phases       both in radians
    <block>.emb_gain               <block>.emb_linear.gain
    out_gain                       out_conv.gain

Names and shapes do not determine the channels per head, the balances, the filter, the clip and the dropout; they are
options of the source, with the defaults of the original.

The published `.pkl` files contain code and are refused; the error of `arrays.read_arrays` says how to convert them.

References:
    Analyzing and Improving the Training Dynamics of Diffusion Models (Karras et al., 2024),
    https://arxiv.org/abs/2312.02696
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from diffusion_core.common.errors import DuetError
from diffusion_core.convert.arrays import Reader, read_arrays
from diffusion_core.convert.names import Arrays, Entry, Imported, NameMap, make_model, read_weights, shape_of
from diffusion_core.convert.state_dicts import choose_state_dicts
from diffusion_core.networks import EDM2Spec, Program

__all__ = ["import_edm2", "make_name_map", "read_spec"]

_WHAT = "a state dict of EDM2"
_PROCESS = {"schedule": {"name": "edm"}, "prediction": "edm", "sigma_data": 0.5}


def import_edm2(
    path: Path,
    read: Reader,
    process: Mapping[str, Any] | None,
    *,
    head_channels: int = 64,
    dropout: float = 0.0,
    resample_filter: tuple[float, ...] = (1.0, 1.0),
    label_balance: float = 0.5,
    concat_balance: float = 0.5,
    residual_balance: float = 0.3,
    attention_balance: float = 0.3,
    clip: float | None = 256.0,
    key: str | None = None,
) -> Imported:
    """Import a state dict of `Precond` or of the U-Net in it.

    Args:
        path: a `.pt` (read by `read`), `.npz` or `.safetensors` file.
        read: reads a `.pt` file.
        process: see `names.make_model`; by default that of EDM with sigma_data 0.5, as the original trains.
        head_channels: channels per attention head.
        dropout: of training; to continue training a preset, use its dropout.
        resample_filter: taps of the filter of each change of resolution.
        label_balance: share of the class in the embedding.
        concat_balance: share of the skip in each concatenation.
        residual_balance: share of the residual branch in each block.
        attention_balance: share of the attention.
        clip: bound of the values after each block; None does not clip.
        key: which network of a file that holds several, see `state_dicts`.

    Raises:
        DuetError: if the file does not fit, or is a pickle with code.
    """
    arrays = read_arrays(path, read)
    if "emb_noise.weight" in arrays:  # the U-Net alone
        arrays = {f"unet.{name}": array for name, array in arrays.items()}
    found = choose_state_dicts(arrays, "edm2", _WHAT, str(path), key)
    spec = read_spec(
        found.weights, found.source, head_channels=head_channels, dropout=dropout,
        resample_filter=tuple(resample_filter), label_balance=label_balance, concat_balance=concat_balance,
        residual_balance=residual_balance, attention_balance=attention_balance, clip=clip,
    )  # fmt: skip
    model, process_source = make_model(spec, process, _PROCESS)
    names = make_name_map(spec, model.program)
    weights = read_weights(names, model.program, found.weights, found.source)
    average = weights
    if found.average is not None:
        average = read_weights(names, model.program, found.average, found.average_source)
    note = f"the U-Net of EDM2, whose raw output F is equal{found.note}"
    return Imported(model, weights, average, note, process_source)


def read_spec(arrays: Arrays, source: str, **options: Any) -> EDM2Spec:
    """Return the network of a state dict of `Precond`.

    Args:
        arrays: the state dict.
        source: what errors call it.
        options: fields of `EDM2Spec` that the state dict does not determine.

    Raises:
        DuetError: if it is not a state dict of EDM2.
    """
    pattern = re.compile(r"unet\.enc\.(\d+)x\1_block(\d+)\.conv_res0\.weight")
    blocks = [(int(found.group(1)), int(found.group(2))) for name in arrays if (found := pattern.match(name))]
    sizes = sorted({size for size, _ in blocks}, reverse=True)
    if not sizes or sizes != [sizes[0] >> level for level in range(len(sizes))]:
        raise DuetError(f"{source}: it has blocks of sizes {sizes}; this is not {_WHAT}")

    shape = partial(shape_of, arrays, source=source, what=_WHAT)
    size = sizes[0]
    widths = [shape(f"unet.enc.{s}x{s}_block0.conv_res1.weight", 4)[0] for s in sizes]
    embedding, noise = shape("unet.emb_noise.weight", 2)
    channels = math.gcd(*widths, embedding, noise)
    has, head = arrays.__contains__, options.get("head_channels", 64)
    for side, width in zip(sizes, widths, strict=True):
        if has(f"unet.enc.{side}x{side}_block0.attn_qkv.weight") and width < head:
            raise DuetError(
                f"source.head_channels: {head} was given, but {source} has attention at {width} channels; give the "
                f"channels per head of its training, at most {width}"
            )
    return EDM2Spec(
        image_size=size,
        in_channels=shape(f"unet.enc.{size}x{size}_conv.weight", 4)[1] - 1,
        out_channels=shape("unet.out_conv.weight", 4)[0],
        num_classes=shape("unet.emb_label.weight", 2)[1] if has("unet.emb_label.weight") else 0,
        channels=channels,
        channel_multipliers=tuple(width // channels for width in widths),
        noise_multiplier=None if noise == widths[0] else noise // channels,
        embedding_multiplier=None if embedding == max(widths) else embedding // channels,
        blocks_per_resolution=1 + max(i for s, i in blocks if s == size),
        attention_resolutions=tuple(s for s in sizes if has(f"unet.enc.{s}x{s}_block0.attn_qkv.weight")),
        logvar_channels=shape("logvar_linear.weight", 2)[1] if has("logvar_linear.weight") else 0,
        **options,
    )


def make_name_map(spec: EDM2Spec, program: Program) -> NameMap:
    """Return the name map of a network of EDM2."""
    return {p.name: Entry((_their_name(p.name),)) for p in program.parameters}


def _their_name(name: str) -> str:
    """Return the name of a parameter in a state dict of `Precond`."""
    name = name.removesuffix("frequencies") + "freqs" if name.endswith(".frequencies") else name
    name = name.replace(".emb_linear.gain", ".emb_gain").replace("out_conv.gain", "out_gain")
    return name if name.startswith("logvar_") else f"unet.{name}"
