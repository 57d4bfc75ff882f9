"""Checkpoints of denoising-diffusion-pytorch (lucidrains), versions 2: the `Unet`, and what GaussianDiffusion adds.

Its Trainer writes {"step", "model", "opt", "ema", "scaler", "version"}, where "model" is the state dict of a
GaussianDiffusion (the Unet under "model.", and its tables as arrays) and "ema" that of an EMA of it. So

    model.model.<name>              the weights
    ema.ema_model.model.<name>      their moving average
    model.betas, model.loss_weight  the schedule, and what the network predicts:

at SNR s the weight of the loss is 1 for the noise, s for the image and s / (1 + s) for v. The betas are stored as
float32; a schedule of Duet that agrees with them to float32 is taken by name, else the list itself.

    Unet                                              Duet's `linear_attention`
    downs.i.0, .1 / ups.i.0, .1                       down.i.0, .1 / up.(last - i).0, .1: proj conv, norm.g RMSNorm
    downs.i.2: norm, to_qkv, mem_kv, to_out           down.i.attn
    downs.i.3.1, a 1 x 1 kernel on squares of pixels  down.i.down, a strided 2 x 2 kernel

Sinusoids, q k v without bias, and the widths are determined by names and shapes; the size of the images and the
dropout are not. Earlier versions have GroupNorm and weight-standardised convolutions, which Duet does not have.

Reference: https://github.com/lucidrains/denoising-diffusion-pytorch
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.convert.arrays import Reader, read_arrays
from diffusion_core.convert.names import (
    SAME,
    Arrays,
    Entry,
    Imported,
    Layout,
    NameMap,
    count_numbers,
    join_names,
    make_model,
    name_map,
    shape_of,
)
from diffusion_core.convert.state_dicts import choose_state_dicts, read_both
from diffusion_core.diffusion.schedule import make_schedule
from diffusion_core.networks import LinearAttentionSpec, Node, Program

__all__ = ["import_denoising_diffusion_pytorch", "make_name_map", "read_process", "read_spec"]

_FORMAT, _WHAT = "denoising_diffusion_pytorch", "a Unet of denoising-diffusion-pytorch"
_BLOCK = {
    "time": ".mlp.1", "conv0": ".block1.proj", "norm0": ".block1.norm", "conv1": ".block2.proj",
    "norm1": ".block2.norm", "shortcut": ".res_conv",
}  # fmt: skip
# Names of parts that earlier versions or other options have, and what Duet has no block for.
_MISSING = {
    r".*\.block1\.norm\.bias": "GroupNorm after weight-standardised convolutions, which versions before 2 have",
    r"time_mlp\.0\.weights": "random or learned frequencies next to the time itself",
    r".*\.fn\..*": "the wrapped attention of early versions",
}
_SCHEDULES = ("sigmoid", "cosine", "linear")
# How GaussianDiffusion samples with all of its steps.
_SAMPLER: Mapping[str, Any] = {"name": "ddpm", "steps": None, "variance": "fixed_small", "clip": 1.0}

_VECTOR = Layout(lambda a: a.reshape(-1), lambda a: (a.reshape(1, -1, 1, 1),))
# The memory of linear attention has its channels before its tokens.
_CHANNELS_FIRST = Layout(lambda a: a.swapaxes(2, 3), lambda a: (a.swapaxes(2, 3),))
# A square of pixels is in the channels, in the order (c, row, column).
_SQUARES = Layout(
    lambda a: rearrange(a, "o (c p q) 1 1 -> o c p q", p=2, q=2),
    lambda a: (rearrange(a, "o c p q -> o (c p q) 1 1"),),
)
# Duet's network reads [image, estimate], this one [estimate, image].
_ESTIMATE_FIRST = Layout(
    lambda a: np.concatenate(np.split(a, 2, axis=1)[::-1], axis=1),
    lambda a: (np.concatenate(np.split(a, 2, axis=1)[::-1], axis=1),),
)


def import_denoising_diffusion_pytorch(
    path: Path,
    read: Reader,
    process: Mapping[str, Any] | None,
    *,
    image_size: int,
    dropout: float = 0.0,
    self_condition: bool | None = None,
    key: str | None = None,
) -> Imported:
    """Import a checkpoint of the Trainer, or a state dict of GaussianDiffusion or Unet.

    Args:
        path: a `.pt` (read by `read`), `.npz` or `.safetensors` file.
        read: reads a `.pt` file.
        process: see `names.make_model`; None takes that of GaussianDiffusion, or of DDPM for a Unet alone.
        image_size: height and width in pixels.
        dropout: of training, which the weights do not determine.
        self_condition: whether the first layer also reads an earlier estimate; None is whether it reads twice the
            channels of the output, which does not tell if the network also predicts a variance.
        key: which network of a file that holds several, see `state_dicts`.

    Raises:
        DuetError: if the file does not fit; the message names a part that Duet has no block for.
    """
    arrays = read_arrays(path, read)
    found = choose_state_dicts(arrays, _FORMAT, _WHAT, str(path), key)
    spec = read_spec(found.weights, found.source, image_size, dropout, self_condition)
    # The tables of GaussianDiffusion stand next to the network, which is its attribute "model".
    outer = found.prefix.removesuffix("model.")
    tables = [arrays.get(f"{outer}{name}") for name in ("betas", "loss_weight")]
    own = None if tables[0] is None or tables[1] is None else read_process(tables[0], tables[1])
    variance = "learned_range" if spec.out_channels == 2 * spec.in_channels else "fixed"
    model, process_source = make_model(spec, process, own, variance)
    names = make_name_map(spec, model.program)
    weights, average = read_both(names, model.program, found)
    note = f"a Unet of denoising-diffusion-pytorch{found.note}"
    average = weights if average is None else average
    return Imported(model, weights, average, note, process_source, _SAMPLER if own and process is None else None)


def read_process(betas: NDArray, loss_weight: NDArray) -> dict[str, Any]:
    """Return the process of the tables of a GaussianDiffusion."""
    schedule: dict[str, Any] = {"name": "betas", "betas": betas.astype(np.float64).tolist()}
    T = len(betas)
    for name in _SCHEDULES:
        # Its linear betas are those of 1000 levels times 1000/T; from 50 levels on all of them are below 1.
        ends = {"beta_start": 0.1 / T, "beta_end": 20.0 / T} if name == "linear" and T != 1000 else {}
        if name == "linear" and T <= 20:
            continue
        options = {"name": name, "T": T, **ends}
        # The ends of its sigmoid are rounded to float32, which small betas show in their fourth digit.
        if np.allclose(make_schedule(**options).betas, betas, rtol=1e-3, atol=1e-6):
            schedule = options
            break
    signal = np.cumprod(1.0 - betas.astype(np.float64))
    snr = signal / (1.0 - signal)
    # Where the SNR is a half, the three weights are 1, 1/2 and 1/3, with and without an upper limit of the SNR.
    at = int(np.argmin(np.abs(np.log(2.0 * snr))))
    weights = {"eps": 1.0, "x0": snr[at], "v": snr[at] / (1.0 + snr[at])}
    prediction = min(weights, key=lambda name: abs(np.log(weights[name] / float(loss_weight[at]))))
    return {"schedule": schedule, "prediction": prediction}


def read_spec(
    arrays: Arrays, source: str, image_size: int, dropout: float = 0.0, self_condition: bool | None = None
) -> LinearAttentionSpec:
    """Return the network of a state dict.

    Args:
        arrays: the state dict of a Unet.
        source: what errors call it.
        image_size: height and width in pixels.
        dropout: of training.
        self_condition: see `import_denoising_diffusion_pytorch`.

    Raises:
        DuetError: if it is no Unet, or has a part that Duet has no block for.
    """
    for name in arrays:
        for pattern, part in _MISSING.items():
            if re.fullmatch(pattern, name):
                raise DuetError(f"{source}: {name}: Duet has no block for {part}")

    shape = partial(shape_of, arrays, source=source, what=f"{_WHAT}, version 2")
    levels = count_numbers(arrays, r"downs\.(\d+)\.")
    first, channels = shape("init_conv.weight", 4), shape("time_mlp.1.weight", 2)[1]
    widths = []
    for level in range(levels):
        widths.append(shape(f"downs.{level}.3.{'1.' if level < levels - 1 else ''}weight", 4)[0])
    if not levels or any(width % channels for width in widths):
        raise DuetError(
            f"{source}: its levels have {widths} channels; Duet's network takes multiples of the base width, {channels}"
        )
    memories = [shape(f"downs.{level}.2.mem_kv", 4) for level in range(levels)]
    # Full attention has the memory in the order (tokens, channels), linear attention (channels, tokens), and a norm
    # after its projection.
    is_full = [f"downs.{level}.2.to_out.1.g" not in arrays for level in range(levels)]
    sizes = {
        (memory[1], *(memory[2:] if full else memory[:1:-1])) for memory, full in zip(memories, is_full, strict=True)
    }
    if len(sizes) > 1:
        raise DuetError(
            f"{source}: its attentions have different heads, memories or channels per head ({sorted(sizes)}); Duet's "
            f"network has the same ones at every resolution"
        )
    ((heads, memory, head_channels),) = sizes
    full = tuple(image_size // 2**level for level in range(levels) if is_full[level])
    out_channels = shape("final_conv.weight", 4)[0]
    if self_condition is None:
        self_condition = first[1] == 2 * out_channels
    return LinearAttentionSpec(
        image_size=image_size,
        in_channels=first[1] // 2 if self_condition else first[1],
        out_channels=out_channels,
        channels=channels,
        channel_multipliers=tuple(width // channels for width in widths),
        first_width=None if first[0] == channels else first[0],
        full_attention=None if full == (image_size // 2 ** (levels - 1),) else full,
        heads=heads,
        head_channels=head_channels,
        memory=memory,
        dropout=dropout,
        self_conditioning=self_condition,
        init="torch",
    )


def make_name_map(spec: LinearAttentionSpec, program: Program) -> NameMap:
    """Return the name map of a Unet."""
    last = len(spec.channel_multipliers) - 1
    blocks = {"mid.0": "mid_block1", "mid.1": "mid_block2", "out.block": "final_res_block"}
    attentions = {"mid.attn": "mid_attn"}
    modules = {
        "embed.dense0": "time_mlp.1", "embed.dense1": "time_mlp.3", "conv_in": "init_conv", "out.conv": "final_conv",
    }  # fmt: skip
    for level in range(last + 1):
        up = last - level
        for ours, theirs in ((f"down.{level}", f"downs.{level}"), (f"up.{level}", f"ups.{up}")):
            blocks |= {f"{ours}.{i}": f"{theirs}.{i}" for i in range(2)}
            attentions[f"{ours}.attn"] = f"{theirs}.2"
        modules |= {
            f"down.{level}.down": f"downs.{level}.3.1", f"down.{level}.widen": f"downs.{level}.3",
            f"up.{level}.up": f"ups.{up}.3.1", f"up.{level}.narrow": f"ups.{up}.3",
        }  # fmt: skip
    modules |= join_names(blocks, _BLOCK)
    full = {node.name.removesuffix(".attend") for node in program.nodes if node.kind == "MemoryAttention"}
    for ours, theirs in attentions.items():
        projection = "to_out" if ours in full else "to_out.0"
        modules |= {
            f"{ours}.norm0": f"{theirs}.norm", f"{ours}.qkv": f"{theirs}.to_qkv", f"{ours}.attend": theirs,
            f"{ours}.proj": f"{theirs}.{projection}", f"{ours}.norm1": f"{theirs}.to_out.1",
        }  # fmt: skip

    def make_entry(node: Node, parameter: str, module: str) -> Entry:
        if node.kind == "RMSNorm":
            return Entry((f"{module}.g",), _VECTOR)
        if node.kind in ("MemoryAttention", "LinearAttention"):
            return Entry((f"{module}.mem_kv",), SAME if node.kind == "MemoryAttention" else _CHANNELS_FIRST)
        if node.name.endswith(".down"):
            return Entry((f"{module}.{parameter}",), _SQUARES if parameter == "weight" else SAME)
        if node.name == "conv_in" and parameter == "weight" and spec.self_conditioning:
            return Entry((f"{module}.{parameter}",), _ESTIMATE_FIRST)
        return Entry((f"{module}.{parameter}",), SAME)

    return name_map(program, modules, make_entry, "denoising_diffusion_pytorch")
