"""A problem as plain data, and back."""

from __future__ import annotations

import json

import pytest

from diffusion_core.errors import DuetError
from diffusion_core.problem import Problem
from diffusion_core.unet import UNetSpec

SPEC = UNetSpec(4, 1, 1, 4, (1, 2), 1, (2,), norm_groups=2)
PROBLEM = Problem(SPEC, {"name": "cosine", "T": 10}, "v")


def test_round_trip_through_json():
    back = Problem.from_dict(json.loads(json.dumps(PROBLEM.to_dict())))
    assert back == PROBLEM
    assert back.program.sha256 == PROBLEM.program.sha256
    assert back.process.prediction == "v" and back.process.schedule.name == "cosine"
    assert back.process.schedule.steps == 10


@pytest.mark.parametrize("schedule, prediction, words", [
    ({"name": "cosin"}, "v", "Did you mean 'cosine'"),
    ({"name": "flow"}, "eps", "alpha is 0"),
    ({"name": "linear"}, "w", "process.prediction"),
])  # fmt: skip
def test_mistakes_are_found_at_once(schedule, prediction, words):
    with pytest.raises(DuetError, match=words):
        Problem(SPEC, schedule, prediction)


def test_an_option_of_another_version_is_named():
    data = PROBLEM.to_dict()
    data["spec"]["chanels"] = 3
    with pytest.raises(DuetError, match=r"model: 'chanels' was given; .*Did you mean 'channels'"):
        Problem.from_dict(data)
