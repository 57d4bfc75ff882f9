import zlib

import numpy as np

LATENT = 6
SHAPES = {
    "enc1": (8, 3, 3, 3),
    "enc2": (16, 8, 3, 3),
    "mean": (LATENT, 784),
    "log_var": (LATENT, 784),
    "expand": (256, LATENT),
    "up1": (16, 12, 3, 3),  # input channels first, as PyTorch keeps transposed convolutions
    "up2": (12, 8, 4, 4),
    "to_image": (12, 8, 3, 3),
}


def make(seed=0):
    found = {}
    for name, shape in SHAPES.items():
        g = np.random.default_rng([seed, zlib.crc32(name.encode())])
        transposed = name.startswith("up")
        fan = shape[0] * 2.25 if transposed else np.prod(shape[1:])
        found[name + ".w"] = g.normal(size=shape) * 1.3 / np.sqrt(fan)
        found[name + ".b"] = 0.2 * g.normal(size=shape[1 if transposed else 0])
    return found


def load_torch(net, w):
    import torch

    names = {
        "encoder.0": "enc1",
        "encoder.2": "enc2",
        "decoder.expand": "expand",
        "decoder.up1": "up1",
        "decoder.up2": "up2",
        "decoder.to_image": "to_image",
    }
    state = {}
    for mine, theirs in names.items():
        state[mine + ".weight"], state[mine + ".bias"] = w[theirs + ".w"], w[theirs + ".b"]
    state["moments.weight"] = np.concatenate([w["mean.w"], w["log_var.w"]])
    state["moments.bias"] = np.concatenate([w["mean.b"], w["log_var.b"]])
    net.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()})


def load_keras(vae, w, variant=None, fault=None):
    def conv(name):
        return w[name].transpose(2, 3, 1, 0)  # right for transposed convolutions, too

    put = {}
    for name, path in (("enc1", "encoder/conv_1"), ("enc2", "encoder/conv_2")):
        put[f"{path}/kernel"], put[f"{path}/bias"] = conv(name + ".w"), w[name + ".b"]
    for name, path in (("mean", "encoder/z_mean"), ("log_var", "encoder/z_log_var")):
        kernel = w[name + ".w"]
        if variant == "rows_permuted":
            kernel = kernel.reshape(LATENT, 16, 7, 7).transpose(0, 2, 3, 1).reshape(LATENT, -1)
        put[f"{path}/kernel"], put[f"{path}/bias"] = kernel.T, w[name + ".b"]
    put["decoder/dense/kernel"], put["decoder/dense/bias"] = w["expand.w"].T, w["expand.b"]
    for name in ("up1", "up2"):
        put[f"decoder/{name}/kernel"], put[f"decoder/{name}/bias"] = conv(name + ".w"), w[name + ".b"]
    if fault == "kernel_flipped":
        put["decoder/up2/kernel"] = put["decoder/up2/kernel"][::-1, ::-1]
    kernel, bias = conv("to_image.w"), w["to_image.b"]
    if fault != "channels_of_pixel_shuffle":  # depth_to_space wants (row, column, colour)
        order = np.arange(12).reshape(3, 4).T.ravel()
        kernel, bias = kernel[..., order], bias[order]
    put["decoder/to_image/kernel"], put["decoder/to_image/bias"] = kernel, bias
    left = {v.path: v for v in vae.weights}
    for path, array in put.items():
        left.pop("vae/" + path).assign(array)
    assert not left, sorted(left)
