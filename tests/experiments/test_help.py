"""`duet COMMAND --help`: every group and every key of a command, with one line about it."""

from __future__ import annotations

import importlib
import re

import pytest
from commands import call
from omegaconf import OmegaConf

from duet.cli.experiments import experiments
from experiments.config.help import command_groups, help_text
from experiments.config.schema import SCHEMAS
from experiments.config.suggest import known_keys

# Arguments of functions that a command passes itself.
PASSED = re.compile(r"\.(process|context|parts|t)$|timestep_sampling\.(schedule|first_t)$|\.schedule\.process$")


@pytest.fixture(scope="module", autouse=True)
def commands() -> None:
    """Import every command, which registers the options of its groups."""
    for command in experiments().values():
        importlib.import_module(command.module)


@pytest.mark.parametrize("command", sorted(experiments()))
def test_every_key_and_every_group_is_described(command: str) -> None:
    own, *groups = command_groups(command)
    keys = {key.name: key.text for group in (own, *groups) for key in group.keys}
    described = {name.replace("training.", "data.", 1): text for name, text in keys.items()}
    assert [name for name, text in described.items() if not text] == [], "describe these where they are defined"
    assert [group.name for group in groups if not group.text] == []
    names = {group.name.removeprefix("data@") for group in groups} | {"from"}
    parts = {f"process.{part}" for part in ("schedule", "weighting", "timestep_sampling")} | {"data.options"}
    known = {key for key in known_keys(command) if not PASSED.search(key) and not key.startswith("hydra.")}
    known -= {key for key in known if key.endswith(".name")} | names | parts | {"from_run"}
    shown = {*keys, *(name.rpartition(".")[0] for name in keys)}
    missing = {key for key in known if key not in shown and key not in names and key.partition(".")[0] != "training"}
    assert sorted(missing) == []


@pytest.mark.parametrize("command", sorted(experiments()))
def test_help_has_every_default_in_one_line_and_runs_nothing(command: str) -> None:
    module = experiments()[command].module
    code, out, err = call(module, "--help")
    assert (code, err) == (0, "") and out.startswith(importlib.import_module(module).__doc__.splitlines()[0])
    for name, node in OmegaConf.structured(SCHEMAS[command]).items_ex(resolve=False):
        if not OmegaConf.is_config(node) and name not in ("model", "source", "target", "process", "from_run"):
            assert re.search(rf"^  {name}(=\S.*)?  +\S", out, re.MULTILINE), name
    assert all(len(line) <= 160 for line in out.splitlines())


def test_help_of_a_group_shows_it_alone() -> None:
    code, out, _ = call("train", "--help", "sampler")
    assert code == 0 and "sampler=ddim" in out and "sampler.eta=0.0" in out and "trainer.batch" not in out
    code, out, err = call("train", "--help", "samplr")
    assert (code, out) == (2, "") and "Did you mean 'sampler'?" in err


def test_help_names_what_the_words_of_the_user_lead_to() -> None:
    text = help_text("train", "")
    for phrase in ("--config-dir DIR", "hydra.searchpath", "--cfg job", "--multirun"):
        assert phrase in text
    assert re.search(r"trainer\.batch=128 +images per step", text)
    assert re.search(r"experiment=NAME +a whole configuration", text)
