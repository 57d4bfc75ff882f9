"""The examples in the docstrings of the core run and print what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import diffusion_core

MODULES = sorted(module.name for module in pkgutil.walk_packages(diffusion_core.__path__, "diffusion_core."))


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_print_what_they_say(name):
    results = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.failed == 0
