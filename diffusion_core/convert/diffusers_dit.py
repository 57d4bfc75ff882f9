"""`DiTTransformer2DModel` of diffusers: its configuration and its names, read and written.

It is not quite the function of the original DiT. Its frequencies of the time are 10000^(-i/127), the original's
10000^(-i/128), and the norm before an MLP has the epsilon `norm_eps`, 1e-5 by default, the original's is 1e-6; with
`embedding_divisor` and `mlp_norm_eps` Duet has both. Every block keeps embedders of the time and the class of its own,
and the last layer reads those of the first block. In a converted DiT all of them are equal, and are read as one; in a
network that diffusers has trained they differ (`embedders: per_block`). The table of positions is not in the file.

    sample_size, patch_size                 image_size, patch_size
    num_attention_heads, attention_head_dim heads, channels / heads
    num_layers, num_embeds_ada_norm         depth, num_classes; the table has a row more, which is "no class"
    attention_bias, norm_eps                qkv_bias, mlp_norm_eps
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.convert.names import SAME, Arrays, Entry, Layout, NameMap, join_names, name_map, qkv
from diffusion_core.networks import DiTSpec, Node, Program
from diffusion_core.networks.blocks import Attention
from diffusion_core.networks.blocks.tokens import sine_table
from diffusion_core.networks.weights import Weights

__all__ = ["CLASSES", "check_table", "has_equal_embedders", "make_config", "make_name_map", "read_spec"]

# The second is its name until 2024, when one class was for all transformers.
CLASSES = ("DiTTransformer2DModel", "Transformer2DModel")
_DEFAULTS: dict[str, Any] = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": None,
    "num_layers": 28,
    "attention_bias": True,
    "sample_size": 32,
    "patch_size": 2,
    "num_embeds_ada_norm": 1000,
    "norm_eps": 1e-5,
}
# The entries that a DiT of Duet cannot express, with the only allowed values; the first one is written.
_FIXED: dict[str, tuple[Any, ...]] = {
    "dropout": (0.0,),
    "activation_fn": ("gelu-approximate",),
    "norm_type": ("ada_norm_zero",),
    "norm_elementwise_affine": (False,),
}
# Entries without effect on a DiT: of its own class, and of that for all transformers.
_IGNORED = (
    "norm_num_groups",
    "upcast_attention",
    "use_linear_projection",
    "num_vector_embeds",
    "double_self_attention",
)
# Entries of the class for all transformers that a DiT has at these values.
_FORMER: dict[str, tuple[Any, ...]] = {
    "cross_attention_dim": (None,),
    "only_cross_attention": (False,),
    "caption_channels": (None,),
    "attention_type": ("default",),
    "interpolation_scale": (None, 1, 1.0),
    "use_additional_conditions": (None, False),
}
_EMBEDDER = ("timestep_embedder.linear_1", "timestep_embedder.linear_2", "class_embedder.embedding_table")
_LEAVES = {
    "modulation": ".norm1.linear",
    "embed.dense0": f".norm1.emb.{_EMBEDDER[0]}",
    "embed.dense1": f".norm1.emb.{_EMBEDDER[1]}",
    "embed.label": f".norm1.emb.{_EMBEDDER[2]}",
    "attn.qkv": ".attn1.to_q",
    "attn.proj": ".attn1.to_out.0",
    "mlp.dense0": ".ff.net.0.proj",
    "mlp.dense1": ".ff.net.2",
}


def read_spec(config: Mapping[str, Any], source: str, image_size: int | None = None) -> DiTSpec:
    """Return the network of a configuration, with embedders of each block; see `has_equal_embedders`.

    Raises:
        DuetError: names the first entry that a DiT of Duet cannot express.
    """
    known = {**_DEFAULTS, **_FIXED, **_FORMER, **dict.fromkeys(_IGNORED)}
    for name in config:
        if name not in known and name != "_class_name":
            raise one_of(f"{source}: entry", name, sorted(known))
    for name, allowed in (_FIXED | _FORMER).items():
        if config.get(name, allowed[0]) not in allowed:
            raise DuetError(
                f"{source}: {name}: {config[name]!r} was given; Duet's DiT takes {' or '.join(map(repr, allowed))}"
            )
    config = _DEFAULTS | dict(config)
    size = config["sample_size"] if image_size is None else image_size
    counts = {name: config[name] for name in _DEFAULTS if name not in ("out_channels", "attention_bias", "norm_eps")}
    counts["sample_size"] = size
    for name, value in counts.items():
        if type(value) is not int or value < 1:
            hint = "; set source.image_size=PIXELS" if name == "sample_size" else ""
            raise DuetError(f"{source}: {name}: {value!r} was given; it must be a whole number{hint}")
    return DiTSpec(
        image_size=size,
        in_channels=config["in_channels"],
        out_channels=config["out_channels"] or config["in_channels"],
        num_classes=config["num_embeds_ada_norm"],
        patch_size=config["patch_size"],
        channels=config["num_attention_heads"] * config["attention_head_dim"],
        depth=config["num_layers"],
        heads=config["num_attention_heads"],
        qkv_bias=bool(config["attention_bias"]),
        embedders="per_block",
        embedding_divisor="half_minus_one",
        mlp_norm_eps=config["norm_eps"],
    )


def has_equal_embedders(arrays: Arrays) -> bool:
    """Return whether the embedders of all blocks are the same bits, as in a converted DiT."""
    first = {name: array for name, array in arrays.items() if name.startswith("transformer_blocks.0.norm1.emb.")}
    return all(
        array.shape == first[same].shape and np.array_equal(array, first[same])
        for name, array in arrays.items()
        if (same := re.sub(r"^transformer_blocks\.\d+\.norm1\.emb\.", "transformer_blocks.0.norm1.emb.", name)) in first
    )


def make_config(spec: DiTSpec) -> dict[str, Any]:
    """Return the configuration of a `DiTTransformer2DModel`; the inverse of `read_spec`.

    Raises:
        DuetError: names the first option of the network that diffusers does not have.
    """
    needed = {
        "embedding_divisor": "half_minus_one",
        "embedding_features": 256,
        "mlp_ratio": 4.0,
        "norm_eps": 1e-6,
        "null_class": "last",
        "discarded_channels": 0,
        "second_time": False,
        "self_conditioning": False,
    }
    for name, value in needed.items():
        if (given := getattr(spec, name)) != value:
            raise DuetError(
                f"model.{name}: {given} was given; a DiTTransformer2DModel has {value}; target=state_dict "
                "target.project=dit writes the names of the original"
            )
    if not spec.num_classes:
        raise DuetError("model.num_classes: 0 was given; a DiTTransformer2DModel needs classes")
    return {
        "_class_name": CLASSES[0],
        **{name: allowed[0] for name, allowed in _FIXED.items()},
        "num_attention_heads": spec.heads,
        "attention_head_dim": spec.channels // spec.heads,
        "in_channels": spec.in_channels,
        "out_channels": spec.out_channels,
        "num_layers": spec.depth,
        "attention_bias": spec.qkv_bias,
        "sample_size": spec.image_size,
        "patch_size": spec.patch_size,
        "num_embeds_ada_norm": spec.num_classes,
        "norm_eps": spec.mlp_norm_eps,
    }


def check_table(spec: DiTSpec, weights: Weights) -> None:
    """Raise a `DuetError` if the table of positions is not the fixed one, the only one that diffusers has."""
    table = np.asarray(weights["positions.table"], np.float32)
    if not np.array_equal(table, np.float32(sine_table(spec.side, spec.side, spec.channels))):
        raise DuetError(
            "positions.table: it differs from the fixed table of sines and cosines, the only one that a "
            "DiTTransformer2DModel has; use target=torch or target=state_dict"
        )


def make_name_map(spec: DiTSpec, program: Program) -> NameMap:
    """Return the name map of a `DiTTransformer2DModel`."""
    blocks = {f"block.{i}": f"transformer_blocks.{i}" for i in range(spec.depth)}
    modules = {
        "patch.conv": "pos_embed.proj",
        "positions": "",
        "final.modulation": "proj_out_1",
        "final.dense": "proj_out_2",
        **dict(zip(("embed.dense0", "embed.dense1", "embed.label"), _EMBEDDER, strict=True)),
        **join_names(blocks, _LEAVES),
    }
    table = sine_table(spec.side, spec.side, spec.channels).astype(np.float32)
    fixed = Layout(lambda: table, lambda a: ())
    shared = Layout(_one_of_equal, lambda a: (a,) * spec.depth)

    def make_entry(node: Node, parameter: str, module: str) -> Entry:
        if node.name == "positions":
            return Entry((), fixed)
        if node.name.startswith("embed."):
            return Entry(tuple(f"{block}.norm1.emb.{module}.{parameter}" for block in blocks.values()), shared)
        if node.name.endswith(".qkv"):
            names = (module.replace("to_q", leaf) for leaf in ("to_q", "to_k", "to_v"))
            layout = qkv(SAME, Attention(spec.channels, spec.heads))
            return Entry(tuple(f"{name}.{parameter}" for name in names), layout)
        return Entry((f"{module}.{parameter}",), SAME)

    return name_map(program, modules, make_entry, "diffusers")


def _one_of_equal(*copies: NDArray) -> NDArray:
    if any(not np.array_equal(copies[0], other) for other in copies[1:]):
        raise DuetError(
            "transformer_blocks: the embedders of the time or the class differ from block to block in this file, but "
            "not in the one next to it; import it alone"
        )
    return copies[0]
