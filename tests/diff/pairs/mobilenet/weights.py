"""One dictionary of arrays in PyTorch's layout, written into both models."""

import zlib

import numpy as np

# name: (input, hidden, output, kernel)
BLOCKS = {"b1": (12, 24, 16, 3), "b2": (16, 32, 16, 5)}
MULTIPLIER = 2


def bn(channels):
    return {"gamma": (channels,), "beta": (channels,), "mean": (channels,), "var": (channels,)}


def shapes():
    found = {"stem.w": (12, 3, 3, 3)} | {f"stem.bn.{k}": s for k, s in bn(12).items()}
    for name, (cin, hidden, cout, size) in BLOCKS.items():
        found[f"{name}.expand.w"] = (hidden, cin, 1, 1)
        found[f"{name}.dw.w"] = (hidden, 1, size, size)
        found[f"{name}.project.w"] = (cout, hidden, 1, 1)
        for part, width in (("expand", hidden), ("dw", hidden), ("project", cout)):
            found |= {f"{name}.{part}.bn.{k}": s for k, s in bn(width).items()}
        found |= {f"{name}.se.down.w": (8, hidden), f"{name}.se.down.b": (8,)}
        found |= {f"{name}.se.up.w": (hidden, 8), f"{name}.se.up.b": (hidden,)}
    found |= {"sep.dw": (16 * MULTIPLIER, 1, 3, 3), "sep.pw": (24, 16 * MULTIPLIER, 1, 1), "sep.b": (24,)}
    return found | {"fc.w": (10, 24), "fc.b": (10,)}


def make(seed=0):
    found = {}
    for name, shape in shapes().items():
        g = np.random.default_rng([seed, zlib.crc32(name.encode())])
        end = name.rsplit(".", 1)[-1]
        if end == "gamma":
            found[name] = g.uniform(0.7, 2.2, shape)
        elif end == "var":
            found[name] = g.uniform(0.1, 1.2, shape)
        elif len(shape) == 1:
            found[name] = 0.3 * g.normal(size=shape)
        else:
            found[name] = 1.6 * g.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
    return found


ENDS = {"weight": "gamma", "bias": "beta", "running_mean": "mean", "running_var": "var"}


def load_torch(model, w, fault=None):
    import torch

    pairs = {"features.stem.conv.weight": w["stem.w"]}
    pairs |= {f"features.stem.bn.{end}": w[f"stem.bn.{mine}"] for end, mine in ENDS.items()}
    for name in BLOCKS:
        for part in ("expand", "dw", "project"):
            pairs[f"features.{name}.{part}.conv.weight"] = w[f"{name}.{part}.w"]
            for end, mine in ENDS.items():
                pairs[f"features.{name}.{part}.bn.{end}"] = w[f"{name}.{part}.bn.{mine}"]
        for part, theirs in (("down", "fc1"), ("up", "fc2")):
            pairs[f"features.{name}.se.{theirs}.weight"] = w[f"{name}.se.{part}.w"][:, :, None, None]
            pairs[f"features.{name}.se.{theirs}.bias"] = w[f"{name}.se.{part}.b"]
    depthwise = w["sep.dw"]
    if fault == "multiplier_order":  # (multiplier, channel) instead of (channel, multiplier)
        depthwise = depthwise.reshape(16, MULTIPLIER, 3, 3).swapaxes(0, 1).reshape(-1, 1, 3, 3)
    pairs |= {"features.sep.depthwise.weight": depthwise, "features.sep.pointwise.weight": w["sep.pw"]}
    pairs |= {"features.sep.pointwise.bias": w["sep.b"]}
    pairs |= {"classifier.1.weight": w["fc.w"], "classifier.1.bias": w["fc.b"]}
    state = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in pairs.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and all("num_batches" in name for name in missing), (missing, unexpected)


def shuffled(w, name):
    """Put the hidden channels of a block in another order."""
    order = np.random.default_rng(5).permutation(BLOCKS[name][1])
    moved = dict(w)
    for part in ("expand", "dw"):
        for key in ("w", "bn.gamma", "bn.beta", "bn.mean", "bn.var"):
            moved[f"{name}.{part}.{key}"] = w[f"{name}.{part}.{key}"][order]
    for key in ("up.w", "up.b"):
        moved[f"{name}.se.{key}"] = w[f"{name}.se.{key}"][order]
    for key in ("se.down.w", "project.w"):
        moved[f"{name}.{key}"] = w[f"{name}.{key}"][:, order]
    return moved


def load_keras(model, w, variant=None, fault=None):
    if variant == "shuffled":
        w = shuffled(w, "b2")

    def hwio(kernel):
        return kernel.transpose(2, 3, 1, 0)

    def depthwise(kernel, channels):
        size = kernel.shape[-1]
        return kernel.reshape(channels, -1, size, size).transpose(2, 3, 0, 1)

    def norm(path, mine):
        names = {"gamma": "gamma", "beta": "beta", "moving_mean": "mean", "moving_variance": "var"}
        return {f"{path}/{end}": w[f"{mine}.bn.{key}"] for end, key in names.items()}

    pairs = {"Conv1/kernel": hwio(w["stem.w"])} | norm("Conv1_bn", "stem")
    for i, (name, (_, hidden, _, _)) in enumerate(BLOCKS.items(), 1):
        kernel = depthwise(w[f"{name}.dw.w"], hidden)
        if fault == "kernel_swapped" and name == "b2":  # height and width exchanged
            kernel = kernel.swapaxes(0, 1)
        pairs |= {f"block_{i}_expand/kernel": hwio(w[f"{name}.expand.w"]), f"block_{i}_depthwise/kernel": kernel}
        pairs[f"block_{i}_project/kernel"] = hwio(w[f"{name}.project.w"])
        for part, theirs in (("expand", "expand"), ("dw", "depthwise"), ("project", "project")):
            pairs |= norm(f"block_{i}_{theirs}_bn", f"{name}.{part}")
        for part in ("down", "up"):
            kernel = w[f"{name}.se.{part}.w"].T
            pairs[f"block_{i}_se_{part}/kernel"] = kernel[None, None] if variant == "se_conv" else kernel
            pairs[f"block_{i}_se_{part}/bias"] = w[f"{name}.se.{part}.b"]
    names = ("sep_dw/kernel", "sep_pw/kernel", "sep_pw/bias") if variant == "two_layers" else None
    names = names or ("sep/depthwise_kernel", "sep/pointwise_kernel", "sep/bias")
    pairs |= dict(zip(names, (depthwise(w["sep.dw"], 16), hwio(w["sep.pw"]), w["sep.b"]), strict=True))
    pairs |= {"Logits/kernel": w["fc.w"].T, "Logits/bias": w["fc.b"]}
    todo = {v.path: v for v in model.weights}
    for path, array in pairs.items():
        todo.pop(path).assign(array)
    assert all("seed" in path for path in todo), list(todo)
