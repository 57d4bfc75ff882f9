"""The networks of baofff/U-ViT, from their state dicts, such as nnet_ema.pth.

    patch_embed.proj, pos_embed                             Duet's patch.conv, positions
    time_embed.0, .2; label_emb                             embed.dense0, .dense1; embed.label
    in_blocks.N, mid_block, out_blocks.N                    in.N, mid, out.N
        norm1, attn.qkv, attn.proj, norm2, mlp.fc1, .fc2        norm0, qkv, proj, norm1, dense0, dense1
        skip_linear                                             out.N.skip
    norm, decoder_pred, final_layer                         final.norm, final.dense, final.conv

Names and shapes determine everything except the heads, and whether the last row of the table is "no class". The heads
are those of the published networks of this width, otherwise those of 64 channels. A table of 1001 rows has a row for
"no class", in others every row is a class.

The process is the VP SDE with 999 t for the network, and that of Stable Diffusion with t = 1 .. 1000 for latents
without a last convolution, as the published networks were trained.

Reference: All are Worth Words: A ViT Backbone for Diffusion Models (Bao et al., 2022), https://arxiv.org/abs/2209.12152,
and its code (baofff/U-ViT)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.common.text import pluralize
from diffusion_core.convert.arrays import Reader, read_arrays
from diffusion_core.convert.names import (
    WITH_BATCH,
    Arrays,
    Entry,
    Imported,
    NameMap,
    count_numbers,
    join_names,
    make_model,
    name_map,
    shape_of,
)
from diffusion_core.convert.state_dicts import choose_state_dicts, read_both
from diffusion_core.networks import Node, Program, UViTSpec

__all__ = ["import_uvit", "make_name_map", "read_spec"]

_FORMAT, _WHAT = "uvit", "a state dict of U-ViT"
# Heads of the published networks whose heads do not have 64 channels, by width.
_HEADS = {1152: 16}
_CLASSES = 1000
_BLOCK = {
    "norm0": ".norm1", "qkv": ".attn.qkv", "proj": ".attn.proj", "norm1": ".norm2", "dense0": ".mlp.fc1",
    "dense1": ".mlp.fc2", "skip": ".skip_linear",
}  # fmt: skip
_MODULES = {
    "patch.conv": "patch_embed.proj", "positions": "pos_embed", "embed.dense0": "time_embed.0",
    "embed.dense1": "time_embed.2", "embed.label": "label_emb", "final.norm": "norm", "final.dense": "decoder_pred",
    "final.conv": "final_layer",
}  # fmt: skip
_VP_SDE: Mapping[str, Any] = {"schedule": {"name": "vp_sde"}, "prediction": "eps", "time_scale": 999.0}
_STABLE: Mapping[str, Any] = {
    "schedule": {"name": "scaled_linear", "T": 1000, "beta_start": 0.00085, "beta_end": 0.012},
    "prediction": "eps",
    "time_offset": 1.0,
}


def import_uvit(
    path: Path,
    read: Reader,
    process: Mapping[str, Any] | None,
    *,
    heads: int | None = None,
    null_class: str | None = None,
    ema: str | None = None,
    key: str | None = None,
) -> Imported:
    """Import a state dict of U-ViT.

    Args:
        path: a `.pth` (read by `read`), `.npz` or `.safetensors` file, such as nnet.pth.
        read: reads a `.pth` file.
        process: see `names.make_model`.
        heads: heads of every attention; None for those of the published networks.
        null_class: ``"last"`` if the last row of the table of classes is "no class", ``"none"`` if it is a class; None
            is ``"last"`` for 1001 rows.
        ema: a second file with the moving average, such as nnet_ema.pth.
        key: which network of a file that holds several, see `state_dicts`.

    Raises:
        DuetError: if a file or an option does not fit.
    """
    found = choose_state_dicts(read_arrays(path, read), _FORMAT, _WHAT, str(path), key)
    spec = read_spec(found.weights, found.source, heads, null_class)
    own = _VP_SDE if spec.in_channels == 3 or spec.final_conv else _STABLE
    model, process_source = make_model(spec, process, own)
    second = None
    if ema is not None:
        second = choose_state_dicts(read_arrays(Path(ema), read), _FORMAT, _WHAT, ema, key)
    weights, average = read_both(make_name_map(spec, model.program), model.program, found, second)
    note = (
        f"a U-ViT of {spec.depth + 1} blocks with {pluralize(spec.heads, 'head')}{_describe_classes(spec)}{found.note}"
    )
    objective = {"label_dropout": 0.1} if spec.num_classes and spec.null_class == "last" and process is None else {}
    return Imported(model, weights, weights if average is None else average, note, process_source, None, objective)


def _describe_classes(spec: UViTSpec) -> str:
    if not spec.num_classes:
        return ""
    without = 'and a row for "no class"' if spec.null_class == "last" else 'and no row for "no class"'
    return f", {spec.num_classes} classes {without} (source.null_class)"


def read_spec(arrays: Arrays, source: str, heads: int | None = None, null_class: str | None = None) -> UViTSpec:
    """Return the network of a state dict.

    Args:
        arrays: the state dict.
        source: what errors call it.
        heads: see `import_uvit`.
        null_class: see `import_uvit`.

    Raises:
        DuetError: if it is not one of these networks.
    """

    def shape(name: str, axes: int) -> tuple[int, ...]:
        return shape_of(arrays, name, axes, source, _WHAT)

    if "context_embed.weight" in arrays:
        raise DuetError(f"{source}: this U-ViT reads tokens of text (context_embed), which Duet's does not have")
    width, in_channels, patch, _ = shape("patch_embed.proj.weight", 4)
    rows = shape("label_emb.weight", 2)[0] if "label_emb.weight" in arrays else 0
    tokens = shape("pos_embed", 3)[1] - 1 - bool(rows)
    side = round(max(tokens, 0) ** 0.5)
    outputs, hidden = shape("decoder_pred.weight", 2)[0], shape("mid_block.mlp.fc1.weight", 2)[0]
    ratio = hidden / width  # times the width it may round to just below the hidden width
    if side < 1 or side**2 != tokens or outputs % patch**2:
        raise DuetError(
            f"{source}: pos_embed has {tokens} places of patches and decoder_pred {outputs} rows; this is not {_WHAT}, "
            f"whose patches form a square"
        )
    if null_class is not None and null_class not in ("last", "none"):
        raise one_of("source.null_class", null_class, ("last", "none"))
    if null_class is not None and not rows:
        raise DuetError(f"source.null_class: {null_class} was given, but {source} has no classes; leave it out")
    if null_class is None:
        null_class = "last" if rows == _CLASSES + 1 else "none"
    if heads is None:
        heads = _HEADS.get(width, width // 64 if width % 64 == 0 else 0)
    if not heads:
        raise DuetError(f"{source}: {width} channels are no multiple of 64; give the number of heads as source.heads")
    return UViTSpec(
        image_size=side * patch,
        in_channels=in_channels,
        out_channels=outputs // patch**2,
        num_classes=rows - (null_class == "last" and rows > 0),
        null_class=null_class if rows else "last",
        patch_size=patch,
        channels=width,
        depth=2 * count_numbers(arrays, r"in_blocks\.(\d+)\."),
        heads=heads,
        mlp_ratio=ratio if int(width * ratio) == hidden else (hidden + 0.5) / width,
        qkv_bias="mid_block.attn.qkv.bias" in arrays,
        time_mlp="time_embed.0.weight" in arrays,
        skips="out_blocks.0.skip_linear.weight" in arrays,
        final_conv="final_layer.weight" in arrays,
    )


def make_name_map(spec: UViTSpec, program: Program) -> NameMap:
    """Return the name map of a U-ViT."""
    units = {"mid": "mid_block"}
    for i in range(spec.depth // 2):
        units |= {f"in.{i}": f"in_blocks.{i}", f"out.{i}": f"out_blocks.{i}"}

    def make_entry(node: Node, parameter: str, module: str) -> Entry:
        return Entry((module,), WITH_BATCH) if parameter == "table" else Entry((f"{module}.{parameter}",))

    return name_map(program, _MODULES | join_names(units, _BLOCK), make_entry, _FORMAT)
