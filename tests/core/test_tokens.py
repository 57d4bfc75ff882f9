"""Tokens: what the block kinds make of them, which values they refuse, and that older programs keep their hashes."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion_core.backend import reference
from diffusion_core.common.errors import DuetError
from diffusion_core.networks import Node, Program
from diffusion_core.networks.blocks import (
    GELU,
    Add,
    BatchNorm,
    Concat,
    Conv,
    GroupNorm,
    LayerNorm,
    Linear,
    Modulate,
    Upsample,
)
from diffusion_core.networks.blocks.tokens import (
    ConcatTokens,
    CrossAttention,
    LearnedPositions,
    Patchify,
    SinePositions,
    Slice,
    Unpatchify,
    sine_table,
)
from diffusion_core.networks.flops import multiply_adds, shapes

IMAGE = np.arange(2 * 4 * 6 * 3, dtype=np.float64).reshape(2, 4, 6, 3)


def value(block, *inputs):
    return reference.BLOCK_FUNCTIONS[type(block).__name__](block, *inputs)


def test_a_token_holds_its_patch_row_by_row_with_the_channel_fastest():
    tokens = value(Patchify(2), IMAGE)
    assert tokens.shape == (2, 6, 12)
    # The fifth token is the patch of rows 2 and 3, columns 2 and 3.
    np.testing.assert_array_equal(tokens[1, 4], IMAGE[1, 2:4, 2:4].ravel())
    np.testing.assert_array_equal(value(Unpatchify(2, 2, 3), tokens), IMAGE)


def test_the_table_of_positions_has_the_column_first():
    table = sine_table(2, 3, 8)
    # Token 4 is row 1, column 1; token 3 is row 1, column 0; the frequencies are 1 and 1/100.
    one, zero = [np.sin(1), np.sin(0.01), np.cos(1), np.cos(0.01)], [0, 0, 1, 1]
    np.testing.assert_allclose(table[4], [*one, *one], atol=1e-7)
    np.testing.assert_allclose(table[3], [*zero, *one], atol=1e-7)
    np.testing.assert_array_equal(table, table.astype(np.float32))


def test_a_fixed_table_is_no_trained_parameter_and_is_given():
    program = Program((Node("t", Patchify(2), ("x",)), Node("p", SinePositions(2, 2, 4), ("t",))))
    assert [(p.name, p.trained) for p in program.parameters] == [("p.table", False)] and program.trained == ()


@pytest.mark.parametrize(
    ("block", "inputs", "message"),
    [
        (Patchify(3), [(4, 6, 3)], "model.patch_size: 3 was given, which does not divide an image of 4 x 6 pixels"),
        (Patchify(2), [(6, 3)], "block Patchify: a value of the shape (6, 3) was given; it reads images"),
        (Unpatchify(2, 2, 2), [(6, 12)], "it reads 2 x 2 tokens of a multiple of 4 channels"),
        (Slice("tokens", 4, 3), [(6, 3)], "block Slice: tokens 4 to 7 were given; the value has 6"),
        (Slice("tokens", 0, 1), [(6,)], "block Slice: a value of the shape (6,) was given; it reads tokens"),
        (ConcatTokens(), [(6, 3), (2, 4)], "tokens of 3 and of 4 channels were given"),
        (LearnedPositions(5, 3, 1.0), [(6, 3)], "its table has the shape (5, 3)"),
        (CrossAttention(4, 2), [(6, 4), (5, 4)], "k and v of 8 together"),
        (Linear(4, 2, True, 1.0), [(2, 2, 4)], "block Linear: a value of the shape (2, 2, 4) was given"),
        (Linear(4, 2, True, 1.0), [(6, 5)], "it reads vectors (4,) or tokens (n, 4)"),
        (GroupNorm(4, 2, 1e-5), [(6, 4)], "block GroupNorm: tokens of the shape (6, 4) were given"),
        (BatchNorm(4, 1e-5, 0.1), [(6, 4)], "block BatchNorm: tokens of the shape (6, 4) were given"),
        (LayerNorm((4, 2, 2), 1e-5), [(6, 4)], "block LayerNorm: a value of the shape (6, 4) was given"),
        (Conv(4, 4, 1, 1, (0,) * 4, True, 1.0), [(6, 4)], "block Conv: a value of the shape (6, 4) was given"),
        (Upsample(), [(6, 4)], "block Upsample: a value of the shape (6, 4) was given"),
        (Add(1.0), [(6, 4), (2, 3, 4)], "block Add: values of the shapes (6, 4) and (2, 3, 4) were given"),
        (Concat(), [(6, 4), (5, 4)], "block Concat: values of the shapes (6, 4) and (5, 4) were given"),
    ],
)
def test_a_value_of_another_form_is_refused(block, inputs, message):
    with pytest.raises(DuetError) as caught:
        block.output_shape(*inputs)
    assert message in str(caught.value)


def test_a_table_needs_a_multiple_of_four_channels_and_a_slice_an_axis():
    with pytest.raises(DuetError, match=r"model.channels: 6 was given.*multiple of 4"):
        SinePositions(2, 2, 6)
    with pytest.raises(DuetError, match="it must be one of tokens, channels"):
        Slice("rows", 0, 1)


def test_multiply_adds_of_tokens():
    program = Program(
        (
            Node("t", Patchify(2), ("x",)),
            Node("q", Linear(12, 8, True, 1.0), ("t",)),
            Node("kv", Linear(12, 16, True, 1.0), ("t",)),
            Node("attend", CrossAttention(8, 2), ("q", "kv")),
        )
    )
    assert shapes(program, (4, 6, 3))["attend"] == (6, 8)
    assert multiply_adds(program, (4, 6, 3)) == 6 * 12 * 24 + 2 * 6 * 6 * 8


def test_an_option_that_came_later_is_not_mentioned_at_its_default():
    """Otherwise the hash of every older program would change."""
    assert GELU().describe() == {} and GELU(tanh=True).describe() == {"tanh": True}
    assert Modulate(4).describe() == {"channels": 4}
    assert Modulate(4, shift_first=True).describe() == {"channels": 4, "shift_first": True}
    assert LayerNorm((4,), 1e-5).describe() == {"shape": (4,), "eps": 1e-5}
    assert LayerNorm((4,), 1e-5, affine=False).describe()["affine"] is False
