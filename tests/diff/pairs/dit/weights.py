"""Numbers of a tiny diffusion transformer: 8 x 8 images of 3 channels, patches of 2 x 2, 16 tokens."""

import numpy as np

SIZE, CHANNELS, PATCH, DIM, HEADS, DEPTH, CLASSES, FREQUENCIES, MLP = 8, 3, 2, 32, 4, 2, 6, 16, 64
TOKENS = (SIZE // PATCH) ** 2


def shapes():
    table = {"patch": (DIM, CHANNELS * PATCH**2), "patch.b": (DIM,), "position": (TOKENS, DIM)}
    table |= {"t0": (DIM, FREQUENCIES), "t0.b": (DIM,), "t2": (DIM, DIM), "t2.b": (DIM,), "label": (CLASSES, DIM)}
    for i in range(DEPTH):
        table |= {f"b{i}.ada": (6 * DIM, DIM), f"b{i}.ada.b": (6 * DIM,)}
        table |= {f"b{i}.qkv": (3 * DIM, DIM), f"b{i}.qkv.b": (3 * DIM,), f"b{i}.o": (DIM, DIM), f"b{i}.o.b": (DIM,)}
        table |= {f"b{i}.m0": (MLP, DIM), f"b{i}.m0.b": (MLP,), f"b{i}.m2": (DIM, MLP), f"b{i}.m2.b": (DIM,)}
    table |= {"end.ada": (2 * DIM, DIM), "end.ada.b": (2 * DIM,)}
    return table | {"end": (PATCH**2 * CHANNELS, DIM), "end.b": (PATCH**2 * CHANNELS,)}


def make():
    rng = np.random.default_rng(4)  # one stream: the order of `shapes` counts
    made = {}
    for name, shape in shapes().items():
        scale = 0.2 if name.endswith(".b") else 0.5 if name in ("position", "label") else 0.9 / np.sqrt(shape[1])
        made[name] = rng.standard_normal(shape) * scale
    return made


def batch(seed):
    rng = np.random.default_rng(60 + seed)
    x = rng.standard_normal((2, CHANNELS, SIZE, SIZE)).astype("float32")
    return x, np.array([rng.integers(0, 500), rng.integers(500, 1000)]), rng.integers(0, CLASSES, 2)
