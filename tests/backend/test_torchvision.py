"""Our grid of images against that of torchvision, which is there wherever PyTorch is."""

from __future__ import annotations

import numpy as np

from diffusion_core.pictures import grid


def test_a_grid_is_that_of_torchvision() -> None:
    import torch
    from torchvision.utils import make_grid

    images = np.random.default_rng(0).integers(0, 256, (7, 5, 6, 3), np.uint8)
    ours = grid(images, columns=3, pad=2)
    tiled = make_grid(torch.from_numpy(images).permute(0, 3, 1, 2), nrow=3, padding=2, pad_value=int(ours[0, 0, 0]))
    np.testing.assert_array_equal(ours, tiled.permute(1, 2, 0).numpy())
