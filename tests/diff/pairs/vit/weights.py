import zlib

import numpy as np

DIM, HEADS, DEPTH, PATCH = 32, 2, 2, 4
SHAPES = {"patch.w": (DIM, 3, PATCH, PATCH), "patch.b": (DIM,), "cls": (DIM,), "pos": (13, DIM)}
for _i in range(DEPTH):
    SHAPES |= {f"{_i}.ln1.g": (DIM,), f"{_i}.ln1.b": (DIM,), f"{_i}.ln2.g": (DIM,), f"{_i}.ln2.b": (DIM,)}
    for _p in "qkvo":
        SHAPES |= {f"{_i}.{_p}.w": (DIM, DIM), f"{_i}.{_p}.b": (DIM,)}
    SHAPES |= {f"{_i}.fc1.w": (48, DIM), f"{_i}.fc1.b": (48,), f"{_i}.fc2.w": (DIM, 48), f"{_i}.fc2.b": (DIM,)}
SHAPES |= {"ln.g": (DIM,), "ln.b": (DIM,), "head.w": (7, DIM), "head.b": (7,)}


def make(seed=0):
    out = {}
    for name, shape in SHAPES.items():
        z = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape)
        if name.endswith(".g"):
            z = 1 + 0.2 * z
        elif name.endswith(".w"):
            z = z * 1.3 / np.sqrt(np.prod(shape[1:]))
        else:
            z = 0.3 * z
        out[name] = z
    return out


def load_torch(model, w):
    import torch

    state = {
        "patch_embed.proj.weight": w["patch.w"],
        "patch_embed.proj.bias": w["patch.b"],
        "cls_token": w["cls"][None, None],
        "pos_embed": w["pos"][None],
        "norm.weight": w["ln.g"],
        "norm.bias": w["ln.b"],
        "head.weight": w["head.w"],
        "head.bias": w["head.b"],
    }
    for i in range(DEPTH):
        for mine, theirs in (("ln1", "norm1"), ("ln2", "norm2")):
            state[f"blocks.{i}.{theirs}.weight"] = w[f"{i}.{mine}.g"]
            state[f"blocks.{i}.{theirs}.bias"] = w[f"{i}.{mine}.b"]
        for end, name in (("w", "weight"), ("b", "bias")):
            state[f"blocks.{i}.attn.qkv.{name}"] = np.concatenate([w[f"{i}.{p}.{end}"] for p in "qkv"])
            state[f"blocks.{i}.attn.proj.{name}"] = w[f"{i}.o.{end}"]
            state[f"blocks.{i}.mlp.fc1.{name}"] = w[f"{i}.fc1.{end}"]
            state[f"blocks.{i}.mlp.fc2.{name}"] = w[f"{i}.fc2.{end}"]
    model.load_state_dict({k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in state.items()})


def load_keras(model, w, variant=None):
    todo = {v.path: v for v in model.weights}
    kernel = w["patch.w"].transpose(2, 3, 1, 0)
    put = {
        "patches/kernel": kernel if variant == "conv_patches" else kernel.reshape(-1, DIM),
        "patches/bias": w["patch.b"],
        "tokens/class_token": w["cls"],
        "tokens/position_table": w["pos"],
        "final_norm/gamma": w["ln.g"],
        "final_norm/beta": w["ln.b"],
        "logits/kernel": w["head.w"].T,
        "logits/bias": w["head.b"],
    }
    for i in range(DEPTH):
        for mine, theirs in (("ln1", "norm_a"), ("ln2", "norm_b")):
            put[f"enc{i}_{theirs}/gamma"], put[f"enc{i}_{theirs}/beta"] = w[f"{i}.{mine}.g"], w[f"{i}.{mine}.b"]
        for p, name in (("q", "query"), ("k", "key"), ("v", "value")):
            kernel, bias = w[f"{i}.{p}.w"].T, w[f"{i}.{p}.b"]
            if variant != "dense_attention":
                kernel, bias = kernel.reshape(DIM, HEADS, -1), bias.reshape(HEADS, -1)
            put[f"enc{i}_attention/{name}/kernel"], put[f"enc{i}_attention/{name}/bias"] = kernel, bias
        kernel = w[f"{i}.o.w"].T
        out = f"enc{i}_attention/attention_output"
        put[f"{out}/kernel"] = kernel if variant == "dense_attention" else kernel.reshape(HEADS, -1, DIM)
        put[f"{out}/bias"] = w[f"{i}.o.b"]
        for n in ("1", "2"):
            put[f"enc{i}_mlp{n}/kernel"], put[f"enc{i}_mlp{n}/bias"] = w[f"{i}.fc{n}.w"].T, w[f"{i}.fc{n}.b"]
    for path, array in put.items():
        todo.pop(path).assign(array)
    assert not todo, list(todo)
