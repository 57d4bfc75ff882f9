import zlib

import numpy as np

WORDS, EMB, HID, TAGS = 30, 12, 10, 6
SHAPES = {"emb": (WORDS, EMB), "out.w": (TAGS, 2 * HID), "out.b": (TAGS,)}
for _d in ("fw", "bw"):
    SHAPES |= {f"{_d}.ih": (4 * HID, EMB), f"{_d}.hh": (4 * HID, HID), f"{_d}.bi": (4 * HID,), f"{_d}.bh": (4 * HID,)}


def make(seed=0):
    out = {}
    for name, shape in SHAPES.items():
        z = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape)
        out[name] = z * (0.3 if len(shape) == 1 else 1.2 / np.sqrt(shape[-1]) if name != "emb" else 1.0)
    return out


def gates(a, order):
    """Put the gates i f g o of torch in another order."""
    parts = dict(zip("ifgo", np.split(a, 4), strict=True))
    return np.concatenate([parts[g] for g in order])


def load_torch(model, w, fault=None):
    import torch

    if fault == "forget_bias":
        w = dict(w)
        w["fw.bh"] = w["fw.bh"] + np.repeat([0.0, 1.0, 0.0, 0.0], HID)
    state = {"embed.weight": w["emb"], "tag.weight": w["out.w"], "tag.bias": w["out.b"]}
    for d, end in (("fw", ""), ("bw", "_reverse")):
        state[f"rnn.weight_ih_l0{end}"], state[f"rnn.weight_hh_l0{end}"] = w[f"{d}.ih"], w[f"{d}.hh"]
        state[f"rnn.bias_ih_l0{end}"], state[f"rnn.bias_hh_l0{end}"] = w[f"{d}.bi"], w[f"{d}.bh"]
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, array in state.items():
            own.pop(name).copy_(torch.from_numpy(array))
    assert not own, list(own)


def load_keras(model, w, variant=None, fault=None):
    order = "ofig" if variant == "own_gates" else "figo" if fault == "gate_order" else "ifgo"
    for layer, d in ((model.get_layer("forwards"), "fw"), (model.get_layer("backwards"), "bw")):
        bias = w[f"{d}.bi"] if fault == "one_bias" else w[f"{d}.bi"] + w[f"{d}.bh"]
        layer.set_weights([gates(w[f"{d}.ih"], order).T, gates(w[f"{d}.hh"], order).T, gates(bias, order)])
    model.get_layer("words").set_weights([w["emb"]])
    model.get_layer("tags").set_weights([w["out.w"].T, w["out.b"]])
