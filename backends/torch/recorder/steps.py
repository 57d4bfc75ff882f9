"""Training steps of a PyTorch model, as its author wrote them, for `duet diff --steps`.

A step is any code of the author. Where it uses an optimiser of PyTorch, what `step` receives is recorded; where it
updates parameters by hand, the gradients are those that the parameters have after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import lr_scheduler
from torch.optim import optimizer as optimizers

from backends.torch.recorder.calls import plain
from backends.torch.recorder.model import (
    arguments,
    call_model,
    eager,
    fixed_loss,
    flat_outputs,
    flat_tensors,
    only_reading,
)
from backends.torch.recorder.variables import named_variables, to_array
from diffusion_core.parity.diff.recording import Step, gradient_norm

__all__ = ["record_steps"]


def record_steps(
    model: Any, batches: Sequence[Any], training: Callable | None, optimizer: Callable | None, loss: Callable | None
) -> tuple[tuple[Step, ...], dict[str, Any]]:
    """Return the steps that the author's code made, and the class and hyper-parameters of the optimiser.

    Args:
        model: as the author's function returned it; its variables have their values back afterwards.
        batches: the inputs of each step, NumPy arrays as a tuple or by name.
        training: makes from the model a function that trains for one step and returns the loss, or a dict with
            "loss" and optionally "learning_rate" and "averages".
        optimizer: makes an optimiser of PyTorch from the model, if there is no `training`.
        loss: called with the outputs and the inputs; by default the loss of `recording`.
    """
    floats = [each.tensor for each in named_variables(model).values() if each.tensor.is_floating_point()]
    precision = "float64" if any(each.dtype == torch.float64 for each in floats) else "float32"
    with only_reading(model), eager(model, precision), _Watch() as watch:
        step = training(model) if training else _step(model, optimizer, loss)
        steps = tuple(_one(model, step, batch, precision, watch) for batch in batches)
        return steps, watch.description(_names(model))


def _step(model: Any, optimizer: Callable | None, loss: Callable | None) -> Callable:
    """Return one update with an optimiser. The model stays in the mode that its author chose."""
    if optimizer is None:
        raise ValueError("steps need a function training(model) or optimizer(model) beside the model's function")
    made = optimizer(model)

    def step(*args: Any, **kwargs: Any) -> Tensor:
        made.zero_grad()
        outputs = call_model(model, args, kwargs)
        if loss is not None:
            value = loss(outputs, *args, **kwargs)
        else:
            value = fixed_loss([each for each in flat_outputs(outputs).values() if each.is_floating_point()])
        value.backward()
        made.step()
        return value

    return step


def _names(model: Any) -> dict[int, str]:
    names: dict[int, str] = {}
    for name, each in named_variables(model).items():
        names.setdefault(id(each.tensor), name)
    return names


def _copy(value: Any) -> NDArray:
    return np.array(to_array(value))


def _one(model: Any, step: Callable, batch: Any, precision: str, watch: _Watch) -> Step:
    args, kwargs = arguments(model, batch, precision)
    for each in flat_tensors([args, kwargs]):
        each.detach_()  # inputs of training need no gradient
    names = _names(model)
    watch.start()
    result = step(*args, **kwargs)
    content = result if isinstance(result, Mapping) else {"loss": result}
    if not watch.gradients:
        found = named_variables(model).values()
        watch.gradients = {id(each.tensor): _copy(each.tensor.grad) for each in found if each.tensor.grad is not None}
    gradients = {names.get(key, f"tensor{i}"): each for i, (key, each) in enumerate(watch.gradients.items())}
    rate = content.get("learning_rate", watch.learning_rate)
    return Step(
        float(np.mean(_copy(content["loss"]))),
        None if rate is None else float(_copy(rate)),
        gradient_norm(gradients),
        gradients,
        {name: _copy(each.tensor) for name, each in named_variables(model).items() if not each.buffer},
        watch.state(names),
        {name: _copy(value) for name, value in (content.get("averages") or {}).items()},
    )


class _Watch:
    """What the optimisers of PyTorch do during a step."""

    def __init__(self) -> None:
        self.optimizers: dict[int, Any] = {}
        self.schedules: list[Any] = []
        self.initial: dict[int, list[dict[str, Any]]] = {}
        self.gradients: dict[int, NDArray] = {}
        self.learning_rate: Any = None

    def start(self) -> None:
        """Forget the last step."""
        self.gradients, self.learning_rate = {}, None

    def __enter__(self) -> _Watch:
        self.scope = self._watching()
        self.scope.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.scope.__exit__(*error)

    @contextmanager
    def _watching(self) -> Iterator[None]:
        def before_step(optimizer: Any, args: Any, kwargs: Any) -> None:
            if id(optimizer) not in self.optimizers:
                self.optimizers[id(optimizer)] = optimizer
                self.initial[id(optimizer)] = [dict(group) for group in optimizer.param_groups]
            if self.learning_rate is None:
                self.learning_rate = _copy(optimizer.param_groups[0].get("lr", np.nan))
            for group in optimizer.param_groups:
                for each in group["params"]:
                    if each.grad is not None:
                        self.gradients[id(each)] = _copy(each.grad)

        made = lr_scheduler.LRScheduler.__init__

        def scheduled(schedule: Any, *args: Any, **kwargs: Any) -> None:
            self.schedules.append(schedule)
            made(schedule, *args, **kwargs)

        handle = optimizers.register_optimizer_step_pre_hook(before_step)
        lr_scheduler.LRScheduler.__init__ = scheduled
        try:
            yield
        finally:
            handle.remove()
            lr_scheduler.LRScheduler.__init__ = made

    def state(self, names: Mapping[int, str]) -> dict[str, NDArray]:
        """Return the state of the optimisers, as "NAME/exp_avg"."""
        found = {}
        for optimizer in self.optimizers.values():
            for parameter, slots in optimizer.state.items():
                for slot, value in slots.items():
                    if isinstance(value, (Tensor, int, float)) and not isinstance(value, bool):
                        found[f"{names.get(id(parameter), 'tensor')}/{slot}"] = _copy(value)
        return found

    def description(self, names: Mapping[int, str]) -> dict[str, Any]:
        """Return the class and the hyper-parameters of the optimiser that was seen, each group's and the schedule's."""
        if not self.optimizers:
            return {}
        key, optimizer = next(iter(self.optimizers.items()))
        groups = [
            {
                **{name: plain(_number(value)) for name, value in group.items() if name != "params"},
                "params": [names.get(id(each), "tensor") for each in group["params"]],
            }
            for group in self.initial[key]
        ]
        shared = {name: value for name, value in groups[0].items() if name != "params"}
        found = {"class": type(optimizer).__name__, **shared, "groups": groups}
        if self.schedules:
            schedule = self.schedules[-1]
            options = {
                name: plain(value)
                for name, value in vars(schedule).items()
                if not name.startswith("_") and plain(value) is not None
            }
            found["schedule"] = {"class": type(schedule).__name__, **options}
        if len(self.optimizers) > 1:
            found["others"] = [type(each).__name__ for each in list(self.optimizers.values())[1:]]
        return found


def _number(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
