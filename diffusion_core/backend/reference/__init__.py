"""The executable specification: programs and plans in NumPy float64, without gradients.

One function per block kind defines what the kind computes, and the backends must agree with it. The code is written to
be read, not to be fast. Values are images ``b h w c``, tokens ``b n c`` or vectors ``b c``.

    table      the table of block functions, which blocks, tokens and magnitude fill
    network    a forward pass
    losses     the losses of a training batch
    target     the same for targets that need the network
    sampling   a sampler plan

Read network, losses and sampling first.
"""

from __future__ import annotations

from diffusion_core.backend.reference import blocks as _blocks  # noqa: F401  fills the table
from diffusion_core.backend.reference import magnitude as _magnitude  # noqa: F401  fills the table
from diffusion_core.backend.reference import tokens as _tokens  # noqa: F401  fills the table
from diffusion_core.backend.reference.losses import (
    activations,
    evaluation_pass,
    loss,
    noised,
    per_image_losses,
    training_pass,
)
from diffusion_core.backend.reference.network import block_function, forward, grad_log_prob
from diffusion_core.backend.reference.sampling import sample
from diffusion_core.backend.reference.table import BLOCK_FUNCTIONS

__all__ = [
    "BLOCK_FUNCTIONS",
    "activations",
    "block_function",
    "evaluation_pass",
    "forward",
    "grad_log_prob",
    "loss",
    "noised",
    "per_image_losses",
    "sample",
    "training_pass",
]
