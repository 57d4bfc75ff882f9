"""The sampler plans of rung 6: every method, and every column of a plan."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.random import Stream
from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import make_schedule
from diffusion_core.parity.cases.networks import PARITY
from diffusion_core.parity.cases.processes import EDM, FEW_LEVELS, PROCESS, SEED, SIT
from diffusion_core.sampling import METHODS, SamplerPlan, make_plan

__all__ = [
    "FEW_PLANS",
    "GUIDED",
    "LEARNED",
    "MEASURED_PLANS",
    "PLANS",
    "SHORT",
]


def _recurrence(rows: int = 8) -> SamplerPlan:
    """Return a plan that uses every feature of an executor: two registers, three estimates, and all columns varying."""
    t = np.linspace(900, 20, rows).astype(np.int64)
    alpha, sigma = PARITY.process.schedule(t)

    def scattered(name: str, *shape: int) -> NDArray[np.float64]:
        return Stream(SEED, f"parity/plan/{name}").normal(np.arange(rows), shape)

    noise, guidance_scale = 0.2 * scattered("noise", 2), 1.0 + 0.5 * scattered("guidance")
    noise[3], guidance_scale[5] = 0.0, 1.0  # a row without noise, and one without guidance
    return SamplerPlan(
        name=f"recurrence-{rows}",
        t=t,
        alpha=np.append(alpha, 1.0),
        sigma=np.append(sigma, 0.0),
        c_skip=0.5 + 0.1 * scattered("c_skip"),
        c_out=0.3 + 0.1 * scattered("c_out"),
        c_in=1.0 + 0.1 * scattered("c_in"),
        c_noise=t + 0.5,
        state=0.4 * scattered("state", 2, 2),
        denoised=0.3 * scattered("denoised", 2, 3),
        noise=noise,
        guidance_scale=guidance_scale,
        start_scale=1.2,
        preserves="nothing",
    )


# The plans that sample every network. They start at t = 750: at t = 999 an untrained eps, with its rounding, would be
# divided by alpha = 0.006. Networks with twice the channels of their images are also sampled with a learned variance.
SHORT = make_plan(PROCESS, "ddim", steps=4, eta=0.5)
LEARNED = make_plan(PROCESS, "ddpm", steps=4, variance="learned_range")
# All kinds of guidance: a guide, a classifier, and inpainting of a known half.
GUIDED = make_plan(PROCESS, "ddim", steps=4, eta=0.5, guidance_scale=2.5, rescale=0.7, threshold=0.9, classifier=0.5)


MEASURED_PLANS: dict[str, SamplerPlan] = {
    "mmps": make_plan(FEW_LEVELS, "dpm_solver", steps=3, guidance_scale=1.5),
    "pigdm": make_plan(FEW_LEVELS, "ddim", steps=3, eta=0.5, clip=None),
    "dps": make_plan(FEW_LEVELS, "ddim", steps=3, eta=0.5, guidance_scale=1.5),
}

PLANS: dict[str, SamplerPlan] = {
    "DDPM-1000": make_plan(PARITY.process, "ddpm"),
    "DDIM-50": make_plan(PARITY.process, "ddim", steps=50),
    "DDIM-20, eta 0.5, guidance 2": make_plan(
        PARITY.process, "ddim", steps=20, eta=0.5, spacing="trailing", guidance_scale=2.0
    ),
    "DDIM-10, Karras, guidance 3 rescaled, dynamic threshold": make_plan(
        PARITY.process,
        "ddim",
        steps=10,
        spacing="karras",
        guidance_scale=3.0,
        interval=[0.1, 20.0],
        rescale=0.7,
        threshold=0.95,
    ),
    "DDIM-10, eps of the network, dynamic threshold at most 2": make_plan(
        PARITY.process,
        "ddim",
        steps=10,
        eta=0.5,
        use_clipped_model_output=False,
        threshold=0.9,
        threshold_max=2.0,
        guidance_scale=2.0,
    ),
    "DDIM inversion-8, clipped": make_plan(
        PARITY.process, "ddim_inversion", steps=8, clip=1.0, use_clipped_model_output=False
    ),
    "DDPM-12 of a respaced process": make_plan(
        Process(make_schedule("linear", respacing=[4, 4, 4]), PARITY.process.prediction), "ddpm"
    ),
    "flow Euler-8, velocity of linear_vp": make_plan(
        Process(make_schedule("linear_vp"), "velocity", 1000.0), "flow_euler", steps=8, clip=1.0
    ),
    "DDPM-20, large variance": make_plan(
        PARITY.process, "ddpm", steps=20, variance="fixed_large", spacing="linspace"
    ).with_value_range((-1.5, 1.0)),
    "DPM-Solver++ 2M-20": make_plan(PARITY.process, "dpm_solver", steps=20),
    "DPM-Solver++ 3M-SDE-20": make_plan(PARITY.process, "dpm_solver", steps=20, order=3, sde=True),
    "RePaint-10, twice each 3": make_plan(PARITY.process, "repaint", steps=10, jump=3, resamples=2, guidance_scale=2.0),
    "DPM-Solver++ 3M-SDE-8, eta 0.5, of sigmas to a noisy end": make_plan(
        PARITY.process,
        "dpm_solver",
        order=3,
        sde=True,
        solver_type="heun",
        eta=0.5,
        s_noise=1.1,
        sigmas=[80.0, 30.0, 12.0, 5.0, 2.0, 0.8, 0.3, 0.1],
        end="sigma_min",
    ),
    "DPM-Solver++ SDE-6, r 0.3": make_plan(PARITY.process, "dpmpp_sde", steps=6, r=0.3, s_noise=1.05, clip=1.0),
    "Heun-8 in the time of the VP SDE": make_plan(PARITY.process, "heun", steps=8, variable="vp", clip=1.0),
    "EDM, DPM-Solver++ 2M-8, Karras": make_plan(EDM, "dpm_solver", steps=8, spacing="karras"),
    "SiT, Heun-4 with its last evaluation at clean data": make_plan(SIT, "sit_ode", steps=4, method="heun"),
    "SiT, SDE-6 by Heun, guidance 2": make_plan(
        SIT, "sit_sde", steps=6, method="heun", last_step="tweedie", guidance_scale=2.0
    ),
    "two registers, three estimates": _recurrence(),
}
# Every method by name, with about 16 evaluations: with fewer, high orders extrapolate so far that rounding grows. All
# have a clip, since at t = 999 the estimates of an untrained network are in the hundreds, with rounding to match.
# LMS-3 has 15: with 16, one of its 512 float32 values lies on the border between two uint8 values. DPM-Solver-fast with
# noise has 14: with 16 its last step but one is short and of first order, after one that enlarges rounding to 1.3e-4.
_EVALUATIONS = {name: 16 for name in METHODS} | {"LMS-3": 15, "DPM-Solver-fast, ancestral": 14}
PLANS |= {
    f"{name} in {_EVALUATIONS[name] // method.evaluations} steps": make_plan(
        PARITY.process, method.sampler, steps=_EVALUATIONS[name] // method.evaluations, clip=1.0, **method.options
    )
    for name, method in METHODS.items()
}


# For a quick climb: the plan whose every state is compared, and the plan that uses all columns.
FEW_PLANS = ("DDIM-50", "two registers, three estimates")
