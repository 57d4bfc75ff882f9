"""Building objects from a configuration, and the wording of errors."""

from __future__ import annotations

import pytest

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.common.registry import build


def mix(base: str, fraction: float, count: int = 2, name: str | None = None, fast: bool = False, any_=None) -> tuple:
    return base, fraction, count, name, fast, any_


REGISTRY = {"mix": mix, "make": lambda: 1}


def call(options, name="mix"):
    return build("thing", REGISTRY, name, options, "given")


def test_options_are_passed_and_defaults_kept():
    assert call({"fraction": 0.5}) == ("given", 0.5, 2, None, False, None)
    assert call({"fraction": 1, "count": 3, "name": "n", "fast": True, "any_": [1]}) == ("given", 1, 3, "n", True, [1])
    assert call({"fraction": 1, "name": None})[3] is None
    assert build("thing", REGISTRY, "make", {}) == 1


@pytest.mark.parametrize("options, words", [
    ({}, "thing 'mix': no fraction was given; it takes fraction, count, name, fast, any_"),
    ({"fraction": "half"}, "thing.fraction: 'half' was given; it must be a number"),
    ({"fraction": True}, "thing.fraction: True was given; it must be a number"),
    ({"fraction": None}, "thing.fraction: None was given; it must be a number"),
    ({"fraction": 1, "count": 1.0}, "thing.count: 1.0 was given; it must be a whole number"),
    ({"fraction": 1, "name": 3}, "thing.name: 3 was given; it must be text or null"),
    ({"fraction": 1, "fast": 1}, "thing.fast: 1 was given; it must be true or false"),
    ({"fraction": 1, "cuont": 1}, "option of thing 'mix': 'cuont' was given; it must be one of fraction, count, name, "
                               "fast, any_. Did you mean 'count'?"),
    ({"fraction": 1, "base": "x"}, "option of thing 'mix': 'base' was given"),
])  # fmt: skip
def test_wrong_options_are_refused_before_the_call(options, words):
    with pytest.raises(DuetError) as caught:
        call(options)
    assert str(caught.value).startswith(words) and "\n" not in str(caught.value)


def test_the_error_for_an_unknown_name_suggests_the_most_similar_one():
    with pytest.raises(
        DuetError, match=r"thing.name: 'mxi' was given; it must be one of mix, make\. Did you mean 'mix'"
    ):
        call({}, "mxi")
    assert "Did you mean" not in str(one_of("colour", "zzz", ["red", "green"]))
    assert str(one_of("colour", 3, [1, 2])) == "colour: 3 was given; it must be one of 1, 2."
