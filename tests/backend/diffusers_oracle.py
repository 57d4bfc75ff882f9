"""diffusers' `UNet2DModel` in NumPy, written from its published source and not from Duet's: no file is shared.

`test_convert_torch.py` holds it to diffusers itself, so that an environment without diffusers can hold imports to it.
Two levels, convolutions or residual blocks between them, time added or as scale and shift, classes.

References:
    Diffusers: State-of-the-art diffusion models (von Platen et al., 2022), https://github.com/huggingface/diffusers
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

# As DDPM: attention with one head at the lower level, padding behind, sine first, divisor half - 1.
DDPM: dict[str, Any] = {
    "_class_name": "UNet2DModel",
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "downsample_type": "conv",
    "upsample_type": "conv",
    "downsample_padding": 0,
    "attention_head_dim": None,
    "norm_num_groups": 4,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-6,
    "freq_shift": 1,
    "flip_sin_to_cos": False,
    "resnet_time_scale_shift": "default",
    "num_class_embeds": None,
}
# As ADM: heads of four channels, resampling by residual blocks, scale and shift, cosine first, classes.
ADM = DDPM | {
    "out_channels": 6,
    "down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "ResnetUpsampleBlock2D"],
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "downsample_padding": 1,
    "attention_head_dim": 4,
    "attn_norm_num_groups": 4,
    "norm_eps": 1e-5,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "resnet_time_scale_shift": "scale_shift",
    "num_class_embeds": 3,
}
CONFIGS = {"as DDPM": DDPM, "as ADM": ADM}


def arrays_of(config: Mapping[str, Any], seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """A state dict with the names and shapes of such a network, of numbers that keep an image at unit scale."""
    a, b = config["block_out_channels"]
    time = 4 * a
    twice = 1 + (config["resnet_time_scale_shift"] == "scale_shift")
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, *weight: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = weight, weight[:1]

    def block(name: str, inputs: int, width: int) -> None:
        layer(f"{name}.norm1", inputs)
        layer(f"{name}.conv1", width, inputs, 3, 3)
        layer(f"{name}.time_emb_proj", twice * width, time)
        layer(f"{name}.norm2", width)
        layer(f"{name}.conv2", width, width, 3, 3)
        if inputs != width:
            layer(f"{name}.conv_shortcut", width, inputs, 1, 1)

    def attention(name: str) -> None:
        layer(f"{name}.group_norm", b)
        for part in ("to_q", "to_k", "to_v", "to_out.0"):
            layer(f"{name}.{part}", b, b)

    def sampler(name: str, width: int, by_block: bool) -> None:
        block(name, width, width) if by_block else layer(f"{name}.conv", width, width, 3, 3)

    layer("time_embedding.linear_1", time, a)
    layer("time_embedding.linear_2", time, time)
    if config["num_class_embeds"]:
        shapes["class_embedding.weight"] = (config["num_class_embeds"], time)
    layer("conv_in", a, config["in_channels"], 3, 3)
    block("down_blocks.0.resnets.0", a, a)
    sampler("down_blocks.0.downsamplers.0", a, config["downsample_type"] == "resnet")
    block("down_blocks.1.resnets.0", a, b)
    attention("down_blocks.1.attentions.0")
    block("mid_block.resnets.0", b, b)
    attention("mid_block.attentions.0")
    block("mid_block.resnets.1", b, b)
    for i, skip in enumerate((b, a)):
        block(f"up_blocks.0.resnets.{i}", b + skip, b)
        attention(f"up_blocks.0.attentions.{i}")
    sampler("up_blocks.0.upsamplers.0", b, config["upsample_type"] == "resnet")
    for i, width in enumerate((b, a)):
        block(f"up_blocks.1.resnets.{i}", width + a, a)
    layer("conv_norm_out", a)
    layer("conv_out", config["out_channels"], a, 3, 3)

    random = np.random.default_rng(seed)
    return {
        name: np.float32(
            (0.5 if len(shape) > 1 else 0.3) * random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
            + ("norm" in name and name.endswith("weight"))
        )
        for name, shape in shapes.items()
    }


def forward(
    config: Mapping[str, Any], arrays: Mapping[str, NDArray], x: NDArray, t: NDArray, label: NDArray
) -> NDArray[np.float64]:
    """The output in float64 for images b h w c."""
    w = {name: array.astype(np.float64) for name, array in arrays.items()}
    groups, eps = config["norm_num_groups"], config["norm_eps"]

    def dense(name: str, h: NDArray) -> NDArray:
        return np.einsum("b...i,oi->b...o", h, w[f"{name}.weight"]) + w[f"{name}.bias"]

    def conv(name: str, h: NDArray, stride: int = 1, before: int = 1, after: int = 1) -> NDArray:
        kernel = w[f"{name}.weight"]
        if kernel.shape[-1] == 1:
            before = after = 0
        h = np.pad(h, ((0, 0), (before, after), (before, after), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(h, kernel.shape[2:], (1, 2))[:, ::stride, ::stride]
        return np.einsum("bhwikl,oikl->bhwo", windows, kernel) + w[f"{name}.bias"]

    def silu(h: NDArray) -> NDArray:
        return h / (1 + np.exp(-h))

    def norm(name: str, h: NDArray) -> NDArray:
        parts = h.reshape(len(h), -1, groups, h.shape[-1] // groups)
        parts = parts - parts.mean((1, 3), keepdims=True)
        parts = parts / np.sqrt((parts**2).mean((1, 3), keepdims=True) + eps)
        return parts.reshape(h.shape) * w[f"{name}.weight"] + w[f"{name}.bias"]

    def doubled(h: NDArray) -> NDArray:
        return h.repeat(2, 1).repeat(2, 2)

    def halved(h: NDArray) -> NDArray:
        return (h[:, ::2, ::2] + h[:, 1::2, ::2] + h[:, ::2, 1::2] + h[:, 1::2, 1::2]) / 4

    def block(name: str, x: NDArray, resample: Any = lambda h: h) -> NDArray:
        h = conv(f"{name}.conv1", resample(silu(norm(f"{name}.norm1", x))))
        x, time = resample(x), dense(f"{name}.time_emb_proj", silu(embedded))[:, None, None]
        if config["resnet_time_scale_shift"] == "scale_shift":
            scale, shift = np.split(time, 2, -1)
            h = norm(f"{name}.norm2", h) * (1 + scale) + shift
        else:
            h = norm(f"{name}.norm2", h + time)
        h = conv(f"{name}.conv2", silu(h))
        return h + (conv(f"{name}.conv_shortcut", x) if f"{name}.conv_shortcut.weight" in w else x)

    def attention(name: str, x: NDArray) -> NDArray:
        h = norm(f"{name}.group_norm", x).reshape(len(x), -1, x.shape[-1])
        width = config["attention_head_dim"] or x.shape[-1]
        q, k, v = (dense(f"{name}.to_{part}", h).reshape(*h.shape[:2], -1, width) for part in "qkv")
        scores = np.exp(np.einsum("bqnd,bknd->bnqk", q, k) / np.sqrt(width))
        mixed = np.einsum("bnqk,bknd->bqnd", scores / scores.sum(-1, keepdims=True), v)
        return x + dense(f"{name}.to_out.0", mixed.reshape(h.shape)).reshape(x.shape)

    half = config["block_out_channels"][0] // 2
    angle = t[:, None] * np.exp(-np.log(10000.0) * np.arange(half) / (half - config["freq_shift"]))
    waves = [np.sin(angle), np.cos(angle)]
    waves = np.concatenate(waves[::-1] if config["flip_sin_to_cos"] else waves, 1)
    embedded = dense("time_embedding.linear_2", silu(dense("time_embedding.linear_1", waves)))
    if config["num_class_embeds"]:
        embedded = embedded + w["class_embedding.weight"][label]

    skips = [conv("conv_in", x)]
    skips.append(block("down_blocks.0.resnets.0", skips[-1]))
    down, up = "down_blocks.0.downsamplers.0", "up_blocks.0.upsamplers.0"
    if config["downsample_type"] == "resnet":
        skips.append(block(down, skips[-1], halved))
    else:
        skips.append(conv(f"{down}.conv", skips[-1], 2, config["downsample_padding"], 1))
    skips.append(attention("down_blocks.1.attentions.0", block("down_blocks.1.resnets.0", skips[-1])))
    h = attention("mid_block.attentions.0", block("mid_block.resnets.0", skips[-1]))
    h = block("mid_block.resnets.1", h)
    for i in range(2):
        h = block(f"up_blocks.0.resnets.{i}", np.concatenate([h, skips.pop()], -1))
        h = attention(f"up_blocks.0.attentions.{i}", h)
    h = block(up, h, doubled) if config["upsample_type"] == "resnet" else conv(f"{up}.conv", doubled(h))
    for i in range(2):
        h = block(f"up_blocks.1.resnets.{i}", np.concatenate([h, skips.pop()], -1))
    return conv("conv_out", silu(norm("conv_norm_out", h)))
