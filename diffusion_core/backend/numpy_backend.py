"""The NumPy reference as a backend: it runs programs and plans in float64, and does not train.

It is slow for networks of Duet. For an own network that is a function of NumPy arrays, or an ONNX file, it is the
executor: the network does the work.
"""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from diffusion_core.backend import reference
from diffusion_core.backend.interface import (
    BackendConfig,
    Description,
    Guidance,
    NoiseSource,
    StepCallback,
    TrainBatch,
)
from diffusion_core.common.errors import DuetError
from diffusion_core.networks.own import Manifest
from diffusion_core.networks.own_call import LAYOUTS, TIMES, call_names
from diffusion_core.networks.program import Program
from diffusion_core.networks.weights import Weights
from diffusion_core.runtime.distributed import Collective
from diffusion_core.sampling.plan import SamplerPlan

__all__ = ["NumpyBackend"]

_NO_GRADIENTS = "network: a function of NumPy arrays has no gradients, so {}; use a network of PyTorch or TensorFlow"

# Derivatives by differences take four evaluations per number of a sample.
_MAX_DIFFERENCES = 1024


class _Network:
    """A program with its weights, see `interface.Network`."""

    def __init__(self, program: Program, weights: Weights) -> None:
        self.program, self._weights = program, weights

    def forward(self, x: NDArray, c_noise: NDArray, label: NDArray, *more: NDArray | None) -> NDArray:
        """Return the raw output F."""
        return reference.forward(self.program, self._weights, x, c_noise, label, *more)

    def vjp(self, *inputs: NDArray | None) -> NoReturn:
        """Raise a `DuetError`."""
        raise DuetError(_NO_GRADIENTS.format("a likelihood by the flow cannot be computed"))

    def weights(self) -> Weights:
        """Return the weights."""
        return self._weights

    def load(self, weights: Weights) -> None:
        """Replace the weights."""
        self._weights = weights


def _read_network(network: Any) -> Manifest:
    """Return what is known of a function; an object that is called may have attributes `layout` and `time`."""
    layout, time = (getattr(network, name, None) for name in ("layout", "time"))
    return Manifest(
        parameters=(),
        values={},
        layout=layout if layout in LAYOUTS else "channels_last",
        inputs=call_names(network),
        precision="float64",
        time=time if time in TIMES else "float",
    )


class NumpyBackend:
    """The reference with the methods of `interface.Backend` that need no gradients."""

    own = SimpleNamespace(accepts=callable, read_network=_read_network, to_array=np.asarray)

    def __init__(self, config: BackendConfig | None = None) -> None:
        self.config = config or BackendConfig(device="cpu", precision="float64")

    @classmethod
    def for_network(cls, manifest: Manifest, compile: bool = False) -> NumpyBackend:
        """Return the backend; there is nothing to compile."""
        if compile:
            raise DuetError("compile: true was given; a function of NumPy arrays is not compiled, so use False")
        return cls()

    @property
    def collective(self) -> Collective:
        """A process alone."""
        return Collective()

    def describe(self) -> Description:
        """Return what it runs on."""
        return Description("numpy", "cpu", self.config.precision, 1, "reference", {"numpy": np.__version__})

    def network(self, program: Program, weights: Weights) -> _Network:
        """Build a network for inference."""
        return _Network(program, weights)

    def trainer(self, *arguments: Any) -> NoReturn:
        """Raise a `DuetError`."""
        raise DuetError(_NO_GRADIENTS.format("it cannot be trained"))

    def loss(self, network: _Network, batch: TrainBatch, distance: str) -> float:
        """Return the training loss of a batch."""
        return float(reference.loss(network.program, network.weights(), batch, distance))

    def tensor(self, array: NDArray) -> NDArray:
        """Return the array."""
        return array

    def sample(
        self,
        network: _Network,
        plan: SamplerPlan,
        start: NDArray,
        label: NDArray,
        noise: NoiseSource,
        callback: StepCallback | None = None,
        guidance: Guidance | None = None,
    ) -> NDArray:
        """Run a plan; see `interface.Backend.sample`."""
        guidance = guidance or Guidance()
        guidance.check(plan)
        classifier, guide, size = guidance.classifier, guidance.guide, int(np.prod(start.shape[1:]))
        if guidance.measurement is not None and size > _MAX_DIFFERENCES:
            raise DuetError(
                f"posterior: a function of NumPy arrays has no gradients, and differences are taken for samples of at "
                f"most {_MAX_DIFFERENCES} numbers, but these have {size}; use a network of PyTorch or TensorFlow"
            )
        return reference.sample(
            network.program,
            network.weights(),
            plan,
            start,
            label,
            noise,
            callback,
            guide=guide and guide.forward,
            grad_log_prob=classifier and partial(reference.grad_log_prob, classifier.program, classifier.weights()),
            mask=guidance.mask,
            known=guidance.known,
            features=guidance.features,
            null_features=guidance.null_features,
            measurement=guidance.measurement,
        )
