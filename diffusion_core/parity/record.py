"""The climb of one backend: every part of the ladder, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

from diffusion_core.backend.interface import Backend
from diffusion_core.parity import cases
from diffusion_core.parity.rungs.forward_pass import blocks, networks
from diffusion_core.parity.rungs.lock_step import STEPS, edm2_training, training
from diffusion_core.parity.rungs.sampling_runs import guidance, likelihoods, posterior, sampler_update, sampling
from diffusion_core.parity.rungs.training_pass import forward_noising, losses, micro_batches, tables, targets
from diffusion_core.parity.rungs.updates import forced_normalisation, optimiser, optimisers
from diffusion_core.parity.trace import Trace

__all__ = [
    "PARTS",
    "record",
]


# What each part of `record` measures, in order.
PARTS = {
    "tables": "tables and random streams (rung 0)",
    "forward_noising": "forward noising, targets and losses (rung 1)",
    "losses": "losses of more than a distance (rungs 1, 3, 4, 6)",
    "targets": "targets that need the network (rungs 0, 1, 4)",
    "blocks": "every block kind (rung 2)",
    "micro_batches": "micro-batches (rungs 1, 4)",
    "optimiser": "optimiser, clip and averages (rung 5)",
    "optimisers": "every optimiser (rung 5)",
    "forced_normalisation": "forced weight normalisation (rung 5)",
    "guidance": "guidance (rungs 3, 6)",
    "posterior": "posterior sampling (rung 6)",
    "likelihoods": "likelihoods (rungs 4, 6)",
    "training": "training in lock step (rung 7)",
    "edm2_training": "training of EDM2 in lock step (rung 7)",
    "sampler_update": "sampler updates (rung 6)",
    "networks": "networks, forward and gradients (rungs 3, 4, 6)",
    "sampling": "trajectories and images (rung 6)",
}


def record(
    backend: Backend,
    titles: Iterable[str] = tuple(cases.NETWORKS),
    plans: Iterable[str] = tuple(cases.PLANS),
    around: Callable[[str, Trace], AbstractContextManager[None]] = lambda part, trace: nullcontext(),
) -> Trace:
    """Climb the ladder with one backend, in the precision of its configuration.

    Args:
        backend: the backend.
        titles: titles of the networks.
        plans: names of the plans to sample with, including DDIM-50; the tables of all plans are recorded.
        around: returns a context manager for each part, given its description and the record so far.
    """
    trace = Trace(backend.describe().backend, backend.config.precision)
    selected = {name: cases.PLANS[name] for name in plans}
    measures: dict[str, Callable[[], None]] = {
        part.__name__: partial(part, backend, trace)
        for part in (
            tables, forward_noising, losses, targets, blocks, micro_batches, optimiser, optimisers,
            forced_normalisation, guidance, posterior, likelihoods, training, edm2_training,
        )
    }  # fmt: skip
    measures["sampler_update"] = lambda: sampler_update(backend, trace, selected)
    measures["networks"] = lambda: networks(backend, trace, titles)
    measures["sampling"] = lambda: sampling(backend, trace, trace.states[STEPS].ema, selected)
    for part, measure in measures.items():
        with around(PARTS[part], trace):
            measure()
    return trace
