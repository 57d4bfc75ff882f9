"""Numbers of the small GAN, as the torch script names them; Keras gets the same in its own layout."""

import zlib

import numpy as np

SHAPES = {
    "g.fc.w": (256, 10),
    "g.bn0.g": (256,),
    "g.bn0.b": (256,),
    "g.up1.w": (16, 12, 4, 4),
    "g.bn1.g": (12,),
    "g.bn1.b": (12,),
    "g.up2.w": (12, 3, 4, 4),
    "g.up2.b": (3,),
    "d.c1.w": (8, 3, 4, 4),
    "d.c1.b": (8,),
    "d.c2.w": (12, 8, 4, 4),
    "d.bn2.g": (12,),
    "d.bn2.b": (12,),
    "d.fc.w": (1, 192),
    "d.fc.b": (1,),
}
RUNNING = {"g.bn0": 256, "g.bn1": 12, "d.bn2": 12}


def numbers():
    out = {}
    for name, shape in SHAPES.items():
        z = np.random.default_rng([2, zlib.crc32(name.encode())]).standard_normal(shape)
        if name.endswith(".w"):
            fan = np.prod(shape[1:]) if ".up" not in name else shape[0] * 4
            out[name] = z / np.sqrt(fan)
        else:
            out[name] = 0.2 * z + (1 if name.endswith(".g") else 0)
    for name, width in RUNNING.items():
        rng = np.random.default_rng([3, zlib.crc32(name.encode())])
        out[name + ".mean"] = 0.3 * rng.standard_normal(width)
        out[name + ".var"] = rng.uniform(0.5, 1.5, width)
    return out


def keras_lists(numbers):
    """Return what set_weights takes, by layer: Reshape and Flatten run over rows, columns, channels."""
    hwc = np.arange(256).reshape(16, 4, 4).transpose(1, 2, 0).ravel()
    n = dict(numbers)
    for part in "gb":
        n["g.bn0." + part] = n["g.bn0." + part][hwc]
    for part in ("mean", "var"):
        n["g.bn0." + part] = n["g.bn0." + part][hwc]

    def norm(name):
        return [n[f"{name}.{part}"] for part in ("g", "b", "mean", "var")]

    def kernel(name):
        return n[name].transpose(2, 3, 1, 0)

    generator = {
        "project": [n["g.fc.w"][hwc].T],
        "bn0": norm("g.bn0"),
        "up1": [kernel("g.up1.w")],
        "bn1": norm("g.bn1"),
        "up2": [kernel("g.up2.w"), n["g.up2.b"]],
    }
    discriminator = {
        "conv1": [kernel("d.c1.w"), n["d.c1.b"]],
        "conv2": [kernel("d.c2.w")],
        "bn2": norm("d.bn2"),
        "logit": [n["d.fc.w"].reshape(12, 4, 4).transpose(1, 2, 0).reshape(192, 1), n["d.fc.b"]],
    }
    return generator, discriminator
