"""One set of numbers for both sides, in PyTorch's layout: (out, in) for every projection."""

import zlib

import numpy as np

VOCAB, DIM, HEADS, KV_HEADS, HEAD_DIM, HIDDEN, LAYERS, LENGTH = 53, 32, 4, 2, 8, 40, 2, 9


def shapes():
    yield "embed", (VOCAB, DIM)
    for n in range(LAYERS):
        yield f"{n}.norm1", (DIM,)
        yield f"{n}.q", (HEADS * HEAD_DIM, DIM)
        yield f"{n}.k", (KV_HEADS * HEAD_DIM, DIM)
        yield f"{n}.v", (KV_HEADS * HEAD_DIM, DIM)
        yield f"{n}.o", (DIM, HEADS * HEAD_DIM)
        yield f"{n}.norm2", (DIM,)
        yield f"{n}.gate", (HIDDEN, DIM)
        yield f"{n}.up", (HIDDEN, DIM)
        yield f"{n}.down", (DIM, HIDDEN)
    yield "norm", (DIM,)


def make():
    made = {}
    for name, shape in shapes():
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        if len(shape) == 1:
            made[name] = rng.uniform(0.5, 1.5, shape)
        else:
            made[name] = rng.standard_normal(shape) * (0.4 if name == "embed" else 1.5 / np.sqrt(shape[1]))
    return made


def to_interleaved(w, heads):
    """Reorder the rows of a head from halves (0 1 2 3 | 4 5 6 7) to neighbouring pairs (0 4 1 5 2 6 3 7)."""
    return w.reshape(heads, 2, HEAD_DIM // 2, -1).swapaxes(1, 2).reshape(w.shape)
