import zlib

import numpy as np

# Both sides make their convolutions and norms in this order.
BLOCKS = {"inc": (3, 8), "down1": (8, 16), "down2": (16, 24), "up1": (40, 16), "up2": (24, 8)}
GROUPS, CLASSES = 4, 3


def make(seed=0):
    """Return (name, array) pairs: convolutions in PyTorch's layout."""
    found = {}

    def random(name, *shape):
        return np.random.default_rng([seed, zlib.crc32(name.encode())]).normal(size=shape)

    for block, (cin, cout) in BLOCKS.items():
        for i, width in enumerate((cin, cout)):
            name = f"{block}.{i}"
            found[f"{name}.w"] = random(name + "w", cout, width, 3, 3) * 1.5 / np.sqrt(9 * width)
            found[f"{name}.b"] = 0.2 * random(name + "b", cout)
            found[f"{name}.g"] = 1 + 0.3 * random(name + "g", cout)
            found[f"{name}.s"] = 0.3 * random(name + "s", cout)
    found["out.w"] = random("out.w", CLASSES, 8, 1, 1) / np.sqrt(8)
    found["out.b"] = 0.2 * random("out.b", CLASSES)
    return found


def load_torch(net, w):
    import torch

    state = {"outc.weight": w["out.w"], "outc.bias": w["out.b"]}
    for block in BLOCKS:
        for i, (conv, norm) in enumerate(((0, 1), (3, 4))):
            for end, conv_key, norm_key in (("weight", "w", "g"), ("bias", "b", "s")):
                state[f"{block}.conv.{conv}.{end}"] = w[f"{block}.{i}.{conv_key}"]
                state[f"{block}.conv.{norm}.{end}"] = w[f"{block}.{i}.{norm_key}"]
    net.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})


def load_keras(model, w, fault=None):
    """Set the weights layer by layer; the layers come in the order in which they were made."""
    arrays = [a.transpose(2, 3, 1, 0) if a.ndim == 4 else a for a in w.values()]
    layers = [layer for layer in model.layers if layer.weights]
    layers.sort(key=lambda layer: int(layer.name.rsplit("_", 1)[1]) if layer.name[-1].isdigit() else 0)
    convs = [layer for layer in layers if layer.name.startswith("conv")]
    norms = [layer for layer in layers if not layer.name.startswith("conv")]
    for i, norm in enumerate(norms):
        convs[i].set_weights(arrays[4 * i : 4 * i + 2])
        norm.set_weights(arrays[4 * i + 2 : 4 * i + 4])
    convs[-1].set_weights(arrays[-2:])
