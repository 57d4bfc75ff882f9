"""Rung 2 notices blocks with another formula, as other code writes them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from planted import (
    FORMULAS,
    batch_norm_like,
    block_check,
    conv_transpose_like,
    dropout_like,
    filtered,
    gelu_like,
    layer_norm_like,
    plant_formula,
    zero_embedding_like,
)

# The faults concern comparisons, which both backends share, so one backend is enough.
pytestmark = [pytest.mark.backend, pytest.mark.either]

OTHER_FORMULAS: dict[str, tuple[str, Callable]] = {
    "GELU by tanh": ("GELU", partial(gelu_like, tanh=True)),
    "root of 2 through float32": ("GELU", partial(gelu_like, root=float(np.float32(np.sqrt(2.0))))),
    "eps of a vector's norm outside the root": ("LayerNorm of a vector", partial(layer_norm_like, eps_outside=True)),
    "eps of a layer norm outside the root": ("LayerNorm of channels", partial(layer_norm_like, eps_outside=True)),
    "channels of each row for those of a pixel": ("LayerNorm of channels", partial(layer_norm_like, axes=(2, 3))),
    "vectors of the whole batch": ("LayerNorm of a vector", partial(layer_norm_like, axes=(0, 1))),
    "pixels for images": ("LayerNorm of images", partial(layer_norm_like, axes=(3,))),
    "channels of an image one by one": ("LayerNorm of images", partial(layer_norm_like, axes=(1, 2))),
    "eps of a batch norm outside the root": ("BatchNorm", partial(batch_norm_like, eps_outside=True)),
    "statistics of the batch in evaluation": ("BatchNorm", partial(batch_norm_like, own=True)),
    "a vector's statistics of the batch in evaluation": ("BatchNorm of a vector", partial(batch_norm_like, own=True)),
    "dropout in evaluation": ("Dropout", partial(dropout_like, always=True)),
    "a vector's dropout in evaluation": ("Dropout of a vector", partial(dropout_like, always=True)),
    "cropped before alone": ("ConvTranspose 4x4 stride 2", partial(conv_transpose_like, before=2)),
    "cropped after alone": ("ConvTranspose 4x4 stride 2", partial(conv_transpose_like, before=0)),
    "cropped after alone, stride 1": (
        "ConvTranspose 3x3 stride 1 without bias", partial(conv_transpose_like, before=0)
    ),
    "the last row for no class": ("Embedding with zero", partial(zero_embedding_like, last=True)),
    "filter one pixel late": ("Resample down with a filter", partial(filtered, by=1)),
    "filter one pixel late on the way up": ("Resample up with a filter", partial(filtered, by=-1)),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted({name for name, _ in OTHER_FORMULAS.values()}))
def test_what_others_write_of_a_block_is_the_reference_where_nothing_is_changed(exact, name, monkeypatch):
    for formula in FORMULAS.values():
        plant_formula(monkeypatch, partial(formula))
    assert block_check(exact, name, {}).passed


@pytest.mark.parametrize("name, formula", OTHER_FORMULAS.values(), ids=OTHER_FORMULAS)
def test_rung_2_notices_another_formula(exact, name, formula, monkeypatch):
    plant_formula(monkeypatch, formula)
    assert not block_check(exact, name, {}).passed
