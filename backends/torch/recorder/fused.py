"""PyTorch's norms, attention, dropout and losses in the vocabulary of `duet diff`."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from backends.torch.recorder.native import Native, Unknown, translates

__all__: list[str] = []


def _present(native: Native, names: dict[str, str]) -> tuple[list[Tensor], list[str]]:
    """Return the tensors among arguments that may be None, and what the vocabulary calls them."""
    found = [(native[name], word) for name, word in names.items() if native.get(name) is not None]
    return [tensor for tensor, _ in found], [word for _, word in found]


@translates(
    "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm",
    "_batch_norm_with_update", "_batch_norm_no_update", "miopen_batch_norm",
)  # fmt: skip
def _batch_norm(native: Native) -> None:
    training = bool(native.get("training", native.name == "_batch_norm_with_update"))
    inputs, has = _present(native, {"weight": "gamma", "bias": "beta"})
    if not training:
        more, words = _present(native, {"running_mean": "mean", "running_var": "variance"})
        inputs, has = inputs + more, has + words
    native.give(
        "batch_norm",
        [native.x, *inputs],
        epsilon=float(native.get("eps", native.get("epsilon"))),
        axis=1,
        training=training,
        momentum=float(native.get("momentum", native.get("exponential_average_factor", 0.1))),
        has=["x", *has],
    )


@translates("native_group_norm")
def _group_norm(native: Native) -> None:
    inputs, has = _present(native, {"weight": "gamma", "bias": "beta"})
    native.give(
        "group_norm", [native.x, *inputs], groups=native["group"], epsilon=float(native["eps"]), axis=1, has=["x", *has]
    )


@translates("native_layer_norm")
def _layer_norm(native: Native) -> None:
    inputs, has = _present(native, {"weight": "gamma", "bias": "beta"})
    count = len(native["normalized_shape"])
    axes = list(range(native.x.ndim - count, native.x.ndim))
    native.give("layer_norm", [native.x, *inputs], axes=axes, epsilon=float(native["eps"]), has=["x", *has])


@translates("_fused_rms_norm", "rms_norm")
def _rms_norm(native: Native) -> None:
    inputs, has = _present(native, {"weight": "gamma"})
    axes = list(range(native.x.ndim - len(native["normalized_shape"]), native.x.ndim))
    epsilon = float(native.get("eps", torch.finfo(native.x.dtype).eps))
    native.give("rms_norm", [native.x, *inputs], axes=axes, epsilon=epsilon, has=["x", *has])


@translates("_weight_norm_interface")
def _weight_norm(native: Native) -> None:
    v, axis = native["v"], native["dim"] % native["v"].ndim
    axes = [i for i in range(v.ndim) if i != axis]
    size = native.emit("norm", [v], axes=axes, keepdims=True, order=2.0)
    native.give("multiply", [v, native.emit("divide", [native["g"], size])])


@translates(
    "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable", "scaled_dot_product_attention",
)  # fmt: skip
def _attention(native: Native) -> None:
    q, k, v = (native[name] for name in ("query", "key", "value"))
    if native.get("dropout_p") or k.shape[1] != q.shape[1]:
        raise Unknown
    mask = native.get("attn_mask", native.get("attn_bias"))
    native.give(
        "attention",
        [q, k, v] if mask is None else [q, k, v, mask],
        scale=float(native.get("scale", 1 / math.sqrt(q.shape[-1]))),
        causal=bool(native.get("is_causal", False)),
        has=["q", "k", "v"] if mask is None else ["q", "k", "v", "mask"],
    )


@translates("native_dropout")
def _native_dropout(native: Native) -> None:
    rate = native["p"]
    if len(native.results) != 2 or rate >= 1:
        raise Unknown
    native.sink.write("random", [], native.outputs[1:], {"distribution": "bernoulli", "rate": rate})
    kept = native.emit("multiply", [native.x, native.emit("cast", [native.outputs[1]], dtype=_name(native.x))])
    native.give("multiply", [kept], scalar=1 / (1 - rate), reverse=False)


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


# Losses.


def _reduce(native: Native, each: int) -> None:
    """Reduce the loss of each element as the argument `reduction` says."""
    reduction = native.get("reduction", 1)
    if reduction == 0:
        native.give("identity", [each])
        return
    ndim = max(each_.ndim for each_ in native.arguments.values() if isinstance(each_, Tensor))
    kind = "mean" if reduction == 1 else "sum"
    native.give(kind, [each], axes=list(range(ndim)), keepdims=False)


@translates("mse_loss")
def _mse(native: Native) -> None:
    difference = native.emit("subtract", [native.floats(native["self"]), native.floats(native["target"])])
    _reduce(native, native.emit("square", [difference]))


@translates("l1_loss")
def _l1(native: Native) -> None:
    difference = native.emit("subtract", [native.floats(native["self"]), native.floats(native["target"])])
    _reduce(native, native.emit("abs", [difference]))


@translates("smooth_l1_loss", "huber_loss")
def _huber(native: Native) -> None:
    width = float(native.get("beta", native.get("delta")))
    size = native.emit("abs", [native.emit("subtract", [native["self"], native["target"]])])
    if width == 0:
        _reduce(native, size)
        return
    near = native.emit("multiply", [native.emit("square", [size])], scalar=0.5, reverse=False)
    far = native.emit("subtract", [size], scalar=width / 2, reverse=False)
    if native.name == "huber_loss":
        far = native.emit("multiply", [far], scalar=width, reverse=False)
    else:
        near = native.emit("divide", [near], scalar=width, reverse=False)
    is_near = native.emit("less", [size], scalar=width, reverse=False)
    _reduce(native, native.emit("where", [is_near, near, far], scalars=None))


@translates("binary_cross_entropy_with_logits")
def _bce_with_logits(native: Native) -> None:
    x, target, factor = native["self"], native["target"], native.get("pos_weight")
    soft = native.emit("softplus", [native.emit("negative", [x])], beta=1.0, threshold=math.inf)
    off = native.emit("subtract", [target], scalar=1, reverse=True)
    if factor is not None:
        more = native.emit("multiply", [native.emit("subtract", [factor], scalar=1, reverse=False), target])
        soft = native.emit("multiply", [soft, native.emit("add", [more], scalar=1, reverse=False)])
    loss = native.emit("add", [native.emit("multiply", [off, x]), soft])
    if native.get("weight") is not None:
        loss = native.emit("multiply", [loss, native["weight"]])
    _reduce(native, loss)


@translates("binary_cross_entropy")
def _bce(native: Native) -> None:
    x, target = native["self"], native["target"]
    logs: list[Any] = []
    for value in (native.read(x), native.emit("subtract", [x], scalar=1, reverse=True)):
        logs.append(native.emit("maximum", [native.emit("log", [value])], scalar=-100.0, reverse=False))
    on = native.emit("multiply", [target, logs[0]])
    off = native.emit("multiply", [native.emit("subtract", [target], scalar=1, reverse=True), logs[1]])
    loss = native.emit("negative", [native.emit("add", [on, off])])
    if native.get("weight") is not None:
        loss = native.emit("multiply", [loss, native["weight"]])
    _reduce(native, loss)


@translates("nll_loss_forward", "nll_loss2d_forward")
def _nll(native: Native) -> None:
    x, target, weight, ignored = native["self"], native["target"], native.get("weight"), native["ignore_index"]
    if x.ndim < 2:
        raise Unknown
    is_kept = target != ignored
    places = torch.where(is_kept, target, torch.zeros_like(target)).unsqueeze(1)
    weights = is_kept.to(x.dtype) if weight is None else weight[places.squeeze(1)] * is_kept
    taken = native.emit("take_along", [x, native.constant(places.cpu().numpy())], axis=1)
    loss = native.emit("negative", [native.emit("reshape", [taken], shape=list(target.shape))])
    reduction, total = native["reduction"], float(weights.sum())
    if weight is not None or not bool(is_kept.all()):
        loss = native.emit("multiply", [loss, native.constant(weights.detach().cpu().numpy())])
    axes = list(range(target.ndim))
    if reduction == 0:
        native.give("identity", [loss])
    elif reduction == 2:
        native.give("sum", [loss], axes=axes, keepdims=False)
    elif weight is None and bool(is_kept.all()):
        native.give("mean", [loss], axes=axes, keepdims=False)
    else:
        native.give("divide", [native.emit("sum", [loss], axes=axes, keepdims=False)], scalar=total, reverse=False)
