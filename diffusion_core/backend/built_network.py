"""What a network of any framework has in common: its blocks by name, NumPy arrays in, NumPy arrays out.

A backend's `Network` inherits from `BuiltNetwork` and adds what its framework computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from diffusion_core.backend.out_of_memory import translate_out_of_memory
from diffusion_core.networks.program import Program, Training
from diffusion_core.networks.weights import Weights, check_weights

__all__ = ["BuiltNetwork", "build"]

# An array of a framework.
Tensor = Any


def build(
    modules: Mapping[str, Callable], program: Program, weights: Mapping[str, NDArray], context: Any
) -> dict[str, Any]:
    """Return one module per node, by name; `modules` is the table of modules of the framework."""
    check_weights(program, weights)
    built = {}
    for node in program.nodes:
        parameters = {p.name: weights[f"{node.name}.{p.name}"] for p in node.block.parameters()}
        built[node.name] = modules[node.kind](node, parameters, context)
    return built


class BuiltNetwork:
    """A program built in a framework; see `network.Network`.

    A subclass sets `program`, `context`, `blocks` and `call`, which is `apply_program` as the device runs it. Its
    methods with an underscore are what its framework computes from tensors.
    """

    program: Program
    context: Any
    blocks: dict[str, Any]
    call: Callable[..., Tensor]
    # Of a tensor, zeros of its shape and type; and a context without gradients.
    zeros_like: ClassVar[Callable[[Tensor], Tensor]]
    no_gradients: ClassVar[Callable[[], AbstractContextManager]]

    def __repr__(self) -> str:
        return f"Network({self.program!r}, {str(self.context.device).strip('/')})"

    def apply_program(
        self,
        x: Tensor,
        c_noise: Tensor,
        label: Tensor,
        features: Tensor,
        estimate: Tensor | None = None,
        second_time: Tensor | None = None,
        training: Training | None = None,
    ) -> Tensor:
        """Return the raw output F in the dtype of the context; a missing estimate counts as zeros."""
        inputs = {"x": x, "c_noise": c_noise, "label": label, "features": features}
        if self.program.self_conditioned:
            inputs["estimate"] = self.zeros_like(x) if estimate is None else estimate
        if self.program.two_times:
            inputs["second_time"] = self.second_times(c_noise) if second_time is None else second_time
        return self._run(inputs, training)

    @contextmanager
    def mode(self, training: Training | None = None) -> Iterator[None]:
        """Return the context of a training or an evaluation pass."""
        with ExitStack() as stack:
            for module in self.blocks.values():
                stack.enter_context(module.mode(training))
            yield

    def _inputs(
        self,
        x: NDArray,
        c_noise: NDArray,
        label: NDArray,
        features: NDArray | None,
        estimate: NDArray | None = None,
        second_time: NDArray | None = None,
    ) -> tuple[Tensor | None, ...]:
        """Return the inputs of `forward` as tensors."""
        context = self.context
        return (
            context.images(x),
            context.tensor(c_noise, context.TIME),
            context.tensor(label, context.LABEL),
            self.zero_features(len(x)) if features is None else context.tensor(features),
            None if estimate is None else context.images(estimate),
            None if second_time is None else context.tensor(second_time, context.TIME),
        )

    @translate_out_of_memory
    def forward(
        self,
        x: NDArray,
        c_noise: NDArray,
        label: NDArray,
        features: NDArray | None = None,
        estimate: NDArray | None = None,
        second_time: NDArray | None = None,
    ) -> NDArray:
        """See `network.Network`."""
        with self.no_gradients(), self.mode():
            return self.to_host(self.call(*self._inputs(x, c_noise, label, features, estimate, second_time)))

    @translate_out_of_memory
    def vjp(
        self,
        x: NDArray,
        c_noise: NDArray,
        label: NDArray,
        cotangent: NDArray,
        features: NDArray | None = None,
        second_time: NDArray | None = None,
    ) -> tuple[NDArray, NDArray]:
        """See `network.Network`."""
        inputs = self._inputs(x, c_noise, label, features, None, second_time)
        with self.mode():
            output, pulled = self._pull_back(inputs, self.context.images(cotangent))
        return self.to_host(output), self.to_host(pulled)

    @translate_out_of_memory
    def jvp(
        self,
        x: NDArray,
        c_noise: NDArray,
        label: NDArray,
        tangents: tuple[NDArray, NDArray, NDArray],
        features: NDArray | None = None,
        second_time: NDArray | None = None,
    ) -> tuple[NDArray, NDArray]:
        """See `network.Network`."""
        second_time = np.full(len(x), self.program.default_second_time) if second_time is None else second_time
        x, c_noise, label, features, _, second_time = self._inputs(x, c_noise, label, features, None, second_time)
        times = (self.context.tensor(t, self.context.TIME) for t in tangents[1:])
        direction = self.context.images(tangents[0]), *times
        with self.mode():
            output, rate = self._derive((x, c_noise, second_time), direction, label, features)
        return self.to_host(output), self.to_host(rate)

    def tensors_by_name(self) -> dict[str, Tensor]:
        """Return all tensors under the names of the manifest."""
        tensors = {
            f"{name}.{own}": tensor for name, module in self.blocks.items() for own, tensor in module.tensors().items()
        }
        return {p.name: tensors[p.name] for p in self.program.parameters}

    def weights(self) -> Weights:
        """Return the weights by name, in the canonical axes."""
        return self.read(self.tensors_by_name())

    def load(self, weights: Weights) -> None:
        """Replace the weights; traced and compiled functions stay valid."""
        check_weights(self.program, weights)
        tensors = self.tensors_by_name()
        for p in self.program.parameters:
            self._assign(tensors[p.name], weights[p.name], p.axes)
