"""The multiply-adds of a network are half of the operations that PyTorch counts while it computes."""

from __future__ import annotations

import pytest

from diffusion_core.backend import Settings, load_backend
from diffusion_core.parity import cases
from diffusion_core.unet import lower
from diffusion_core.unet.work import multiply_adds


@pytest.mark.parametrize("title", ["time added, strided", "ADM, learned variance"])
def test_multiply_adds_are_half_of_the_operations_that_pytorch_counts(title):
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    program, shape = lower(cases.NETWORKS[title]), cases.NETWORKS[title].image_shape
    network = load_backend("torch", Settings(device="cpu", precision="float32", threads=1)).network(
        program, cases.scattered_weights(program)
    )
    batch = cases.noise_batch(program, shape, 2)
    x = torch.from_numpy(batch.images).float().permute(0, 3, 1, 2)
    # The fused attention is not among what it counts.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        network.apply_program(
            x, torch.from_numpy(batch.c_noise), torch.from_numpy(batch.label).long(), network.no_features(2)
        )
    assert counter.get_total_flops() == 2 * 2 * multiply_adds(program, shape)
