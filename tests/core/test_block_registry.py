"""The registry of block kinds: what is not registered, or has no rule, raises an error that names it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from diffusion_core.backend import reference
from diffusion_core.common.errors import DuetError
from diffusion_core.convert import onnx
from diffusion_core.networks import Node, Program
from diffusion_core.networks.blocks import Resample, SiLU
from diffusion_core.networks.flops import multiply_adds, shapes
from diffusion_core.networks.registry import BLOCKS, Block, BlockRules, Elementwise, kind_of, register


@dataclass(frozen=True)
class Square(Elementwise):
    """x^2; registered by one test alone."""


@pytest.fixture
def square(monkeypatch):
    monkeypatch.setitem(BLOCKS, "Square", Square)
    return Program((Node("a", Square(), ("x",)),))


def test_a_kind_that_is_not_registered_is_refused_by_a_program():
    with pytest.raises(DuetError, match="program: node a: block Square: this kind is not registered; put @register"):
        Program((Node("a", Square(), ("x",)),))


def test_another_class_with_the_name_of_a_kind_is_not_that_kind():
    other = type("SiLU", (Elementwise,), {})
    with pytest.raises(DuetError, match="block SiLU: this kind is not registered"):
        kind_of(other())
    assert kind_of(SiLU()) == "SiLU"
    with pytest.raises(DuetError, match="block SiLU: a kind of this name is registered already"):
        register(other)


def test_a_kind_without_a_reference_function_or_an_emitter_raises(square):
    with pytest.raises(
        DuetError, match=r"block Square: it has no reference function; add one to .*reference/blocks.py"
    ):
        reference.forward(square, {}, np.zeros((1, 2, 2, 1)), [0.0], [0])
    pytest.importorskip("onnx")
    with pytest.raises(DuetError, match=r"block Square: it has no ONNX emitter; add one to .*onnx.py"):
        onnx.onnx_model(square, {}, (2, 2, 1))


def test_a_kind_must_state_its_shape_and_its_multiply_adds(square):
    assert shapes(square, (2, 2, 1)) == {"a": (2, 2, 1)} and multiply_adds(square, (2, 2, 1)) == 0

    class Silent(Block):
        pass

    with pytest.raises(TypeError, match=r"multiply_adds.*output_shape"):
        Silent()


def test_a_rule_is_entered_once_and_for_a_registered_kind():
    rules = BlockRules("rule", "here")
    rules(SiLU)(len)
    assert rules["SiLU"] is len
    with pytest.raises(DuetError, match="here: block SiLU has two entries as rule"):
        rules(SiLU)(len)
    with pytest.raises(DuetError, match="here: a rule is given for Square, which is no registered block kind"):
        rules(Square)(len)


@pytest.mark.parametrize("block", [
    Resample("bilinear"), Resample("bilinear_corners"), Resample("up", (1.0, 3.0, 3.0, 1.0), 1),
    Resample("down", (1.0, 3.0, 3.0, 1.0), 1), Resample("down", (1.0, 3.0, 3.0, 1.0)), Resample("up", (1.0, 1.0)),
])  # fmt: skip
def test_the_shape_rule_of_resample_is_that_of_its_matrix(block):
    for size in (6, 7, 16):
        assert block.matrix(size).shape == (block.new_size(size), size)
