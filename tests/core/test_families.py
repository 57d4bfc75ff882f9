"""The default spacing and clip of every sampler is that of its family, in Python, in configurations and in the docs."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import linear
from diffusion_core.sampling import DECLARATIONS, make_plan
from diffusion_core.sampling.declaration import families_table
from diffusion_core.sampling.families import FAMILIES, NETWORK, OWN_TIMES

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "sampler"
# Chosen against the family's default, for pixels or as another published example; docs/methods.md lists them.
DEVIATING = {
    "consistency": {"clip": 1.0},
    "ddpm_tutorial": {"clip": None},
    "dpm_solver_karras": {"spacing": {"name": "karras", "rho": 7.0}},
    "dpmpp_2s_ancestral": {"clip": 1.0},
    "dpmpp_sde": {"clip": 1.0},
}


@pytest.mark.parametrize("name", DECLARATIONS)
def test_every_sampler_has_the_defaults_of_its_family(name):
    family, parameters = DECLARATIONS[name].family, inspect.signature(DECLARATIONS[name].make).parameters
    assert family in FAMILIES
    # Where a step takes the output itself, and not an estimate of x_0, there is nothing to clip.
    assert "clip" in parameters or (family is OWN_TIMES and name in ("sit_ode", "sit_sde", "rectified_flow"))
    assert "clip" not in parameters or parameters["clip"].default == family.clip
    assert ("spacing" not in parameters) == (family in (NETWORK, OWN_TIMES))
    assert "spacing" not in parameters or parameters["spacing"].default == family.spacing


def test_no_two_families_have_the_same_name():
    assert len({family.title for family in FAMILIES}) == len(FAMILIES)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_configuration_deviates_from_its_family_only_where_that_is_known(path):
    options = yaml.safe_load(path.read_text())
    family = DECLARATIONS[options["name"]].family
    expected = {"spacing": family.spacing or "leading", "clip": family.clip}
    found = {key: options[key] for key in expected if key in options and options[key] != expected[key]}
    assert found == DEVIATING.get(path.stem, {})
    if "clip" in inspect.signature(DECLARATIONS[options["name"]].make).parameters:
        assert "clip" in options, "a configuration says whether it clips"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_configuration_has_every_option_of_its_sampler(path):
    """Hydra refuses keys that no file has, so an option that is missing there cannot be set on the command line."""
    options = yaml.safe_load(path.read_text())
    parameters = inspect.signature(DECLARATIONS[options["name"]].make).parameters
    assert parameters.keys() - {"process", "spacing", "end"} <= options.keys()


def test_leading_is_the_default_of_a_table():
    process = Process(linear(), "eps")
    np.testing.assert_array_equal(make_plan(process, "ddim").t, make_plan(process, "ddim", spacing="leading").t)


def test_the_table_lists_every_sampler_once_and_what_deviates():
    table = families_table({"mine": {"name": "heun", "spacing": "linspace", "clip": 1.0}})
    for name in DECLARATIONS:
        assert table.count(f"`{name}`") == 1
    assert "`mine`: spacing linspace, clip 1.0" in table
    with pytest.raises(AttributeError):
        replace(FAMILIES[0], title="other").clip = 2.0
