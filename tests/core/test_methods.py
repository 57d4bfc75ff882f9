"""Every method has the declared order, noise and number of evaluations, and finite plans for any number of steps."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from exact import NORMAL, fitted_order, moments

from diffusion_core.common.errors import DuetError
from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import cosine, flow, linear, make_schedule
from diffusion_core.sampling import DECLARATIONS, METHODS, SAMPLERS, Method, SamplerPlan, make_plan
from diffusion_core.sampling.declaration import sampler

# These use earlier slopes in the last row too.
MULTISTEP_TO_CLEAN_DATA = ("adams_bashforth", "lms", "plms", "pndm")
CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "sampler"

GRID = {"name": "log_snr", "sigma_min": 0.2, "sigma_max": 150.0}
PROCESSES = {"linear": Process(linear(), "v"), "cosine": Process(cosine(), "v"), "flow": Process(flow(), "v")}

CONTINUOUS = {"edm": Process(make_schedule("edm"), "edm"), "vp_sde": Process(make_schedule("vp_sde"), "eps")}


def plan(name: str, steps: int, process: str = "linear", spacing: object = GRID) -> SamplerPlan:
    method = METHODS[name]
    return make_plan(PROCESSES[process], method.sampler, steps=steps, spacing=spacing, clip=None, **method.options)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if not method.stochastic])
def test_the_error_falls_with_the_declared_order(name):
    # The first rows of a multistep method have lower orders, at the noisiest levels, where their errors are small.
    order = fitted_order(lambda steps: plan(name, steps), [128, 256, 512])
    # Their remainder, or terms of higher order, vanish with more steps and raise the fitted order slightly.
    assert METHODS[name].order - 0.2 < order < METHODS[name].order + 0.4


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.stochastic])
def test_mean_and_variance_of_samples_converge_with_the_declared_order(name):
    """Before the last row, mean and variance converge to (alpha m, alpha^2 s^2 + sigma^2) with the declared order."""
    (mean,), (std,) = NORMAL.means, NORMAL.stds
    wrong = []
    for steps in (64, 128, 256):
        one = plan(name, steps)
        found = np.array(moments(one, rows=one.rows - 1))
        alpha, sigma = one.alpha[-2], one.sigma[-2]
        wrong.append(np.abs(found - [alpha * mean, (alpha * std) ** 2 + sigma**2]).max())
    assert wrong[-1] < 0.02
    assert -np.polyfit(np.log([64, 128, 256]), np.log(wrong), 1)[0] > METHODS[name].order - 0.15


@pytest.mark.parametrize("name", METHODS)
def test_noise_and_evaluations_are_as_declared(name):
    method = METHODS[name]
    one = plan(name, 10)
    assert one.is_noisy.any() == method.stochastic
    if method.sampler != "restart":
        assert one.rows == 10 * method.evaluations - (method.evaluations - 1) + method.warm_up


@pytest.mark.parametrize("name", METHODS)
def test_plans_are_finite_for_any_number_of_steps(name):
    """A plan with tables that are not finite raises an error. The last row returns the estimate alone."""
    method = METHODS[name]
    for process in ("edm", "vp_sde"):
        for steps in (1, 2, 3, 4, 9, 50):
            make_plan(CONTINUOUS[process], method.sampler, steps=steps, clip=None, **method.options)
    for steps in range(1, 51):
        # The cosine's noisiest levels have almost no signal: it is tested for every number, the others for some.
        for process in PROCESSES if steps in (1, 2, 3, 4, 5, 10, 49, 50) else ["cosine"]:
            if not method.needs_signal or PROCESSES[process].schedule.alpha[-1] > 0:
                one = plan(name, steps, process, "linspace")
                assert one.alpha[-1] == 1 and one.sigma[-1] == 0 and not one.is_noisy[-1]
                if method.sampler not in MULTISTEP_TO_CLEAN_DATA:
                    assert not one.state[-1, 0].any()
                    np.testing.assert_allclose(one.denoised[-1, 0], np.eye(one.history)[0], rtol=0, atol=1e-15)


def test_every_sampler_covers_a_published_method():
    # next_level has no choice of steps, ddim_inversion goes upwards, repaint repeats another sampler's rows, and the
    # steps of SiT and rectified flow lie in a time of their own, see test_transport and test_reflow; samplers of few
    # steps do not follow the probability-flow ODE of an estimate.
    others = {
        "next_level", "ddim_inversion", "repaint", "sit_ode", "sit_sde", "rectified_flow", "consistency", "mean_flow",
        "shortcut",
    }  # fmt: skip
    assert {method.sampler for method in METHODS.values()} == SAMPLERS.keys() - others


def test_every_sampler_has_a_configuration():
    named = {re.search(r"^name: (\w+)", path.read_text(), re.MULTILINE)[1] for path in CONFIGS.glob("*.yaml")}
    assert named == SAMPLERS.keys()


def test_the_declared_number_of_evaluations_is_documented():
    for one in DECLARATIONS.values():
        for method in one.methods:
            extra = f" + {method.warm_up}" if method.warm_up else ""
            assert one.evaluations.startswith("2N - 1" if method.evaluations == 2 else f"N{extra}"), method.name


def test_a_name_cannot_be_declared_twice():
    def ddim() -> None: ...

    def another() -> None: ...

    with pytest.raises(DuetError, match=r"sampler ddim: .* declared twice"):
        sampler(paper="none")(ddim)
    with pytest.raises(DuetError, match=r"sampler another: .* declared twice"):
        sampler(Method("DDIM", order=1), paper="none")(another)
