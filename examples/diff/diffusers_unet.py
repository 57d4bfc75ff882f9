"""A small UNet2DModel of diffusers with random weights.

python examples/diff/diffusers_unet.py DIR    writes it to a folder
"""

import sys

import numpy as np
import torch
from diffusers import UNet2DModel


def build(**changes):
    torch.manual_seed(0)
    config = {
        "sample_size": 16,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    return UNet2DModel(**{**config, **changes}).eval()


def inputs(seed):
    images = np.random.default_rng(seed).standard_normal((2, 3, 16, 16)).astype("float32")
    return {"sample": images, "timestep": np.array([3, 700])}


if __name__ == "__main__":
    build().save_pretrained(sys.argv[1])

# ruff: noqa: D103
