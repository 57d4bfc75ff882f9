"""The families of samplers: for each, one default of where its steps lie and of the bound of its estimates.

A sampler takes the defaults of its family in its signature, so that a family has them in one place, and docs/methods.md
a table of them. A configuration in configs/sampler states its own values, and may deviate.
"""

from __future__ import annotations

from dataclasses import dataclass

from diffusion_core.sampling.spacing import Spacing

__all__ = [
    "FAMILIES",
    "FAST",
    "FLOW",
    "INVERSION",
    "NETWORK",
    "OWN_TIMES",
    "RATIO",
    "SCHEDULERS",
    "TIMESTEPS",
    "Family",
]


@dataclass(frozen=True)
class Family:
    """Samplers with the same defaults.

    Args:
        title: what they are.
        spacing: where their steps lie, see `grid`.
        clip: bound of the estimates, see `SamplerPlan`.
        source: whose defaults they are, in Markdown.
    """

    title: str
    spacing: Spacing
    clip: float | None
    source: str


TIMESTEPS = Family(
    "DDPM, DDIM and pseudo numerical methods",
    None,
    1.0,
    "DDPM, improved and guided diffusion: strided timesteps, estimates clipped to the range of the data",
)
SCHEDULERS = Family(
    "Euler and exponential integrators",
    "linspace",
    1.0,
    "`timestep_spacing` of these schedulers in diffusers; they do not clip, and for latent images use `clip=null`",
)
RATIO = Family(
    "EDM and k-diffusion, in sigma/alpha", "karras", None, "EDM's generate.py; its networks are not clipped there"
)
FAST = Family("DPM-Solver-fast", "log_snr", None, "DPM-Solver, section 3.4; k-diffusion")
FLOW = Family("flow matching", "linspace", None, "Lipman et al. 2022; Esser et al. 2024")
INVERSION = Family(
    "inversion", None, None, "Song et al. 2020, section 4.3; with a clip DDIM does not return to the image"
)
NETWORK = Family("the network's own step", None, None, "")
OWN_TIMES = Family(
    "steps in the time of a straight line or of a path", None, None, "the code of each; their networks are not clipped"
)
FAMILIES = (TIMESTEPS, SCHEDULERS, RATIO, FAST, FLOW, INVERSION, NETWORK, OWN_TIMES)
