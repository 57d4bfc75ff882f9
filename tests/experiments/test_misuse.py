"""Keys of networks, objectives and optimisers that do not fit together: one line each, before anything is written."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest
from commands import call

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.optim import OPTIMISERS, make_optimiser
from diffusion_core.training.coupling import COUPLINGS, make_coupling
from diffusion_core.training.targets import METHODS, make_method
from experiments.config.suggest import key_hint
from experiments.runtime.teacher import load_teacher
from experiments.training.changes import first_difference

SMALL = ("data=digits", "trainer.images=16", "trainer.batch=8", "validation.part=none")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mean_flow", {"omega": "high"}, "objective.omega: 'high' was given; it must be a number"),
        ("mean_flow", {"interval": "all"}, "objective.interval: 'all' was given; it must be a list of numbers"),
        ("mean_flow", {"interval": [0, "end"]}, "it must be a list of numbers"),
        ("mean_flow", {"guidance": 1}, "objective.guidance: 1 was given; it must be true or false or null"),
        ("shortcut", {"steps": 8.5}, "objective.steps: 8.5 was given; it must be a whole number"),
        ("shortcut", {"omega": 2}, "option of objective 'shortcut': 'omega' was given"),
    ],
)
def test_a_value_of_another_type_is_refused_before_it_is_used(name, options, message):
    with pytest.raises(DuetError, match=re.escape(message)):
        make_method(name, **options)


@pytest.mark.parametrize("name", METHODS)
def test_every_option_of_every_objective_refuses_a_text(name):
    for field in fields(METHODS[name]):
        if "str" not in str(field.type):
            with pytest.raises(DuetError, match=f"objective.{field.name}: 'x' was given; it must be "):
                make_method(name, **{field.name: "x"})


@pytest.mark.parametrize("name", OPTIMISERS)
def test_every_number_of_every_optimiser_refuses_a_text(name):
    for field in fields(OPTIMISERS[name]):
        if "str" not in str(field.type):
            with pytest.raises(DuetError, match=f"optimiser.{field.name}: 'x' was given; it must be "):
                make_optimiser(name, **{field.name: "x"})


def test_an_option_where_there_is_none_is_said():
    with pytest.raises(DuetError, match="'regularisation' was given; there is none, so leave it out"):
        make_coupling("independent", regularisation=1.0)


@pytest.mark.parametrize(
    ("what", "given", "names", "meant"),
    [
        ("objective", "ECT", METHODS, "easy_consistency_tuning"),
        ("objective", "sCM", METHODS, "continuous_consistency_training"),
        ("objective", "progdist", METHODS, "progressive_distillation"),
        ("objective", "meanflow", METHODS, "mean_flow"),
        ("optimiser", "adamW", ("adam", "adamw"), "adamw"),
        ("process.coupling", "ot", COUPLINGS, "optimal_transport"),
        ("sampler", "onestep", ("consistency", "ddim"), "consistency"),
        ("model", "DiT-XL/2", ("dit_l_2", "dit_xl_2"), "dit_xl_2"),
    ],
)
def test_the_names_of_papers_and_libraries_are_understood(what, given, names, meant):
    assert str(one_of(what, given, names)).endswith(f"Did you mean {meant!r}?")


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("optimiser.momentum", "It is an option of optimiser=muon, optimiser=sgd."),
        ("objective.q", "It is an option of objective=easy_consistency_tuning."),
        ("objective.teacher", "It is an option of objective=consistency_distillation,"),
        ("model.patch_size", "It is an option of architecture 'dit',"),
        ("objective.omgea", "Did you mean objective.omega?"),
    ],
)
def test_an_option_of_another_choice_is_named_with_it(key, hint):
    assert hint in key_hint(key, "train")


def test_a_name_with_a_slash_is_a_name_and_no_folder():
    done = call("networks", "backend=torch", "model=DiT-XL/2")
    assert done.code == 2 and "model: 'DiT-XL/2' was given" in done.err and "Did you mean 'dit_xl_2'?" in done.err


def test_of_a_changed_objective_the_option_is_named():
    one = {"name": "mean_flow", "omega": 1.0, "interval": (0.0, 1.0)}
    assert first_difference("objective", one, {**one, "omega": 2.0}) == ("objective.omega", 1.0, 2.0)
    assert first_difference("objective", one, {"name": "shortcut"}) == ("objective", "mean_flow", "shortcut")
    assert first_difference("data.flip", False, True) == ("data.flip", False, True)


def test_a_teacher_that_is_missing_is_named_with_its_key(tmp_path):
    with pytest.raises(DuetError, match=r"^objective.teacher: checkpoint: .* does not exist"):
        load_teacher(str(tmp_path / "nowhere"))


@pytest.mark.backend
@pytest.mark.either
def test_a_network_of_two_times_is_not_trained_with_one(tmp_path, backend_name):
    done = call("train", f"backend={backend_name}", *SMALL, "model=dit_digits", "model.second_time=true",
                "process=v_cosine", f"hydra.run.dir={tmp_path / 'run'}")  # fmt: skip
    assert done.code == 2 and "regression was given for a network of two times" in done.err
    assert len(done.err.strip().splitlines()) == 1 and not (tmp_path / "run" / "config.yaml").exists()
