"""Weights of the small text encoder, by the names of its torch side."""

import zlib

import numpy as np

D, H, LAYERS, VOCAB, LENGTH = 16, 2, 2, 40, 9


def _names():
    e = "embeddings."
    yield from ((e + "word_embeddings.weight", (VOCAB, D)), (e + "position_embeddings.weight", (LENGTH + 4, D)))
    yield from (
        (e + "token_type_embeddings.weight", (2, D)),
        (e + "LayerNorm.weight", (D,)),
        (e + "LayerNorm.bias", (D,)),
    )
    for i in range(LAYERS):
        p = f"encoder.layer.{i}."
        for part in ("attention.query", "attention.key", "attention.value", "attention.dense"):
            yield from ((p + part + ".weight", (D, D)), (p + part + ".bias", (D,)))
        yield from ((p + "attention.LayerNorm.weight", (D,)), (p + "attention.LayerNorm.bias", (D,)))
        yield from ((p + "intermediate.weight", (24, D)), (p + "intermediate.bias", (24,)))
        yield from ((p + "output.weight", (D, 24)), (p + "output.bias", (D,)))
        yield from ((p + "LayerNorm.weight", (D,)), (p + "LayerNorm.bias", (D,)))
    yield from (("pooler.weight", (D, D)), ("pooler.bias", (D,)), ("decoder_bias", (VOCAB,)))


def make(seed=0):
    out = {}
    for name, shape in _names():
        z = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape)
        if "LayerNorm.weight" in name:
            out[name] = 1 + 0.2 * z
        elif len(shape) == 1:
            out[name] = 0.2 * z
        else:
            out[name] = z * (0.5 if "embeddings" in name else 1.4 / np.sqrt(shape[1]))
    return out


def load_torch(model, w):
    import torch

    missing, unexpected = model.load_state_dict({k: torch.from_numpy(v) for k, v in w.items()}, strict=False)
    assert not missing and not unexpected, (missing, unexpected)


def load_keras(model, w, untied=False):
    path = {
        "embeddings.word_embeddings.weight": "word/embeddings",
        "embeddings.position_embeddings.weight": "position/embeddings",
        "embeddings.token_type_embeddings.weight": "kind/embeddings",
        "embeddings.LayerNorm.weight": "embed_norm/gamma",
        "embeddings.LayerNorm.bias": "embed_norm/beta",
        "pooler.weight": "pool/kernel",
        "pooler.bias": "pool/bias",
        "decoder_bias": "head/bias",
    }
    left = {v.path.split("/", 1)[1]: v for v in model.weights}
    for name, array in w.items():
        if name in path:
            where = path[name]
        else:
            _, _, i, *rest, end = name.split(".")
            if "LayerNorm" in rest:
                end = {"weight": "gamma", "bias": "beta"}[end]
            else:
                end = {"weight": "kernel", "bias": "bias"}[end]
            part = ".".join(rest)
            short = {
                "attention.query": "attention/q", "attention.key": "attention/k", "attention.value": "attention/v",
                "attention.dense": "attention/o", "attention.LayerNorm": "norm1", "intermediate": "up",
                "output": "down", "LayerNorm": "norm2",
            }[part]  # fmt: skip
            where = f"layer{i}/{short}/{end}"
        left.pop(where).assign(array.T if array.ndim == 2 and "embed" not in name else array)
    if untied:
        left.pop("head/table").assign(w["embeddings.word_embeddings.weight"])
    assert not left, list(left)
