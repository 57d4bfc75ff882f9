"""The networks of LTH14/JiT, from their state dicts, such as checkpoint-last.pth.

    t_embedder.mlp.0, .2; y_embedder.embedding_table        Duet's embed.dense0, .dense1; embed.label
    x_embedder.proj1, .proj2; pos_embed                     patch.conv0, .conv1; positions
    in_context_posemb                                       in_context.positions
    blocks.N: adaLN_modulation.1                            block.N: modulation
        norm1, attn.qkv, .q_norm, .k_norm, .proj                attn.norm, .qkv, .qk_norm, .proj
        norm2, mlp.w12, .w3                                     mlp.norm, .dense0, .dense1
    final_layer: norm_final, adaLN_modulation.1, linear     final: norm, modulation, dense

Names and shapes determine everything except the block before which the class tokens are added; in the published
networks it is block number depth / 3. A training checkpoint holds the weights and two moving averages, of which the
authors' sampler uses the first; that one is imported.

Reference: Back to Basics: Let Denoising Generative Models Denoise (Li & He, 2025), https://arxiv.org/abs/2511.13720,
and its code (LTH14/JiT)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion_core.common.errors import DuetError
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
from diffusion_core.networks import JiTSpec, Node, Program

__all__ = ["import_jit", "make_name_map", "read_spec"]

_FORMAT, _WHAT = "jit", "a state dict of JiT"
_SECOND_AVERAGE = "model_ema2."
_BLOCK = {
    "modulation": ".adaLN_modulation.1", "attn.norm": ".norm1", "attn.qkv": ".attn.qkv", "attn.qk_norm": ".attn.",
    "attn.proj": ".attn.proj", "mlp.norm": ".norm2", "mlp.dense0": ".mlp.w12", "mlp.dense1": ".mlp.w3",
}  # fmt: skip
_MODULES = {
    "embed.dense0": "t_embedder.mlp.0", "embed.dense1": "t_embedder.mlp.2", "embed.label": "y_embedder.embedding_table",
    "patch.conv0": "x_embedder.proj1", "patch.conv1": "x_embedder.proj2", "positions": "pos_embed",
    "in_context.positions": "in_context_posemb", "final.norm": "final_layer.norm_final",
    "final.modulation": "final_layer.adaLN_modulation.1", "final.dense": "final_layer.linear",
}  # fmt: skip
_OBJECTIVE: Mapping[str, Any] = {
    "weighting": {"name": "velocity"},
    "timestep_sampling": {"name": "logit_normal", "mean": 0.8, "std": 0.8},
    "label_dropout": 0.1,
}
_SAMPLER: Mapping[str, Any] = {"name": "flow_heun", "steps": 50, "shift": 1.0, "spacing": "trailing", "clip": None}


def import_jit(
    path: Path,
    read: Reader,
    process: Mapping[str, Any] | None,
    *,
    context_start: int | None = None,
    noise_scale: float | None = None,
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
    ema: str | None = None,
    key: str | None = None,
) -> Imported:
    """Import a state dict of JiT.

    Args:
        path: a `.pth` (read by `read`), `.npz` or `.safetensors` file.
        read: reads a `.pth` file.
        process: see `names.make_model`.
        context_start: the block before which the class tokens are added; None is a third of the depth.
        noise_scale: standard deviation of the starting noise; None is 2 for images of 512 pixels, else 1.
        dropout: `--proj_dropout` of the training.
        attention_dropout: `--attn_dropout` of the training.
        ema: a second file with the moving average.
        key: which network to read from a file that holds several, as in model_ema2; see `state_dicts`.

    Raises:
        DuetError: if a file or an option does not fit.
    """
    arrays = read_arrays(path, read)
    skipped = key is None and any(name.startswith(_SECOND_AVERAGE) for name in arrays)
    if skipped:
        arrays = {name: array for name, array in arrays.items() if not name.startswith(_SECOND_AVERAGE)}
    found = choose_state_dicts(arrays, _FORMAT, _WHAT, str(path), key)
    spec = read_spec(found.weights, found.source, context_start, dropout, attention_dropout)
    if noise_scale is None:
        noise_scale = 2.0 if spec.image_size == 512 else 1.0
    own = {
        "schedule": {"name": "flow_continuous", "t_min": 1e-12, "noise_scale": noise_scale},
        "prediction": "x0", "t_floor": 0.05, "time_scale": -1.0, "time_offset": 1.0,
    }  # fmt: skip
    model, process_source = make_model(spec, process, own)
    second = None
    if ema is not None:
        second = choose_state_dicts(read_arrays(Path(ema), read), _FORMAT, _WHAT, ema, key)
    weights, average = read_both(make_name_map(spec, model.program), model.program, found, second)
    rest = "; a second average is left out, source.key=model_ema2 reads it" if skipped else ""
    note = f"a JiT of {spec.depth} blocks, patches of {spec.patch_size} pixels{found.note}{rest}"
    sampler, objective = (_SAMPLER, dict(_OBJECTIVE)) if process is None else (None, {})
    if objective and not spec.num_classes:
        del objective["label_dropout"]
    average = weights if average is None else average
    return Imported(model, weights, average, note, process_source, sampler, objective)


def read_spec(
    arrays: Arrays,
    source: str,
    context_start: int | None = None,
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
) -> JiTSpec:
    """Return the network of a state dict.

    Args:
        arrays: the state dict.
        source: what errors call it.
        context_start: see `import_jit`.
        dropout: see `import_jit`.
        attention_dropout: see `import_jit`.

    Raises:
        DuetError: if it is not one of these networks.
    """

    def shape(name: str, axes: int) -> tuple[int, ...]:
        return shape_of(arrays, name, axes, source, _WHAT)

    bottleneck, in_channels, patch, _ = shape("x_embedder.proj1.weight", 4)
    _, tokens, width = shape("pos_embed", 3)
    side, outputs = round(tokens**0.5), shape("final_layer.linear.weight", 2)[0]
    size = shape("blocks.0.attn.q_norm.weight", 1)[0]
    if side**2 != tokens or outputs % patch**2 or width % size:
        raise DuetError(
            f"{source}: pos_embed has {tokens} places and final_layer.linear {outputs} rows; this is not {_WHAT}, "
            f"whose patches form a square"
        )
    depth = count_numbers(arrays, r"blocks\.(\d+)\.")
    # The hidden width is 2/3 of this, rounded down; the half keeps the product of ratio and width above it.
    whole = -(-3 * shape("blocks.0.mlp.w3.weight", 2)[1] // 2)
    return JiTSpec(
        image_size=side * patch,
        in_channels=in_channels,
        out_channels=outputs // patch**2,
        num_classes=shape("y_embedder.embedding_table.weight", 2)[0] - 1,
        patch_size=patch,
        bottleneck=bottleneck,
        channels=width,
        depth=depth,
        heads=width // size,
        mlp_ratio=4.0 if int(4 * width * 2 / 3) == whole * 2 // 3 else (whole + 0.5) / width,
        context=shape("in_context_posemb", 3)[1] if "in_context_posemb" in arrays else 0,
        context_start=depth // 3 if context_start is None else context_start,
        dropout=dropout,
        attention_dropout=attention_dropout,
    )


def make_name_map(spec: JiTSpec, program: Program) -> NameMap:
    """Return the name map of a JiT."""
    modules = _MODULES | join_names({f"block.{i}": f"blocks.{i}" for i in range(spec.depth)}, _BLOCK)

    def make_entry(node: Node, parameter: str, module: str) -> Entry:
        if parameter == "table":
            return Entry((module,), WITH_BATCH)
        if parameter in ("query", "key"):
            return Entry((f"{module}{parameter[0]}_norm.weight",))
        return Entry((f"{module}.{parameter}",))

    return name_map(program, modules, make_entry, _FORMAT)
