"""How likely pictures are to a model: the variational bound, term by term, and the exact flow."""

from __future__ import annotations

from diffusion_core.likelihood.bound import Bound, variational_bound
from diffusion_core.likelihood.flow import FlowDensity, flow_density
from diffusion_core.likelihood.pixels import bits_per_dimension, dequantize, discretised_gaussian

__all__ = [
    "Bound",
    "FlowDensity",
    "bits_per_dimension",
    "dequantize",
    "discretised_gaussian",
    "flow_density",
    "variational_bound",
]
