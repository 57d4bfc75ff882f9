"""What a network computes is what is published, and what its own weights say."""

from __future__ import annotations

import math

import pytest
from commands import composed

from diffusion_core.networks import lower
from diffusion_core.networks.flops import convolutions, multiply_adds
from experiments.common import spec_of


def network(name: str):
    spec = spec_of(composed("bench", "out=x", f"model={name}"))
    return lower(spec), spec.image_shape


def test_adm_takes_what_is_published():
    # 1120 Gflops in the tables of DiT (Peebles and Xie, 2022), which counts a multiplication with its addition as one.
    assert round(multiply_adds(*network("adm_256")) / 1e9) == 1120


@pytest.mark.parametrize("name", ("digits", "simple", "sixteen_step", "plain"))
def test_convolutions_use_each_weight_once_per_pixel(name: str):
    program, image = network(name)
    weights = [math.prod(p.shape) for p in program.parameters if p.axes.endswith("kh kw")]
    found = convolutions(program, image)
    assert [c.multiply_adds / (c.size // c.stride) ** 2 for c in found] == weights
    assert 0.8 < sum(c.multiply_adds for c in found) / multiply_adds(program, image) <= 1


def test_four_times_the_pixels_take_four_times_as_much_but_for_attention():
    program, image = network("plain")
    double = (2 * image[0], 2 * image[1], image[2])
    assert multiply_adds(program, double) == pytest.approx(4 * multiply_adds(program, image), rel=1e-6)
