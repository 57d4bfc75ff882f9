import zlib

import numpy as np

C, DILATIONS = 8, (1, 2, 4)
SHAPES = {"in.v": (C, 2, 1), "in.g": (C,), "in.b": (C,), "end.w": (2, C, 1), "end.b": (2,), "end.a": (C,)}
for _i in range(len(DILATIONS)):
    SHAPES |= {f"{_i}.v": (2 * C, C, 3), f"{_i}.g": (2 * C,), f"{_i}.b": (2 * C,)}
    SHAPES |= {f"{_i}.res.w": (C, C, 1), f"{_i}.res.b": (C,), f"{_i}.skip.w": (C, C, 1), f"{_i}.skip.b": (C,)}


def make(seed=0):
    out = {}
    for name, shape in SHAPES.items():
        z = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape)
        if name.endswith(".g"):
            z = 1.2 + 0.2 * z
        elif name.endswith(".a"):
            z = 0.2 + 0.05 * z
        elif len(shape) == 1:
            z = 0.2 * z
        else:
            z = z / np.sqrt(np.prod(shape[1:]))
        out[name] = z
    return out
