"""What a program costs is what is published, what its blocks say, and what PyTorch counts."""

from __future__ import annotations

import math

import pytest
from commands import composed

from diffusion_core.unet import lower
from diffusion_core.unet.cost import multiply_adds, products
from experiments.common import spec_of


def network(name: str):
    spec = spec_of(composed("bench", "out=x", f"model={name}"))
    return lower(spec), spec.image_size


def test_adm_costs_what_is_published():
    # 1120 Gflops in the tables of DiT (Peebles and Xie, 2022), which counts a multiplication with its addition as one.
    assert round(multiply_adds(*network("adm_256")) / 1e9) == 1120


@pytest.mark.parametrize("name", ("digits", "simple", "sixteen_step", "plain", "toy"))
def test_a_product_uses_each_weight_once_per_pixel(name: str):
    program, size = network(name)
    shapes = {p.name: math.prod(p.shape) for p in program.parameters}
    for product in products(program, size):
        weight = shapes.get(f"{product.node.name}.weight")
        if weight is not None and product.size:
            pixels = product.multiply_adds / weight
            assert pixels in {product.size**2, (product.size // 2) ** 2, (2 * product.size) ** 2}
        elif weight is not None:
            assert product.multiply_adds == weight


def test_four_times_the_pixels_cost_four_times_as_much_but_for_attention():
    program, size = network("plain")
    assert multiply_adds(program, 2 * size) == pytest.approx(4 * multiply_adds(program, size), rel=1e-6)
    program, size = network("digits")
    small, large = products(program, size), products(program, 2 * size)
    growth = {p.node.kind: q.multiply_adds / p.multiply_adds for p, q in zip(small, large, strict=True)}
    assert growth["Attention"] == 16 and growth["Conv"] == 4
