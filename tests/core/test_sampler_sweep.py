"""Every sampler over the grid of its options: each case is a plan that samples finite numbers, or a clear refusal.

The options are those of the signatures, so a new option needs values here before the tests pass. Every pair of values
of any two options occurs in some case; the number of steps and the process are options too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from exact import NORMAL, exactly, execute

from diffusion_core.common.errors import DuetError
from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import make_schedule
from diffusion_core.sampling import SAMPLERS, make_plan

PROCESSES = {
    "vp": Process(make_schedule("linear", T=100), "eps"),
    "edm": Process(make_schedule("edm"), "edm"),
    "flow": Process(make_schedule("flow", T=100), "flow"),
    "zero terminal snr": Process(make_schedule("cosine", T=100, zero_terminal_snr=True), "v"),
    "next level": Process(make_schedule("linear", T=10), "next_level"),
    "straight": Process(make_schedule("flow_continuous", t_min=1e-12), "velocity"),
}
# Samplers of one kind of process only.
_STRAIGHT = ("sit_ode", "sit_sde", "rectified_flow", "mean_flow", "shortcut")
ONLY = {"next_level": "next level"} | dict.fromkeys(_STRAIGHT, "straight")
SPACINGS = [
    "leading", "linspace", "half_open", "trailing", None, "karras", "beta", "vp",
    {"name": "polyexponential", "rho": 2.0},
    {"name": "karras", "sigma_min": 0.02, "sigma_max": 40.0, "rho": 3.0}, [90, 40, 1],
]  # fmt: skip
# The edges and a middle value of every option; each is valid by itself, for some sampler and process.
VALUES: dict[str, list[Any]] = {
    "steps": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, None],
    "spacing": SPACINGS,
    "sigmas": [None, [15.0, 2.0, 0.3], np.array([15.0, 2.0, 0.3, 0.0])],
    "end": [None, "sigma_min", 0.2, 0],
    "clip": [None, 1.0, 0.5],
    "order": [1, 2, 3, 4],
    "predictor": [1, 2, 3, 4],
    "corrector": [0, 1, 2, 3, 4],
    "eta": [0.0, 0.3, 1.0, 1.7],
    "s_noise": [0.0, 0.9, 1.0, 1.1],
    "s_churn": [0.0, 1.0, 40.0],
    "s_min": [0.0, 0.05],
    "s_max": [None, 10.0],
    "shift": [0.3, 1.0, 5.0],
    "variable": ["flow", "ratio", "t", "vp", "ve", {"name": "vp", "beta_min": 0.0, "beta_max": 10.0}],
    "variance": ["fixed_small", "fixed_large", "learned", "learned_range"],
    "last_t": [0, 1, 5],
    "use_clipped_model_output": [False, True],
    "r": [0.2, 0.5, 1.0],
    "alpha": [0.3, 0.5, 1.0],
    "sde": [False, True],
    "solver_type": ["midpoint", "heun", "exact", "bh1", "bh2"],
    "lower_order_final": [None, False, True],
    "predict": ["x0", "eps"],
    "between": ["log_snr", "visited"],
    "middle": ["same", "exact"],
    "spaced": ["rows", "steps"],
    "correct_from": [None, 1, 3],
    "tau": [0.0, 0.4, 1.0, 1.6],
    "noisy": [None, [0.05, 5.0]],
    "jump": [1, 2, 5],
    "resamples": [1, 3],
    "restarts": [[], [{"low": 0.06, "high": 0.3, "steps": 2, "times": 2}], [{"low": 0.4, "high": 2.0}],
                 [{"low": 0.1, "high": 1.0, "times": 2}, {"low": 0.5, "high": 3.0}]],
    "rho": [1.0, 7.0],
    "ask": ["next", "current"],
    "method": ["euler", "heun"],
    "form": ["constant", "sbdm", "sigma", "linear", "decreasing", "increasing-decreasing"],
    "norm": [0.0, 0.7],
    "last_step": [None, "mean", "tweedie", "euler"],
    "last_step_size": [0.04, 0.3],
    "eps": [None, 0.0, 0.01],
    "boundary": [None, 0.0, 0.001],
    "times": [None, [0.9, 0.3], [1.0]],
    "noise": [0.0, 0.5],
}  # fmt: skip
# Values that no sampler takes.
REFUSED: dict[str, list[Any]] = {
    "steps": [0, -1, 2.5, True, "many"],
    "spacing": ["karas", [1, 40, 90], {"name": "karras", "sigma_min": 90.0, "sigma_max": 1.0}, {"rho": 7.0}, [], 5],
    "sigmas": [[], [1.0, 2.0], [1.0, 1.0], [2.0, -1.0], [np.nan], [[2.0, 1.0]], [1e9, 1.0], 3.0, ["a"], [0.0]],
    "end": ["sigma_max", -0.1, 1e9, np.nan, True, [0.1], 1e-12],
    "clip": [0.0, -1.0, np.nan],
    "order": [0, 5, 1.5],
    "predictor": [0, 5],
    "corrector": [-1, 5],
    "eta": [-0.1, np.nan],
    "s_noise": [-0.1, np.inf],
    "s_churn": [-1.0, np.inf],
    "s_min": [-1.0],
    "s_max": [0.0, -1.0],
    "shift": [0.0, np.inf],
    "variable": ["angle"],
    "variance": ["large"],
    "last_t": [-1, 100],
    "use_clipped_model_output": ["yes"],
    "r": [0.0, 1.5, np.nan],
    "alpha": [0.0, 1.5, np.nan],
    "sde": ["yes"],
    "solver_type": ["bh3"],
    "lower_order_final": ["yes"],
    "predict": ["v"],
    "between": ["even"],
    "middle": ["other"],
    "spaced": ["evenly"],
    "correct_from": [0, -1],
    "tau": [-1.0, np.inf],
    "noisy": [[5.0, 0.05], [1.0], 3.0],
    "jump": [0, 100],
    "resamples": [0],
    "restarts": [[{"low": 2.0, "high": 1.0}], [1.0], [{"low": 0.1, "high": 1.0, "times": 0}], [{"low": 0.1}]],
    "rho": [0.0, -1.0],
    "ask": ["previous"],
    "method": ["dopri5"],
    "form": ["sigmas"],
    "norm": [-1.0, np.inf],
    "last_step": ["median"],
    "last_step_size": [0.0, 1.0],
    "eps": [-0.1, 1.5],
    "boundary": [-0.1, 1e9],
    "noise": [-1.0, np.inf],
    "times": [[0.3, 0.9], [2.0], []],
}  # fmt: skip


def options_of(name: str) -> dict[str, list[Any]]:
    """Return the values of every option of a sampler, the process among them."""
    parameters = list(inspect.signature(SAMPLERS[name]).parameters)[1:]
    processes = [ONLY[name]] if name in ONLY else [key for key in PROCESSES if key not in ONLY.values()]
    return {"process": processes} | {option: VALUES[option] for option in dict.fromkeys([*parameters, "sigmas", "end"])}


def sweep(options: Mapping[str, list[Any]], attempt: Callable[[dict[str, Any]], bool]) -> int:
    """Attempt cases until every pair of values has occurred in one that is not refused; return how many were plans.

    A pair that is refused twice, in different cases, is given up.
    """
    rng = np.random.default_rng(0)
    pairs = ((a, i, b, j) for a, b in combinations(options, 2) for i in range(len(options[a]))
             for j in range(len(options[b])))  # fmt: skip
    missing, plans = dict.fromkeys(pairs, 0), 0
    while missing:
        a, i, b, j = pair = next(iter(missing))
        chosen = {name: int(rng.integers(len(values))) for name, values in options.items()} | {a: i, b: j}
        missing[pair] += 1
        if attempt({name: options[name][k] for name, k in chosen.items()}):
            plans += 1
            for p, q in combinations(chosen, 2):
                missing.pop((p, chosen[p], q, chosen[q]), None)
        elif missing[pair] == 2:
            del missing[pair]
    return plans


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_combination_of_options_is_a_plan_or_a_refusal(name):
    z = np.random.default_rng(0).standard_normal((1000, 3))

    def attempt(options: dict[str, Any]) -> bool:
        case = dict(options)
        try:
            plan = make_plan(PROCESSES[options.pop("process")], name, **options)
        except DuetError as error:
            # What is refused is an option, by its name, not a plan that turned out to be wrong.
            assert "not finite" not in str(error) and "does not lead" not in str(error), (name, case, str(error))
            return False
        except Exception as error:
            raise AssertionError(f"{name} with {case} ended in {error!r}") from error
        # A plan refuses tables that are not finite. What it samples is finite too, for one point and for a normal.
        start = plan.start_scale * np.array([-2.0, 0.3, 1.5])
        estimate = exactly(plan, NORMAL) if plan.rows % 2 else lambda row, x: 0.3 + 0.0 * x
        assert np.all(np.isfinite(execute(plan, start, estimate, noise=lambda row: z[row]))), (name, case)
        return True

    assert sweep(options_of(name), attempt) >= 1


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_value_that_no_sampler_takes_is_refused(name):
    process = PROCESSES[ONLY.get(name, "vp")]
    for option in options_of(name):
        for value in REFUSED.get(option, ()):
            needed = {"steps": 10} if option == "jump" else {}
            with pytest.raises(DuetError):
                make_plan(process, name, **{**needed, option: value})
                pytest.fail(f"{name} took {option}={value!r}")
