"""Comparison of one network at full size between two backends.

The ladder uses small networks. This check shows that full size behaves the same: the output in evaluation, and the loss
and gradients of a training step, from the same weights and images. The NumPy reference is left out, since it would take
minutes.
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
    """Return the output, and with `gradients` the loss and the gradients, for a batch of smooth noise."""
    program = lower(spec)
    weights, inputs = network_inputs(spec, backend.config.host_dtype, batch)
    network = backend.network(program, weights)
    arrays = {"output": network.forward(inputs.images, inputs.c_noise, inputs.label, inputs.features)}
    if gradients:
        del network
        trainer = backend.trainer(program, TrainerState.fresh(weights), Adam(), "mse")
        loss, weight_gradients = trainer.gradients(inputs)
        arrays |= {"loss": np.float64(loss)} | {f"gradient/{name}": value for name, value in weight_gradients.items()}
    return arrays | {"program": np.array(program.sha256)}


def network_inputs(spec: NetworkSpec, dtype: type, batch: int) -> tuple[Weights, TrainBatch]:
    """Return initial weights with small offsets on all constants, so that every layer matters, and a batch of noise."""
    program = lower(spec)
    weights = cases.scattered_weights(program, scatter=0.02, dtype=dtype)
    return weights, cases.cast(cases.noise_batch(program, spec.image_shape, batch), dtype)


def compare_network(
    a: Mapping[str, NDArray], b: Mapping[str, NDArray], precision: str, pair: str
) -> tuple[list[Check], str | None]:
    """Return the checks of two records of one network, and the parameter whose gradients differ most.

    Raises:
        DuetError: if the records belong to different networks, or only one has gradients.
    """
    if str(a["program"]) != str(b["program"]):
        raise DuetError(
            f"the records belong to different networks ({str(a['program'])[:12]} and {str(b['program'])[:12]})"
        )
    if ("loss" in a) != ("loss" in b):
        raise DuetError("only one record has gradients; set gradients to the same value for both")
    checks = [check(3, "output", precision, pair, "network", relative(a["output"], b["output"]))]
    if "loss" not in a:
        return checks, None
    one, two = under(a, "gradient/"), under(b, "gradient/")
    checks.append(check(4, "loss", precision, pair, "loss", relative(a["loss"], b["loss"])))
    checks.append(check(4, "gradient", precision, pair, "gradient", l2_of_all(one, two)))
    checks.append(check(4, "gradient, worst tensor", precision, pair, "gradient, worst tensor", worst(one, two)))
    errors = {name: worst({name: one[name]}, {name: two[name]}) for name in one}
    return checks, max(errors, key=errors.__getitem__)
