"""The update of the weights in TensorFlow: the operations of formulas, and the state of an optimiser on the device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from backends.tf.device import DeviceContext
from backends.tf.module import canonical_order, from_canonical, to_canonical
from diffusion_core.backend.interface import TrainerState
from diffusion_core.networks.program import Program
from diffusion_core.networks.weights import Weights
from diffusion_core.optim.ops import ArrayOps
from diffusion_core.optim.optimiser import Optimiser, role_of, start_slots

__all__ = ["OPS", "Updater"]

OPS = ArrayOps(
    sqrt=tf.sqrt,
    square=tf.square,
    sign=tf.sign,
    maximum=tf.maximum,
    epsilon=lambda x: float(np.finfo(x.dtype.as_numpy_dtype).eps),
    where=tf.where,
    mean=lambda x, axis=None, keepdims=False: tf.reduce_mean(x, axis=axis, keepdims=keepdims),
    total=lambda x, axis=None, keepdims=False: tf.reduce_sum(x, axis=axis, keepdims=keepdims),
    reshape=tf.reshape,
    transpose=tf.transpose,
    diagonal=tf.linalg.diag_part,
    take=lambda x, order, axis: tf.gather(x, order, axis=axis),
    descending=lambda x: tf.argsort(x, direction="DESCENDING", stable=True),
    eigenvectors=tf.linalg.eigh,
    orthogonal=tf.linalg.qr,
    choose=lambda flag, then, otherwise: tf.cond(flag > 0, then, otherwise),
)


class Updater:
    """The slots of an optimiser on the device, which start from those of a state, and its update of the parameters."""

    def __init__(
        self, optimiser: Optimiser, program: Program, state: TrainerState, tensors: dict, context: DeviceContext
    ) -> None:
        self.optimiser, self.tensors, self.context = optimiser, tensors, context
        # The order of a variable's axes that a formula which looks at axes wants.
        self.orders = {p.name: canonical_order(p) if optimiser.sees_axes else None for p in program.parameters}
        self.axes = {p.name: p.axes for p in program.parameters}
        self.roles = {p.name: role_of(p, self._shape(p.name, p.shape)) for p in program.parameters}
        start = start_slots(optimiser, self.roles, state.weights, state.slots)
        # A slot with the shape of its parameter has the axes of the variable, unless a formula sees them.
        self.slot_axes = {
            slot: {
                n: "" if optimiser.sees_axes or a.shape != self.roles[n].shape else self.axes[n]
                for n, a in arrays.items()
            }
            for slot, arrays in start.items()
        }
        self.slots = {
            slot: {
                n: self._variable(context.tensor(from_canonical(a, self.slot_axes[slot][n]))) for n, a in arrays.items()
            }
            for slot, arrays in start.items()
        }
        self.parameters = {p.name: tensors[p.name] for p in program.trained}
        # The weights themselves, where the tensors of the network are another point, at which the gradient is taken.
        self.moved: dict[str, tf.Variable] = {}
        if optimiser.moves_point:
            self.moved = {name: self._variable(tensor) for name, tensor in self.parameters.items()}
            self._move()

    def _shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape that a formula sees; that of the manifest, except for kernels of own networks."""
        return tuple(shape[i] for i in self.orders[name]) if self.orders[name] and not self.axes[name] else shape

    def _variable(self, value: tf.Tensor) -> tf.Variable:
        with tf.device(self.context.device):
            return tf.Variable(value)

    def _slots_of(self, name: str) -> dict[str, tf.Variable]:
        """Return the slots of one parameter."""
        return {slot: tensors[name] for slot, tensors in self.slots.items() if name in tensors}

    def apply(self, gradients: Sequence[tf.Tensor], scalars: dict[str, tf.Tensor]) -> None:
        """Make an update with clipped gradients."""
        for (name, p), gradient in zip((self.moved or self.parameters).items(), gradients, strict=True):
            own, order = self._slots_of(name), self.orders[name]
            seen = [tf.convert_to_tensor(p), gradient]
            if order:
                seen = [tf.transpose(tensor, order) for tensor in seen]
            values = {slot: tf.convert_to_tensor(variable) for slot, variable in own.items()}
            changed, new = self.optimiser.update(OPS, self.roles[name], *seen, values, scalars)
            for slot, value in new.items():
                own[slot].assign(value)
            p.assign(tf.transpose(changed, np.argsort(order)) if order else changed)
        self._move()

    def _move(self) -> None:
        """Move the tensors of the network to where the next gradient is taken."""
        for name, p in self.moved.items():
            own = self._slots_of(name)
            self.parameters[name].assign(self.optimiser.point(OPS, self.roles[name], tf.convert_to_tensor(p), own))

    def read_slots(self) -> dict[str, Weights]:
        """Return the slots as arrays, by slot and parameter."""
        return {
            slot: {
                name: np.array(to_canonical(v.numpy(), self.slot_axes[slot][name]), order="C")
                for name, v in variables.items()
            }
            for slot, variables in self.slots.items()
        }
