"""One network at its full size: what a backend computes with it, to be held to what the other one computed.

The ladder climbs on small networks. This is the check that size changes nothing: output of a forward pass in
evaluation, and loss and gradient of a step of training, from the same weights and images. NumPy is left out;
it would take minutes and agrees with either where the small networks do.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from diffusion_core.backend.interface import Backend, TrainBatch, TrainerState
from diffusion_core.common.errors import DuetError
from diffusion_core.networks import NetworkSpec, lower
from diffusion_core.networks.weights import Weights
from diffusion_core.optim.adam import Adam
from diffusion_core.parity import cases
from diffusion_core.parity.compare import under
from diffusion_core.parity.ladder import Check, check, l2_of_all, relative, worst

__all__ = ["compare_network", "network_inputs", "record_network"]


def record_network(backend: Backend, spec: NetworkSpec, batch: int, gradients: bool) -> dict[str, NDArray]:
    """Output, and if wanted loss and gradients, for a batch of smooth noise."""
    program = lower(spec)
    weights, given = network_inputs(spec, backend.config.host_dtype, batch)
    network = backend.network(program, weights)
    arrays = {"output": network.forward(given.images, given.c_noise, given.label, given.features)}
    if gradients:
        del network
        trainer = backend.trainer(program, TrainerState.fresh(weights), Adam(), "mse")
        loss, found = trainer.gradients(given)
        arrays |= {"loss": np.float64(loss)} | {f"gradient/{name}": value for name, value in found.items()}
    return arrays | {"program": np.array(program.sha256)}


def network_inputs(spec: NetworkSpec, dtype: type, batch: int) -> tuple[Weights, TrainBatch]:
    """Initial weights where no layer is silent (what starts at zero or one is moved a little), and a batch of noise."""
    program = lower(spec)
    weights = cases.scattered_weights(program, scatter=0.02, dtype=dtype)
    return weights, cases.cast(cases.noise_batch(program, spec.image_shape, batch), dtype)


def compare_network(
    a: Mapping[str, NDArray], b: Mapping[str, NDArray], precision: str, pair: str
) -> tuple[list[Check], str | None]:
    """The checks of two records of one network, and the parameter whose gradients differ most.

    Raises:
        DuetError: if they are of two networks, or only one has gradients.
    """
    if str(a["program"]) != str(b["program"]):
        raise DuetError(f"the records are of two networks ({str(a['program'])[:12]} and {str(b['program'])[:12]})")
    if ("loss" in a) != ("loss" in b):
        raise DuetError("one record has gradients and the other has none; give gradients=false to both, or to none")
    checks = [check(3, "output", precision, pair, "network", relative(a["output"], b["output"]))]
    if "loss" not in a:
        return checks, None
    one, two = under(a, "gradient/"), under(b, "gradient/")
    checks.append(check(4, "loss", precision, pair, "loss", relative(a["loss"], b["loss"])))
    checks.append(check(4, "gradient", precision, pair, "gradient", l2_of_all(one, two)))
    checks.append(check(4, "gradient, worst tensor", precision, pair, "gradient, worst tensor", worst(one, two)))
    apart = {name: worst({name: one[name]}, {name: two[name]}) for name in one}
    return checks, max(apart, key=apart.__getitem__)
