"""The samplers by the names that papers print, each with what is known of it: what tables and pictures go through."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["METHODS", "Method"]


@dataclass(frozen=True)
class Method:
    """A sampler with the options that make it one method; the number of steps and the grid are left to choose.

    Args:
        sampler: name in `SAMPLERS`.
        order: of convergence to the probability flow, or, of a stochastic one, of the moments of its samples.
        options: of the sampler.
        stochastic: whether it draws fresh noise.
        evaluations: of the network per step; of two, the last step has one.
        warm_up: evaluations at the start on top of these.
        needs_signal: whether its first level must have some, alpha > 0.
    """

    sampler: str
    order: int
    options: Mapping[str, object] = field(default_factory=dict)
    stochastic: bool = False
    evaluations: int = 1
    warm_up: int = 0
    needs_signal: bool = False


METHODS: dict[str, Method] = {
    "DDPM": Method("ddpm", 1, stochastic=True),
    "DDIM": Method("ddim", 1),
    "DDIM, eta 0.5": Method("ddim", 1, {"eta": 0.5}, stochastic=True),
    "DPM-Solver++ 2M": Method("dpm_solver", 2, needs_signal=True),
    "DPM-Solver++ 3M, exact": Method("dpm_solver", 3, {"order": 3, "solver_type": "exact"}, needs_signal=True),
    "DPM-Solver++ 2M SDE": Method("dpm_solver", 2, {"sde": True}, stochastic=True, needs_signal=True),
    "DPM-Solver++ 3M": Method("dpm_solver", 2, {"order": 3}, needs_signal=True),
    "DPM-Solver++ 3M SDE": Method("dpm_solver", 2, {"order": 3, "sde": True}, stochastic=True, needs_signal=True),
    "DPM-Solver 2M": Method("dpm_solver", 2, {"predict": "eps"}, needs_signal=True),
    "DPM-Solver++ 2S": Method("dpm_solver_singlestep", 2, {"order": 2}, needs_signal=True),
    "DPM-Solver++ 3S": Method("dpm_solver_singlestep", 3, {"order": 3}, needs_signal=True),
    "DPM-Solver-2": Method("dpm_solver_singlestep", 2, {"order": 2, "predict": "eps"}, needs_signal=True),
    "DPM-Solver-3": Method("dpm_solver_singlestep", 3, {"order": 3, "predict": "eps"}, needs_signal=True),
    "DPM-Solver++ 2S ancestral": Method("dpmpp_2s_ancestral", 2, stochastic=True, evaluations=2, needs_signal=True),
    "DPM-Solver++ SDE": Method("dpmpp_sde", 2, stochastic=True, evaluations=2, needs_signal=True),
    "DEIS-2": Method("deis", 2, {"order": 2}, needs_signal=True),
    "DEIS-3": Method("deis", 3, {"order": 3}, needs_signal=True),
    "PLMS": Method("plms", 2, warm_up=1, needs_signal=True),
    "PNDM": Method("pndm", 2, warm_up=9, needs_signal=True),
    "UniPC-1": Method("unipc", 2, {"order": 1}, needs_signal=True),
    "UniPC-2": Method("unipc", 3, {"order": 2}, needs_signal=True),
    # The step at its start leaves it at third order; with values from before it would be of fourth.
    "UniPC-3": Method("unipc", 3, {"order": 3}, needs_signal=True),
    "UniPC-2, eps": Method("unipc", 3, {"order": 2, "predict": "eps"}, needs_signal=True),
    "SA-Solver, tau 0": Method("sa_solver", 2, {"tau": 0.0}, needs_signal=True),
    "SA-Solver": Method("sa_solver", 2, stochastic=True, needs_signal=True),
    "Euler": Method("euler", 1),
    "Euler ancestral": Method("euler_ancestral", 1, stochastic=True),
    "Heun": Method("heun", 2, evaluations=2, needs_signal=True),
    "Heun, churn": Method("heun", 1, {"s_churn": 20.0}, stochastic=True, evaluations=2, needs_signal=True),
    "DPM2": Method("dpm2", 2, evaluations=2, needs_signal=True),
    "DPM2 ancestral": Method("dpm2_ancestral", 1, stochastic=True, evaluations=2, needs_signal=True),
    "LMS-2": Method("lms", 2, {"order": 2}, needs_signal=True),
    "LMS-3": Method("lms", 3, {"order": 3}, needs_signal=True),
    "LMS-4": Method("lms", 4, {"order": 4}, needs_signal=True),
    "Adams-Bashforth 1, flow": Method("adams_bashforth", 1, {"order": 1}),
    "Adams-Bashforth 2, flow": Method("adams_bashforth", 2, {"order": 2}),
    "Adams-Bashforth 3, flow": Method("adams_bashforth", 3, {"order": 3}),
    "Adams-Bashforth 4, flow": Method("adams_bashforth", 4, {"order": 4}),
    "Flow Euler": Method("flow_euler", 1),
    "Flow Heun": Method("flow_heun", 2, evaluations=2),
    "Restart": Method(
        "restart",
        2,
        {"restarts": [{"low": 0.4, "high": 2.0, "times": 2}]},
        stochastic=True,
        evaluations=2,
        needs_signal=True,
    ),
}
