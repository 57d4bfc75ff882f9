"""What a trainer of any framework has in common: the order of a training step, and its border of NumPy arrays.

A step is forward and backward (`accumulate`), the sum over processes, and the update (`apply`). A backend's `Trainer`
inherits from `BaseTrainer` and adds what its framework computes in each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from diffusion_core.backend.batch import TrainBatch
from diffusion_core.backend.out_of_memory import translate_out_of_memory
from diffusion_core.backend.state import StepResult, TrainerState
from diffusion_core.backend.target import Target
from diffusion_core.common.text import pluralize
from diffusion_core.networks.program import Program
from diffusion_core.networks.weights import Weights, check_weights
from diffusion_core.optim.optimiser import Optimiser

__all__ = ["BaseTrainer"]

# An array of a framework, a batch of them, and a network.
Tensor = Any
Batch = Any
Network = Any


class BaseTrainer:
    """See `interface.Trainer`.

    A subclass gives the functions of its files as class attributes, and the methods with an underscore that are not
    defined here.
    """

    make_network: ClassVar[Callable[..., Network]]
    make_updater: ClassVar[Callable[..., Any]]
    batch_tensors: ClassVar[Callable[[TrainBatch, Any], Batch]]
    loss_tensors: ClassVar[Callable[..., tuple]]
    target_tensors: ClassVar[Callable[..., tuple]]

    def __init__(
        self, program: Program, state: TrainerState, optimiser: Optimiser, distance: str | Target, context: Any
    ) -> None:
        self.program, self.optimiser, self.distance, self.context = program, optimiser, distance, context
        self.network = self.make_network(program, state.weights, context)
        self.tensors = self.network.tensors_by_name()
        self.parameters = {p.name: self.tensors[p.name] for p in program.trained}
        self.averages = [self._tensors_like(average, "moving average") for average in state.averages]
        self.networks = self._make_networks(state)
        self.updates, self.values = state.updates, None
        self.updater = self.make_updater(optimiser, program, state, self.tensors, context)

    def __repr__(self) -> str:
        return f"Trainer({self.program!r}, {pluralize(self.updates, 'update')}, {str(self.context.device).strip('/')})"

    def _make_networks(self, state: TrainerState) -> dict[str, Network]:
        """Return the networks of a target; that of the average has the tensors of the last average."""
        networks, used = {"trained": self.network}, getattr(self.distance, "networks", ())
        if "average" in used:
            average = networks["average"] = self.make_network(self.program, state.averages[-1], self.context)
            self.averages[-1] = average.tensors_by_name()
        if "teacher" in used:
            teacher = self.distance.teacher
            networks["teacher"] = self.make_network(teacher.program, teacher.weights, self.context)
        return networks

    def _loss(self, b: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return the loss, the loss of each image, and the new running statistics by name."""
        if isinstance(self.distance, Target):
            return self.target_tensors(self.networks, b, self.distance, self.values)
        return self.loss_tensors(self.network, b, self.distance, self.values)

    def _all_reduce(self, loss: Tensor, gradients: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return the loss and the gradients summed over all processes."""
        loss, *gradients = self.context.communicator.all_reduce([loss, *gradients])
        return loss, gradients

    def _update_scalars(self, lr: float, decays: Sequence[float]) -> Any:
        """Return the numbers of the next update as `apply` takes them."""
        return lr, decays

    def accumulate(self, b: Batch, micro_batches: int) -> tuple[Tensor, Tensor, list[Tensor], dict[str, Tensor]]:
        """Return (loss, loss of each image, gradients, new running statistics), summed over equal micro-batches."""
        return self._accumulate(b, micro_batches)

    def apply(self, loss: Tensor, gradients: list[Tensor], statistics: dict[str, Tensor], scalars: Any) -> Tensor:
        """Apply the clip, the running statistics, the optimiser and the averages; return the gradient norm."""
        return self._apply(loss, gradients, statistics, scalars)

    def step(
        self, batch: TrainBatch, lr: float, decays: Sequence[float], micro_batches: int = 1, may_repeat: bool = False
    ) -> StepResult:
        """Run forward, backward, running statistics, clip, optimiser and averages."""
        scalars = self._update_scalars(lr, decays)
        with self.context.translate_out_of_memory():  # before communication, so that one process alone can repeat it
            b = self.batch_tensors(batch, self.context)
            loss, losses, gradients, statistics = self.accumulate(b, micro_batches)
        with self.context.translate_out_of_memory(changes=True):
            loss, gradients = self._all_reduce(loss, gradients)
            norm = self.apply(loss, gradients, statistics, scalars)
        self.updates += 1
        return StepResult(loss, norm, lambda: self.network.to_host(losses))

    @translate_out_of_memory
    def gradients(self, batch: TrainBatch, micro_batches: int = 1) -> tuple[float, Weights]:
        """Return (loss, gradients by name) of the first half of a step, unclipped; change nothing."""
        loss, _, gradients, _ = self.accumulate(self.batch_tensors(batch, self.context), micro_batches)
        loss, gradients = self._all_reduce(loss, gradients)
        return float(loss), self.network.read(dict(zip(self.parameters, gradients, strict=True)))

    def update(self, gradients: Weights, lr: float, decays: Sequence[float]) -> float:
        """Apply the second half of a step with these gradients, and return their global norm."""
        check_weights(self.program, gradients, "gradients", trained=True)
        norm = float(self.apply(*self._gradient_tensors(gradients), {}, self._update_scalars(lr, decays)))
        self.updates += 1
        return norm

    def state(self) -> TrainerState:
        """Return all that is needed to resume exactly."""
        return TrainerState(
            weights=self.network.weights() | self.network.read(self.updater.moved),
            averages=tuple(self.network.read(average) for average in self.averages),
            slots=self.updater.read_slots(),
            updates=self.updates,
        )
