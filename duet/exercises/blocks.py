"""Exercises about blocks of a network: self-attention, and a residual block.

Weights have the axes of PyTorch: a dense layer y = x W^T + b has W with shape (outputs, inputs). Images are b h w c.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from diffusion_core.backend.reference import block_function
from diffusion_core.networks import blocks as core
from duet.exercises.definition import Solution, add, distance, normal
from duet.exercises.layers import normalise

Array = NDArray[np.float64]


def self_attention(x, w_query, w_key, w_value, w_out, heads):
    """Return the values of multi-head self-attention over tokens, with the shape of x.

        q = x w_query^T,   k = x w_key^T,   v = x w_value^T              each split into heads of d = C/heads channels
        a = softmax(q k^T / sqrt(d)), over the keys, for each head
        y = [a v of all heads, joined] w_out^T

    x has shape (B, N, C): N tokens of C channels. The weights have shape (C, C), (outputs, inputs), without bias. Head
    i has the channels i d .. (i + 1) d - 1. There is no residual connection.
    """
    qkv = np.concatenate([x @ w.T for w in (w_query, w_key, w_value)], axis=-1)[:, None]
    values = block_function("attention", core.Attention(x.shape[-1], heads, "qkv"), {})(qkv)
    return values[:, 0] @ w_out.T


def _softmax(a: Array, axis: int) -> Array:
    e = np.exp(a - a.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def _attend(
    scale: Callable[[int, int], float] = lambda d, heads: np.sqrt(d),
    axis: int = -1,
    project: Callable[[Array, Array], Array] = lambda x, w: x @ w.T,
    out: Callable[[Array, Array], Array] = lambda y, w: y @ w.T,
    split: str = "n d",
    join: bool = True,
    one_head: bool = False,
    query_by_key: bool = True,
    values: Callable[[Array, Array], Array] = lambda x, v: v,
    after: Callable[[Array, Array], Array] = lambda x, y: y,
    weigh: Callable[[Array, int], Array] = _softmax,
) -> Solution:
    """Return attention with one thing changed."""

    def solution(x, w_query, w_key, w_value, w_out, heads):
        batch, tokens, channels = x.shape
        size, heads_used = channels // heads, 1 if one_head else heads

        def parts(a: Array) -> Array:
            if split == "n d":
                return a.reshape(batch, tokens, heads_used, -1).transpose(0, 2, 1, 3)
            if split == "d n":
                return a.reshape(batch, tokens, -1, heads_used).transpose(0, 3, 1, 2)
            return a.reshape(batch, heads_used, tokens, -1)

        q, k, v = (parts(project(x, w)) for w in (w_query, w_key, w_value))
        q, k = (q, k) if query_by_key else (k, q)
        mixed = weigh(q @ k.swapaxes(-1, -2) / scale(size, heads), axis) @ values(parts(x), v)
        if split == "d n":
            y = mixed.transpose(0, 2, 3, 1).reshape(x.shape)
        else:
            y = (mixed.transpose(0, 2, 1, 3) if join and split == "n d" else mixed).reshape(x.shape)
        return after(x, out(y, w_out))

    return solution


def _square(name: str, C: int) -> Array:
    return normal(f"attention {name}", C, C) / 2


def _attention_case(batch: int, tokens: int, C: int, heads: int) -> dict:
    weights = {name: _square(name, C) for name in ("w_query", "w_key", "w_value", "w_out")}
    return {"x": normal("attention x", batch, tokens, C), **weights, "heads": heads}


_ATTENTION = _attention_case(2, 5, 4, 2)
_ORDER = np.array([3, 0, 4, 1, 2])

add(
    self_attention,
    title="Multi-head self-attention",
    source="Vaswani et al., 2017, section 3.2, https://arxiv.org/abs/1706.03762",
    cases={
        "2 batches of 6 tokens with 6 channels in 2 heads": _attention_case(2, 6, 6, 2),
        "1 batch of 3 tokens with 4 channels in 1 head": _attention_case(1, 3, 4, 1),
        "2 batches of 5 tokens with 8 channels in 4 heads": _attention_case(2, 5, 8, 4),
    },
    laws={
        "Tokens in another order give the values in that order.": lambda f: distance(
            f(_ATTENTION["x"][:, _ORDER], *list(_ATTENTION.values())[1:]), f(*_ATTENTION.values())[:, _ORDER]
        ),
        "Equal tokens are only projected: the attention weights add up to 1.": lambda f: distance(
            f(np.repeat(_ATTENTION["x"][:, :1], 5, axis=1), *list(_ATTENTION.values())[1:]),
            np.repeat(_ATTENTION["x"][:, :1], 5, axis=1) @ _ATTENTION["w_value"].T @ _ATTENTION["w_out"].T,
        ),
    },
    mistakes={
        "weights_transposed": (
            "The weights are transposed: they have shape (outputs, inputs), so a projection is x w^T.",
            _attend(project=lambda x, w: x @ w, out=lambda y, w: y @ w),
        ),
        "projections_transposed": (
            "w_query, w_key and w_value are transposed: a projection is x w^T.",
            _attend(project=lambda x, w: x @ w),
        ),
        "w_out_transposed": ("w_out is transposed: the last line is y w_out^T.", _attend(out=lambda y, w: y @ w)),
        "w_out_forgotten": ("w_out is not applied.", _attend(out=lambda y, w: y)),
        "scale_forgotten": ("q k^T is not divided by sqrt(d).", _attend(scale=lambda d, heads: 1.0)),
        "scale_root_forgotten": ("q k^T is divided by d; it must be sqrt(d).", _attend(scale=lambda d, heads: d)),
        "scale_of_all_channels": (
            "q k^T is divided by sqrt(C); it must be sqrt(d), the channels of one head.",
            _attend(scale=lambda d, heads: np.sqrt(d * heads)),
        ),
        "multiplied_by_scale": (
            "q k^T is multiplied by sqrt(d); it must be divided by it.",
            _attend(scale=lambda d, heads: 1 / np.sqrt(d)),
        ),
        "softmax_forgotten": (
            "There is no softmax: the values are weighted with the products themselves.",
            _attend(weigh=lambda a, axis: a),
        ),
        "softmax_over_queries": (
            "The softmax is over the queries; the weights of one query over all keys must add up to 1.",
            _attend(axis=-2),
        ),
        "softmax_over_heads": (
            "The softmax is over the heads; it must be over the keys, the last axis of q k^T.",
            _attend(axis=1),
        ),
        "query_and_key_exchanged": (
            "Queries and keys are exchanged: the rows of q k^T belong to the queries.",
            _attend(query_by_key=False),
        ),
        "values_not_projected": (
            "w_value is not applied: the tokens themselves are averaged.",
            _attend(values=lambda x, v: x),
        ),
        "one_head": (
            "All channels are one head.",
            _attend(one_head=True),
            _attend(one_head=True, scale=lambda d, heads: np.sqrt(d * heads)),
        ),
        "heads_interleaved": (
            "The channels of a head are not neighbours: reshape the channels to (heads, d), in this order.",
            _attend(split="d n"),
        ),
        "heads_not_transposed": (
            "The array is reshaped to (B, heads, N, d) at once, which mixes tokens with channels: reshape to (B, N, "
            "heads, d) and exchange two axes.",
            _attend(split="flat"),
        ),
        "heads_not_joined": (
            "The heads are joined by a reshape of (B, heads, N, d), which mixes tokens with channels: exchange heads "
            "and N first.",
            _attend(join=False),
        ),
        "residual_added": ("x is added; the exercise has no residual connection.", _attend(after=lambda x, y: x + y)),
    },
)


def residual_block(x, embedding, p, groups, eps):
    """Return images after a residual block with a time embedding, with the shape of x.

        h = dense1(silu(norm1(x)))
        h = h + dense_t(silu(embedding)), the same for all pixels
        h = dense2(silu(norm2(h)))
        y = x + h

    x is a batch of images with C channels, and embedding has shape (B, E). p is a dict: norm1.weight, norm1.bias,
    norm2.weight and norm2.bias with shape (C,); dense1.weight and dense2.weight with shape (C, C), dense_t.weight with
    shape (C, E), all (outputs, inputs); and the biases dense1.bias, dense2.bias and dense_t.bias with shape (C,). A
    dense layer, y = x W^T + b, acts on the channels of every pixel (a 1 x 1 convolution). norm is group normalisation
    with these groups and eps, see the exercise group_norm, and silu(x) = x / (1 + exp(-x)).
    """
    C, E = x.shape[-1], embedding.shape[-1]
    kinds = {
        "norm1": core.GroupNorm(C, groups, eps),
        "norm2": core.GroupNorm(C, groups, eps),
        "dense1": core.Linear(C, C, True, 1.0),
        "dense2": core.Linear(C, C, True, 1.0),
        "dense_t": core.Linear(E, C, True, 1.0),
    }
    layer = {name: block_function(name, block, p) for name, block in kinds.items()}
    silu = block_function("silu", core.SiLU(), {})
    h = layer["dense1"](silu(layer["norm1"](x))) + layer["dense_t"](silu(embedding))[:, None, None, :]
    return x + layer["dense2"](silu(layer["norm2"](h)))


def _silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def _block(
    dense: Callable[[Array, Array, Array], Array] = lambda x, w, b: x @ w.T + b,
    activation: Callable[[Array], Array] = _silu,
    first: Callable[..., Array] = lambda x, norm, act: act(norm(x, "norm1")),
    second: Callable[..., Array] = lambda h, norm, act: act(norm(h, "norm2")),
    time: Callable[..., Array] = lambda e, dense_t, act: dense_t(act(e)),
    early: bool = False,
    late: bool = False,
    skip: Callable[[Array, Array], Array] = lambda x, h: x + h,
) -> Solution:
    """Return a block with one thing changed."""

    def solution(x, embedding, p: Mapping[str, Array], groups, eps):
        def norm(x: Array, name: str) -> Array:
            return normalise()(x, p[f"{name}.weight"], p[f"{name}.bias"], groups, eps)

        def layer(name: str) -> Callable[[Array], Array]:
            return lambda x: dense(x, p[f"{name}.weight"], p[f"{name}.bias"])

        t = time(embedding, layer("dense_t"), activation)
        t = 0.0 if np.ndim(t) == 0 else t[:, None, None, :]
        h = layer("dense1")(first(x + t if early else x, norm, activation))
        h = h if early or late else h + t
        h = second(h, norm, activation)
        return skip(x, layer("dense2")(h + t if late else h))

    return solution


def _p(C: int, E: int) -> dict[str, Array]:
    p = {}
    for name in ("norm1", "norm2"):
        p[f"{name}.weight"], p[f"{name}.bias"] = 1 + 0.3 * normal(f"{name} w", C), normal(f"{name} b", C)
    for name, inputs in (("dense1", C), ("dense2", C), ("dense_t", E)):
        p[f"{name}.weight"], p[f"{name}.bias"] = normal(f"{name} w", C, inputs) / 2, normal(f"{name} b", C)
    return p


def _block_case(shape: tuple[int, ...], E: int, groups: int) -> dict:
    x, embedding = normal(f"block {shape}", *shape), normal(f"block embedding {E}", shape[0], E)
    return {"x": x, "embedding": embedding, "p": _p(shape[-1], E), "groups": groups, "eps": 0.1}


_BLOCK = _block_case((2, 2, 3, 4), 4, 2)
_SILENT = {name: 0 * value if name.startswith("dense2") else value for name, value in _BLOCK["p"].items()}

add(
    residual_block,
    title="A residual block with a time embedding",
    source="Ho et al., 2020, appendix B, https://arxiv.org/abs/2006.11239, with 1 x 1 convolutions",
    cases={
        "2 images of 3 x 3 pixels with 4 channels, E = 4": _block_case((2, 3, 3, 4), 4, 2),
        "3 images of 2 x 1 pixels with 6 channels, E = 5": _block_case((3, 2, 1, 6), 5, 3),
    },
    images=("x",),
    laws={
        "If the last layer is 0, the block returns x.": lambda f: distance(
            f(_BLOCK["x"], _BLOCK["embedding"], _SILENT, 2, 0.1), _BLOCK["x"]
        ),
        "An image does not depend on the others, nor on their embeddings.": lambda f: distance(
            f(*_BLOCK.values())[1:], f(_BLOCK["x"][1:], _BLOCK["embedding"][1:], _BLOCK["p"], 2, 0.1)
        ),
    },
    mistakes={
        "skip_forgotten": (
            "x is not added at the end: that is what makes the block residual.",
            _block(skip=lambda x, h: h),
        ),
        "skip_subtracted": ("x and h are subtracted; they must be added.", _block(skip=lambda x, h: x - h)),
        "skip_scaled": (
            "The sum is divided by sqrt(2), as in NCSN++; here it is x + h.",
            _block(skip=lambda x, h: (x + h) / np.sqrt(2)),
        ),
        "weights_transposed": (
            "The weights of the dense layers are transposed: they have shape (outputs, inputs), so y = x W^T + b.",
            _block(dense=lambda x, w, b: x @ w + b),
        ),
        "biases_forgotten": ("The biases of the dense layers are not added.", _block(dense=lambda x, w, b: x @ w.T)),
        "relu": (
            "The activation is ReLU; it must be SiLU, x / (1 + exp(-x)).",
            _block(activation=lambda x: np.maximum(x, 0)),
        ),
        "sigmoid": (
            "The activation is the sigmoid; SiLU is x times the sigmoid.",
            _block(activation=lambda x: 1 / (1 + np.exp(-x))),
        ),
        "silu_before_norm": (
            "The activation comes before the normalisation; it must come after.",
            _block(first=lambda x, norm, act: norm(act(x), "norm1"), second=lambda h, norm, act: norm(act(h), "norm2")),
        ),
        "first_activation_forgotten": (
            "There is no activation after norm1.",
            _block(first=lambda x, norm, act: norm(x, "norm1")),
        ),
        "second_activation_forgotten": (
            "There is no activation after norm2.",
            _block(second=lambda h, norm, act: norm(h, "norm2")),
        ),
        "norm1_forgotten": ("norm1 is missing.", _block(first=lambda x, norm, act: act(x))),
        "norm2_forgotten": ("norm2 is missing.", _block(second=lambda h, norm, act: act(h))),
        "norm1_twice": ("norm1 is used in place of norm2.", _block(second=lambda h, norm, act: act(norm(h, "norm1")))),
        "embedding_activation_forgotten": (
            "The activation of the embedding is missing: dense_t(silu(embedding)).",
            _block(time=lambda e, dense, act: dense(e)),
        ),
        "embedding_activation_after_dense": (
            "The activation comes after dense_t; it must come before: dense_t(silu(embedding)).",
            _block(time=lambda e, dense, act: act(dense(e))),
        ),
        "one_embedding_for_all": (
            "The embedding of the first image is used for all; every image has its own.",
            _block(time=lambda e, dense, act: dense(act(e[:1]))),
        ),
        "embedding_forgotten": ("The embedding is not used.", _block(time=lambda e, dense, act: 0.0)),
        "embedding_too_early": (
            "The embedding is added to x before norm1; it must be added after dense1.",
            _block(early=True),
        ),
        "embedding_too_late": (
            "The embedding is added before dense2; it must be added before norm2.",
            _block(late=True),
        ),
    },
)
