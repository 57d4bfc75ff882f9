import zlib

import numpy as np

DIMS, TOKENS, CLASSES = (16, 24), 16, 7


def shapes():
    a, b = DIMS
    found = {"stem.w": (a, 3, 2, 2), "stem.b": (a,), "stem_norm.w": (a,), "stem_norm.b": (a,)}
    for i in range(2):
        found |= {f"block{i}.dw.w": (a, 1, 7, 7), f"block{i}.dw.b": (a,), f"block{i}.norm.w": (a,)}
        found |= {f"block{i}.norm.b": (a,), f"block{i}.fc1.w": (3 * a, a), f"block{i}.fc1.b": (3 * a,)}
        found |= {f"block{i}.grn.w": (3 * a,), f"block{i}.grn.b": (3 * a,)}
        found |= {f"block{i}.fc2.w": (a, 3 * a), f"block{i}.fc2.b": (a,), f"block{i}.gamma": (a,)}
    found |= {"down_norm.w": (a,), "down_norm.b": (a,), "down.w": (b, a, 2, 2), "down.b": (b,)}
    for part, width, hidden in (("token", TOKENS, 20), ("channel", b, 48)):
        found |= {f"mix.{part}.norm.w": (b,), f"mix.{part}.norm.b": (b,), f"mix.{part}.fc1.w": (hidden, width)}
        found |= {f"mix.{part}.fc1.b": (hidden,), f"mix.{part}.fc2.w": (width, hidden), f"mix.{part}.fc2.b": (width,)}
    return found | {"norm.w": (b,), "norm.b": (b,), "head.w": (CLASSES, b), "head.b": (CLASSES,)}


def make(seed=0):
    found = {}
    for name, shape in shapes().items():
        z = np.random.default_rng([seed, zlib.crc32(name.encode())]).normal(size=shape)
        if "norm.w" in name:
            found[name] = 1 + 0.3 * z
        elif "gamma" in name or "grn" in name:
            found[name] = 0.6 * z
        elif len(shape) == 1:
            found[name] = 0.2 * z
        else:
            found[name] = 1.4 * z / np.sqrt(np.prod(shape[1:]))
    return found


def load_torch(model, w, variant=None):
    import torch

    put = {}
    for mine, theirs in (
        ("stem.0", "stem"),
        ("stem.1", "stem_norm"),
        ("downsample.0", "down_norm"),
        ("downsample.1", "down"),
        ("norm", "norm"),
        ("head", "head"),
    ):
        put |= {f"{mine}.weight": w[f"{theirs}.w"], f"{mine}.bias": w[f"{theirs}.b"]}
    for i in range(2):
        for mine, theirs in (
            ("dwconv", "dw"),
            ("norm", "norm"),
            ("pwconv1", "fc1"),
            ("grn", "grn"),
            ("pwconv2", "fc2"),
        ):
            put |= {f"blocks.{i}.{mine}.weight": w[f"block{i}.{theirs}.w"]}
            put |= {f"blocks.{i}.{mine}.bias": w[f"block{i}.{theirs}.b"]}
        gamma = w[f"block{i}.gamma"]
        if variant == "scale_folded":
            put[f"blocks.{i}.pwconv2.weight"] = put[f"blocks.{i}.pwconv2.weight"] * gamma[:, None]
            put[f"blocks.{i}.pwconv2.bias"] = put[f"blocks.{i}.pwconv2.bias"] * gamma
        else:
            put[f"blocks.{i}.gamma"] = gamma
        if variant == "conv1x1":
            for name in (f"blocks.{i}.pwconv1.weight", f"blocks.{i}.pwconv2.weight"):
                put[name] = put[name][:, :, None, None]
    for mine, theirs in (("token", "token"), ("channel", "channel")):
        for a, b in ((f"norm_{mine}", "norm"), (f"{mine}_mix.0", "fc1"), (f"{mine}_mix.2", "fc2")):
            put |= {f"mixer.{a}.weight": w[f"mix.{theirs}.{b}.w"], f"mixer.{a}.bias": w[f"mix.{theirs}.{b}.b"]}
    model.load_state_dict({k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in put.items()})


def load_keras(model, w, variant=None):
    todo = {v.path.removeprefix("convnext_mixer/"): v for v in model.weights}

    def assign(layer, name, transform=lambda kernel: kernel, ends=("kernel", "bias")):
        todo.pop(f"{layer}/{ends[0]}").assign(transform(w[f"{name}.w"]))
        todo.pop(f"{layer}/{ends[1]}").assign(w[f"{name}.b"])

    def conv(kernel):
        return kernel.transpose(2, 3, 1, 0)

    def norm(layer, name):
        assign(layer, name, ends=("gamma", "beta"))

    assign("stem_conv", "stem", conv)
    norm("stem_norm", "stem_norm")
    for i in range(2):
        assign(f"stage_0_block_{i}/depthwise", f"block{i}.dw", lambda kernel: kernel.transpose(2, 3, 0, 1))
        norm(f"stage_0_block_{i}/norm", f"block{i}.norm")
        assign(f"stage_0_block_{i}/pointwise_1", f"block{i}.fc1", np.transpose)
        norm(f"stage_0_block_{i}/grn", f"block{i}.grn")
        assign(f"stage_0_block_{i}/pointwise_2", f"block{i}.fc2", np.transpose)
        todo.pop(f"stage_0_block_{i}/layer_scale/gamma").assign(w[f"block{i}.gamma"])
    norm("downsampling_norm", "down_norm")
    assign("downsampling_conv", "down", conv)
    if variant == "affine_folded":
        fc1, scale, shift = (w[f"mix.channel.{name}"] for name in ("fc1.w", "norm.w", "norm.b"))
        w = w | {"mix.channel.fc1.w": fc1 * scale, "mix.channel.fc1.b": w["mix.channel.fc1.b"] + fc1 @ shift}
    else:
        norm("mixer/norm_channels", "mix.channel.norm")
    norm("mixer/norm_tokens", "mix.token.norm")
    for part in ("token", "channel"):
        assign(f"mixer/{part}_dense_1", f"mix.{part}.fc1", np.transpose)
        assign(f"mixer/{part}_dense_2", f"mix.{part}.fc2", np.transpose)
    norm("head_norm", "norm")
    assign("predictions", "head", np.transpose)
    assert not todo, sorted(todo)
