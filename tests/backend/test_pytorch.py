"""What is held to PyTorch's own tools and torchvision's, which are there wherever PyTorch is."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion_core.backend import Settings, load_backend
from diffusion_core.pictures import grid
from diffusion_core.unet import lower, make_spec
from diffusion_core.unet.work import multiply_adds
from diffusion_core.weights import initial_weights


def test_a_grid_is_that_of_torchvision() -> None:
    import torch
    from torchvision.utils import make_grid

    images = np.random.default_rng(0).integers(0, 256, (7, 5, 6, 3), np.uint8)
    ours = grid(images, columns=3, pad=2)
    tiled = make_grid(torch.from_numpy(images).permute(0, 3, 1, 2), nrow=3, padding=2, pad_value=int(ours[0, 0, 0]))
    np.testing.assert_array_equal(ours, tiled.permute(1, 2, 0).numpy())


@pytest.mark.parametrize(
    ("architecture", "options"),
    (
        ("unet", {"channels": 8, "multipliers": (1, 2), "attention_sizes": (4,), "norm_groups": 4, "num_classes": 3}),
        ("simple", {"channels": (4, 8, 8)}),
        ("sixteen_step", {"channels": 8, "levels": 2, "embedding": 8}),
    ),
)
def test_a_program_costs_what_pytorch_counts(architecture: str, options: dict) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    program = lower(make_spec(architecture, image_size=8, **options))
    network = load_backend("torch", Settings("cpu", threads=1)).network(program, initial_weights(program, 0))
    x, t = np.zeros((2, 8, 8, 3), np.float32), np.zeros(2)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:  # it knows no other on the CPU
        network.forward(x, t, np.zeros(2, np.int32))
    assert counted.get_total_flops() == 2 * 2 * multiply_adds(program, (8, 8, 3))
