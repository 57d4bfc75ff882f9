"""The likelihood of images under a model: the variational bound, term by term, and the exact flow.

May import: model, data, backend, diffusion and below; not training.
"""

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
