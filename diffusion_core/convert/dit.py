"""DiT and SiT, from the state dicts of their authors' code.

Names and shapes determine everything except the heads, which follow from the width where it is that of a published
network, and which of the two networks it is: their names are the same, but SiT discards the second half of its output.
The table of positions is part of the file, as a parameter that is not trained.

    x_embedder.proj                            patch.conv
    pos_embed                                  positions.table, with an axis more
    t_embedder.mlp.0, .2                       embed.dense0, .dense1
    y_embedder.embedding_table                 embed.label; its last row is "no class"
    blocks.I.attn.qkv, .proj                   block.I.attn.qkv, .proj
    blocks.I.mlp.fc1, .fc2                     block.I.mlp.dense0, .dense1
    blocks.I.adaLN_modulation.1                block.I.modulation
    final_layer.adaLN_modulation.1, .linear    final.modulation, .dense

DiT predicts eps on DDPM's linear schedule, with a variance between beta and that of the posterior; SiT predicts the
velocity from noise to data on the straight line, of which it reads the time 1 - t. A state dict says neither. Both
come with the sampler of their script: 250 ancestral steps, or those of the SDE, with a guidance scale of 4 on three
channels.

References:
    Scalable Diffusion Models with Transformers (Peebles & Xie, 2022), https://arxiv.org/abs/2212.09748
    SiT: Exploring Flow and Diffusion-based Generative Models with Scalable Interpolant Transformers (Ma et al., 2024),
    https://arxiv.org/abs/2401.08740
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.convert.arrays import Reader, read_arrays
from diffusion_core.convert.names import (
    DDPM,
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
from diffusion_core.networks import DiTSpec, Node, Program

__all__ = ["SIT", "WITH_AN_AXIS", "import_dit", "import_sit", "make_name_map", "read_spec"]

# The heads of the published networks by their width.
_HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}
WITH_AN_AXIS = Layout(lambda a: a[0], lambda a: (a[None],))
# The process of SiT with its default path and prediction.
SIT: Mapping[str, Any] = {
    "schedule": {"name": "flow_continuous", "t_min": 1e-12},
    "prediction": "velocity_to_data",
    "time_scale": -1.0,
    "time_offset": 1.0,
}
_LEAVES = {
    "modulation": ".adaLN_modulation.1",
    "attn.qkv": ".attn.qkv",
    "attn.proj": ".attn.proj",
    "mlp.dense0": ".mlp.fc1",
    "mlp.dense1": ".mlp.fc2",
}


def import_dit(
    path: Path,
    read: Reader,
    process: Mapping[str, Any] | None,
    *,
    heads: int | None = None,
    null_class: str = "last",
    ema: str | None = None,
    key: str | None = None,
) -> Imported:
    """Import a state dict of `DiT`.

    Args:
        path: a `.pt` (read by `read`), `.npz` or `.safetensors` file.
        read: reads a `.pt` file.
        process: see `names.make_model`.
        heads: number of attention heads; None takes that of the published network of the same width.
        null_class: ``"last"``, or ``"none"`` for a network with `class_dropout_prob` 0, whose table has no such row.
        ema: a second file with the moving average.
        key: which network of a file that holds several, see `state_dicts`.

    Raises:
        DuetError: if a file or an option does not fit.
    """
    return _import("DiT", path, read, process, heads, null_class, ema, key)


def import_sit(
    path: Path,
    read: Reader,
    process: Mapping[str, Any] | None,
    *,
    heads: int | None = None,
    null_class: str = "last",
    ema: str | None = None,
    key: str | None = None,
) -> Imported:
    """Import a state dict of `SiT`; arguments and errors as for `import_dit`."""
    return _import("SiT", path, read, process, heads, null_class, ema, key)


def _import(
    kind: str,
    path: Path,
    read: Reader,
    process: Mapping[str, Any] | None,
    heads: int | None,
    null_class: str,
    ema: str | None,
    key: str | None,
) -> Imported:
    what = f"a state dict of {kind}"
    found = choose_state_dicts(read_arrays(path, read), "dit", what, str(path), key)
    spec = read_spec(found.weights, found.source, heads, null_class, discards=kind == "SiT")
    variance = "learned_range" if spec.out_channels == 2 * spec.in_channels else "fixed"
    own = SIT if kind == "SiT" else DDPM
    model, origin = make_model(spec, process, own, variance)
    names = make_name_map(spec, model.program)
    second = None
    if ema is not None:
        second = choose_state_dicts(read_arrays(Path(ema), read), "dit", what, ema, key)
    weights, average = read_both(names, model.program, found, second)
    if process is None:
        origin = f"that of {kind}'s code, since these files do not say it; set process=NAME for another"
    objective = {"label_dropout": 0.1} if spec.num_classes and null_class == "last" else {}
    objective |= {"bound_cdf": "tanh"} if model.variance == "learned_range" else {}
    note = f"{kind}, {spec.depth} blocks of {spec.channels} channels, patches of {spec.patch_size}{found.note}"
    sampler = _sampler(kind, spec)
    return Imported(model, weights, weights if average is None else average, note, origin, sampler, objective)


def _sampler(kind: str, spec: DiTSpec) -> dict[str, Any]:
    """Return the sampler of the script sample.py, with guidance of three channels where they have a null class."""
    if kind == "SiT":
        options: dict[str, Any] = {"name": "sit_sde", "steps": 250}
    else:
        variance = "learned_range" if spec.out_channels == 2 * spec.in_channels else "fixed_large"
        options = {"name": "ddpm", "steps": [250], "last_t": 0, "variance": variance, "clip": None}
    if spec.num_classes and spec.null_class == "last":
        options |= {"guidance_scale": 4.0, "guidance_channels": min(3, spec.in_channels)}
    return options


def read_spec(
    arrays: Arrays, source: str, heads: int | None = None, null_class: str = "last", discards: bool = False
) -> DiTSpec:
    """Return the network of a state dict.

    Args:
        arrays: the state dict.
        source: what errors call it.
        heads: number of attention heads; None takes that of the published network of the same width.
        null_class: see `DiTSpec`.
        discards: whether the second half of the output is cut off, as in SiT.

    Raises:
        DuetError: if it is not such a network, or its heads are unknown.
    """
    if null_class not in ("last", "none"):
        raise one_of("source.null_class", null_class, ("last", "none"))
    shape = partial(shape_of, arrays, source=source, what="a DiT or SiT")
    width, in_channels, patch, _ = shape("x_embedder.proj.weight", 4)
    tokens = shape("pos_embed", 3)[1]
    side = math.isqrt(tokens)
    if side**2 != tokens:
        raise DuetError(f"{source}: pos_embed has {tokens} rows; Duet's DiT needs as many rows of patches as columns")
    if heads is None and width not in _HEADS:
        known = ", ".join(map(str, _HEADS))
        raise DuetError(
            f"source.heads: no value was given; the weights do not determine it for {width} channels (of the published "
            f"networks, which have {known}, it is known), so give the number of attention heads"
        )
    outputs, hidden = shape("final_layer.linear.weight", 2)[0], shape("blocks.0.mlp.fc1.weight", 2)[0]
    channels = outputs // patch**2
    if outputs % patch**2 or channels not in (in_channels, 2 * in_channels):
        raise DuetError(
            f"{source}: final_layer.linear has {outputs} rows; patches of {patch} x {patch} pixels need "
            f"{patch**2 * in_channels}, or {2 * patch**2 * in_channels} with a variance"
        )
    ratio = hidden / width
    return DiTSpec(
        image_size=side * patch,
        in_channels=in_channels,
        out_channels=in_channels if discards else channels,
        num_classes=shape("y_embedder.embedding_table.weight", 2)[0] - (null_class == "last"),
        patch_size=patch,
        channels=width,
        depth=count_numbers(arrays, r"blocks\.(\d+)\."),
        heads=_HEADS[width] if heads is None else heads,
        mlp_ratio=ratio if int(width * ratio) == hidden else (hidden + 0.5) / width,
        null_class=null_class,
        discarded_channels=channels - in_channels if discards else 0,
        qkv_bias="blocks.0.attn.qkv.bias" in arrays,
        embedding_features=shape("t_embedder.mlp.0.weight", 2)[1],
    )


def make_name_map(spec: DiTSpec, program: Program) -> NameMap:
    """Return the name map of a DiT or SiT."""
    modules = {
        "patch.conv": "x_embedder.proj",
        "positions": "pos_embed",
        "embed.dense0": "t_embedder.mlp.0",
        "embed.dense1": "t_embedder.mlp.2",
        "embed.label": "y_embedder.embedding_table",
        "final.modulation": "final_layer.adaLN_modulation.1",
        "final.dense": "final_layer.linear",
        **join_names({f"block.{i}": f"blocks.{i}" for i in range(spec.depth)}, _LEAVES),
    }

    def make_entry(node: Node, parameter: str, module: str) -> Entry:
        if node.name == "positions":
            return Entry((module,), WITH_AN_AXIS)
        return Entry((f"{module}.{parameter}",), SAME)

    return name_map(program, modules, make_entry, "dit")
