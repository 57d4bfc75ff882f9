"""The measurements of each rung of the ladder, as functions of a backend and the record that they fill."""

from __future__ import annotations

from diffusion_core.parity.rungs.forward_pass import (
    blocks,
    compute_gradients,
    forward_and_sample,
    forward_error,
    networks,
    training_errors,
)
from diffusion_core.parity.rungs.lock_step import (
    AVERAGES,
    BATCH,
    HANDOVER_STEP,
    STEPS,
    continue_training,
    edm2_training,
    state_arrays,
    training,
    training_step,
    validation_losses,
)
from diffusion_core.parity.rungs.sampling_runs import (
    SAMPLES,
    guidance,
    likelihoods,
    posterior,
    reference_images,
    sample_floats,
    sample_images,
    sample_inputs,
    sampler_update,
    sampling,
)
from diffusion_core.parity.rungs.training_pass import (
    forward_noising,
    losses,
    micro_batches,
    tables,
    targets,
    validation_error,
)
from diffusion_core.parity.rungs.updates import forced_normalisation, optimiser, optimisers, prescribed_gradients

__all__ = [
    "AVERAGES",
    "BATCH",
    "HANDOVER_STEP",
    "SAMPLES",
    "STEPS",
    "blocks",
    "compute_gradients",
    "continue_training",
    "edm2_training",
    "forced_normalisation",
    "forward_and_sample",
    "forward_error",
    "forward_noising",
    "guidance",
    "likelihoods",
    "losses",
    "micro_batches",
    "networks",
    "optimiser",
    "optimisers",
    "posterior",
    "prescribed_gradients",
    "reference_images",
    "sample_floats",
    "sample_images",
    "sample_inputs",
    "sampler_update",
    "sampling",
    "state_arrays",
    "tables",
    "targets",
    "training",
    "training_errors",
    "training_step",
    "validation_error",
    "validation_losses",
]
