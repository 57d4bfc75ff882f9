"""Shapes and multiply-adds of networks, against published counts, the reference, and the networks' own weights."""

from __future__ import annotations

import pytest
from commands import composed

from diffusion_core.backend import reference
from diffusion_core.networks import Node, Program, lower
from diffusion_core.networks.blocks import Attention, Conv, Linear, Mean
from diffusion_core.networks.flops import multiply_adds, shapes
from diffusion_core.parity import cases
from experiments.config.build import network_spec

PROGRAMS = {case.name: (case.program, case.shape) for case in cases.BLOCKS}
PROGRAMS |= {
    title: (lower(spec), spec.image_shape) for title, spec in cases.NETWORKS.items() if spec.image_shape[0] <= 16
}


def network(name: str):
    spec = network_spec(composed("train", f"model={name}"))
    return lower(spec), spec.image_shape


@pytest.mark.parametrize("name", PROGRAMS)
def test_shapes_match_the_values_that_the_reference_computes(name):
    program, image = PROGRAMS[name]
    weights, seen = cases.scattered_weights(program), {}
    batch = cases.noise_batch(program, image, 1)

    def recorded(name, function):
        def call(*inputs, **training):
            seen[name] = function(*inputs, **training)
            return seen[name]

        return call

    functions = {n.name: recorded(n.name, reference.block_function(n.name, n.block, weights)) for n in program.nodes}
    inputs = {"x": batch.images, "c_noise": batch.c_noise, "label": batch.label, "features": batch.features}
    program.run(functions, inputs | {"estimate": batch.images})
    assert {name: value.shape[1:] for name, value in seen.items()} == shapes(program, image)


def test_multiply_adds_of_a_small_program():
    program = Program(
        (
            Node("wide", Conv(2, 12, 3, 2, (1, 1, 1, 1), True, 1.0), ("x",)),
            Node("attend", Attention(4, 2), ("wide",)),
            Node("mean", Mean(), ("attend",)),
            Node("out", Linear(4, 5, True, 1.0), ("mean",)),
        )
    )
    # 3 x 4 pixels of 12 channels of 9 x 2 products; 12 x 12 logits and as many sums, over 4 channels; 4 x 5.
    assert multiply_adds(program, (6, 8, 2)) == 12 * 12 * 18 + 2 * 144 * 4 + 20


def test_adm_has_the_published_count():
    # 1120 Gflops in the tables of DiT (Peebles and Xie, 2022), where one flop is a multiplication with its addition.
    assert round(multiply_adds(*network("adm_256")) / 1e9) == 1120


def test_four_times_the_pixels_take_four_times_the_multiply_adds_without_attention():
    program, image = network("plain")
    double = (2 * image[0], 2 * image[1], image[2])
    assert multiply_adds(program, double) == pytest.approx(4 * multiply_adds(program, image), rel=1e-6)
