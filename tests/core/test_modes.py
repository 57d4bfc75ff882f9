"""What a network computes is counted as it is computed, and the mode is a function of the work alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from diffusion_core.backend import reference
from diffusion_core.backend.compile_policy import Costs, Work, compiles, sampling_work, training_work
from diffusion_core.common.errors import DuetError
from diffusion_core.networks import Node, Program, UNetSpec, lower
from diffusion_core.networks.blocks import Attention, Conv, Linear, Mean
from diffusion_core.networks.flops import multiply_adds, numbers, shapes
from diffusion_core.parity import cases
from diffusion_core.sampling import make_plan

PROGRAM, SHAPE = cases.PARITY.program, cases.PARITY.spec.image_shape
PLAN = make_plan(cases.PARITY.process, "ddim", steps=10)
COSTS = Costs(per_block=0.1, per_call=1e-4, per_giga=0.02, per_tera=0.5)

PROGRAMS = {case.name: (case.program, case.shape) for case in cases.BLOCKS}
PROGRAMS |= {
    title: (lower(spec), spec.image_shape) for title, spec in cases.NETWORKS.items() if spec.image_shape[0] <= 16
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_shapes_are_those_of_the_values(name):
    program, image = PROGRAMS[name]
    weights, seen = cases.scattered_weights(program), {}
    batch = cases.noise_batch(program, image, 1)

    def watched(name, function):
        def call(*inputs, **training):
            seen[name] = function(*inputs, **training)
            return seen[name]

        return call

    functions = {n.name: watched(n.name, reference.block_function(n.name, n.block, weights)) for n in program.nodes}
    inputs = {"x": batch.images, "c_noise": batch.c_noise, "label": batch.label, "features": batch.features}
    program.run(functions, inputs | {"estimate": batch.images})
    assert {name: value.shape[1:] for name, value in seen.items()} == shapes(program, image)
    assert sum(value.size for value in seen.values()) == numbers(program, image)


def test_multiply_adds_are_those_of_the_products():
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


def test_twice_the_images_are_twice_the_work():
    one, two = (training_work(PROGRAM, SHAPE, images, 10) for images in (100, 200))
    assert (two.calls, two.numbers, two.products) == (2 * one.calls, 2 * one.numbers, 2 * one.products)
    assert one.numbers == 300 * numbers(PROGRAM, SHAPE) and one.calls == 10
    assert one.products == 300 * multiply_adds(PROGRAM, SHAPE)
    drawn = sampling_work(PROGRAM, SHAPE, PLAN, 25, 10)
    assert (drawn.calls, drawn.numbers) == (3 * 10, 250 * numbers(PROGRAM, SHAPE))
    guided = sampling_work(PROGRAM, SHAPE, PLAN.with_guidance(2.0), 25, 10)
    assert (guided.calls, guided.numbers) == (drawn.calls, 2 * drawn.numbers)


def test_there_is_a_length_from_which_on_compiling_pays():
    def auto(images: int) -> bool:
        return compiles("auto", COSTS, training_work(PROGRAM, SHAPE, images, 10))

    modes = [auto(int(images)) for images in np.geomspace(10, 1e7, 40)]
    turn = modes.index(True)
    assert turn > 0 and all(modes[turn:])
    assert compiles("auto", replace(COSTS, per_call=0.0, per_giga=0.0), Work(1, 10**9, 10**18, 0)) is False


def test_compiling_never_pays_where_its_slower_products_outweigh_what_it_saves():
    """However long the work: in large networks products grow with the square of the channels, numbers with them."""
    narrow, wide = (
        training_work(lower(UNetSpec(8, 1, 1, channels, (1, 2), 1, ())), (8, 8, 1), 10**9, 64) for channels in (32, 512)
    )
    assert compiles("auto", COSTS, narrow) and not compiles("auto", COSTS, wide)
    assert compiles("auto", replace(COSTS, per_tera=0.0), wide)


def test_a_saving_in_closed_form():
    work = Work(blocks=100, calls=50, numbers=10**12, products=3 * 10**12)
    assert work.saving(COSTS) == pytest.approx(0.5 + 20.0 - 1.5 - 10.0)


def test_what_is_said_is_done_whatever_the_work():
    much, little = Work(1, 10**9, 10**18, 1), Work(1, 1, 1, 1)
    for given in (True, False):
        assert compiles(given, COSTS, much) is compiles(given, COSTS, little, begun=not given) is given
    assert compiles("auto", COSTS, much) and not compiles("auto", COSTS, little)
    assert not compiles("auto", None, much) and not compiles("auto", COSTS, None)


def test_a_run_goes_on_in_the_mode_that_it_was_begun_in():
    much, little = Work(1, 10**9, 10**18, 1), Work(1, 1, 1, 1)
    assert compiles("auto", COSTS, little, begun=True) and not compiles("auto", COSTS, much, begun=False)


@pytest.mark.parametrize("given", ["yes", "xla", 1, None])
def test_another_mode_is_one_clear_line(given):
    with pytest.raises(DuetError, match=r"^backend\.compile: .* was given; it must be one of auto, true, false"):
        compiles(given, COSTS, None)


@pytest.mark.parametrize("value", [-1, float("nan"), "much"])
def test_costs_are_times(value):
    with pytest.raises(DuetError, match=rf"^backend\.costs: per_giga {value} was given; it is a time"):
        Costs.of({"per_block": 0.1, "per_call": 0.1, "per_giga": value, "per_tera": 0.1})


def test_costs_have_their_names():
    assert Costs.of(None) is None and Costs.of(vars(COSTS)) == COSTS
    with pytest.raises(
        DuetError, match=r"^backend\.costs: per_blok, .* were given; they are per_block, per_call, per_giga, per_tera"
    ):
        Costs.of({"per_blok": 0.1, "per_call": 0.1, "per_giga": 0.1, "per_tera": 0.1})
