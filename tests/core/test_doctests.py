"""The examples in the docstrings of the core and of the Python interface run and print what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import diffusion_core
import duet.api
import duet.exercises

MODULES = [
    *sorted(
        module.name
        for package in (diffusion_core, duet.api, duet.exercises)
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    ),
    "experiments.features.kind",
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_print_what_they_say(name, tmp_path, monkeypatch):
    module = importlib.import_module(name)
    monkeypatch.chdir(tmp_path)  # an example may write files
    results = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.failed == 0
