"""The networks of dome272's Diffusion-Models-pytorch: `UNet` and `UNet_conditional`, from their state dicts.

    inc, bot1 .. bot3       double convolutions                               Duet's in, bottom.0 .. bottom.2
    down1 .. down3          maxpool_conv.1, .2; emb_layer.1                   down.1 .. down.3: double0, double1, time
    up1 .. up3              conv.0, .1; emb_layer.1                           up.2 .. up.0
    sa1 .. sa6              mha, ln, ff_self                                  the attention after each of these
    label_emb               the classes of UNet_conditional                   no row for "no class": nothing is added

They are Duet's `double_conv` architecture. Names and shapes determine everything except the heads (4) and the size of
the images (64), on which no weight depends. `remove_deep_conv` of later versions has no bot2.

The process of that project is DDPM's, with t from 1 in training and in sampling.

Reference: https://github.com/dome272/Diffusion-Models-pytorch
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion_core.common.errors import DuetError
from diffusion_core.convert.arrays import Reader, read_arrays
from diffusion_core.convert.names import (
    DDPM,
    DENSE_1X1,
    SAME,
    Arrays,
    Entry,
    Imported,
    NameMap,
    join_names,
    make_model,
    name_map,
)
from diffusion_core.convert.state_dicts import ANCHORS, choose_state_dicts, read_both
from diffusion_core.networks import DoubleConvSpec, Node, Program

__all__ = ["import_dome272", "make_name_map", "read_spec"]

_FORMAT, _WHAT = "dome272", "a state dict of UNet or UNet_conditional of dome272"
_ANCHOR = ANCHORS[_FORMAT]
_DOUBLE = {"conv0": ".double_conv.0", "norm0": ".double_conv.1", "conv1": ".double_conv.3", "norm1": ".double_conv.4"}
_ATTENTION = {
    "norm0": ".ln", "qkv": ".mha.in_proj_", "proj": ".mha.out_proj", "norm1": ".ff_self.0", "dense0": ".ff_self.1",
    "dense1": ".ff_self.3",
}  # fmt: skip
# The process with which that project samples; see configs/sampler/ddpm_tutorial.yaml.
_SAMPLER: Mapping[str, Any] = {
    "name": "ddpm", "steps": None, "variance": "fixed_large", "last_t": 1, "clip": None,
}  # fmt: skip


def import_dome272(
    path: Path,
    read: Reader,
    process: Mapping[str, Any] | None,
    *,
    image_size: int = 64,
    heads: int = 4,
    ema: str | None = None,
    key: str | None = None,
) -> Imported:
    """Import a state dict of `UNet` or `UNet_conditional`.

    Args:
        path: a `.pt` (read by `read`), `.npz` or `.safetensors` file, such as ckpt.pt.
        read: reads a `.pt` file.
        process: see `names.make_model`.
        image_size: height and width in pixels.
        heads: heads of every attention.
        ema: a second file with the moving average, such as ema_ckpt.pt.
        key: which network of a file that holds several, see `state_dicts`.

    Raises:
        DuetError: if a file or an option does not fit.
    """
    found = choose_state_dicts(read_arrays(path, read), _FORMAT, _WHAT, str(path), key)
    spec = read_spec(found.weights, found.source, image_size, heads)
    model, process_source = make_model(spec, process, DDPM)
    names = make_name_map(spec, model.program)
    second = None
    if ema is not None:
        second = choose_state_dicts(read_arrays(Path(ema), read), _FORMAT, _WHAT, ema, key)
    weights, average = read_both(names, model.program, found, second)
    kind = "UNet_conditional" if spec.num_classes else "UNet"
    note = f"a {kind} of dome272, trained with t from 1 (process.first_t=1){found.note}"
    # Its training draws t from 1 and drops a tenth of the labels.
    objective = {"first_t": 1} | ({"label_dropout": 0.1} if spec.num_classes else {})
    sampler = _SAMPLER if process is None else None
    average = weights if average is None else average
    return Imported(model, weights, average, note, process_source, sampler, objective if process is None else {})


def read_spec(arrays: Arrays, source: str, image_size: int = 64, heads: int = 4) -> DoubleConvSpec:
    """Return the network of a state dict.

    Args:
        arrays: the state dict.
        source: what errors call it.
        image_size: height and width in pixels.
        heads: heads of every attention.

    Raises:
        DuetError: if it is not one of these networks.
    """

    def shape(name: str) -> tuple[int, ...]:
        if name not in arrays or arrays[name].ndim < 2:
            raise DuetError(f"{source}: {name} is missing or not a weight; this is not {_WHAT}")
        return arrays[name].shape

    def count(part: str) -> int:
        return max((int(m.group(1)) for name in arrays if (m := re.match(rf"{part}(\d+)\.", name))), default=0)

    levels = count("down")
    first = shape(_ANCHOR)
    widths = [first[0], *(shape(f"down{i}.maxpool_conv.2.double_conv.3.weight")[0] for i in range(1, levels + 1))]
    if not levels or any(width % first[0] for width in widths):
        raise DuetError(
            f"{source}: its levels have {widths} channels; Duet's network of double convolutions takes two or more "
            f"levels with multiples of the first width"
        )
    bottom = tuple(
        shape(f"bot{i}.double_conv.3.weight")[0]
        for i in range(1, 1 + count("bot"))
        if f"bot{i}.double_conv.3.weight" in arrays
    )
    return DoubleConvSpec(
        image_size=image_size,
        in_channels=first[1],
        out_channels=shape("outc.weight")[0],
        num_classes=shape("label_emb.weight")[0] if "label_emb.weight" in arrays else 0,
        channels=first[0],
        channel_multipliers=tuple(width // first[0] for width in widths),
        embedding=shape("down1.emb_layer.1.weight")[1],
        heads=heads,
        bottom=None if bottom == (2 * widths[-1], 2 * widths[-1], widths[-2]) else bottom,
        null_class="zero",
        init="torch",
    )


def make_name_map(spec: DoubleConvSpec, program: Program) -> NameMap:
    """Return the name map of a `UNet` or a `UNet_conditional`."""
    last = len(spec.channel_multipliers) - 1
    doubles, attentions = {"in": "inc"}, {}
    modules = {"embed.label": "label_emb", "out": "outc"}
    # Without bot2, bot3 follows bot1.
    numbers = (1, 3) if spec.bottom is not None and len(spec.bottom) == 2 else range(1, 1 + len(spec.bottom_widths))
    doubles |= {f"bottom.{i}": f"bot{number}" for i, number in enumerate(numbers)}
    for i in range(1, last + 1):
        for ours, theirs, convs in ((f"down.{i}", f"down{i}", "maxpool_conv"), (f"up.{last - i}", f"up{i}", "conv")):
            first = 1 if convs == "maxpool_conv" else 0
            doubles |= {f"{ours}.double{j}": f"{theirs}.{convs}.{first + j}" for j in range(2)}
            modules[f"{ours}.time"] = f"{theirs}.emb_layer.1"
        attentions |= {f"down.{i}.attn": f"sa{i}", f"up.{last - i}.attn": f"sa{last + i}"}
    modules |= join_names(doubles, _DOUBLE) | join_names(attentions, _ATTENTION)

    def make_entry(node: Node, parameter: str, module: str) -> Entry:
        is_dense = re.search(r"\.attn\.(qkv|proj|dense\d)$", node.name) and parameter == "weight"
        joint = "" if module.endswith("_") else "."
        return Entry((f"{module}{joint}{parameter}",), DENSE_1X1 if is_dense else SAME)

    return name_map(program, modules, make_entry, "dome272")
