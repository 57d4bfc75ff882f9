"""Every optimiser that PyTorch or Keras has too, against theirs, on a fixed sequence of gradients in float64.

Keras rounds the numbers of an optimiser to float32, so those of its cases are powers of two, or sums of few.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from diffusion_core.common.random import Stream
from diffusion_core.optim import make_optimiser, optimiser_update, role_of, start_slots

SHAPES = {
    "matrix": ((6, 4), "o i"),
    "wide": ((3, 5), "o i"),
    "kernel": ((4, 3, 3, 2), "o i kh kw"),
    "bias": ((7,), "o"),
}
ROLES = {
    name: role_of(SimpleNamespace(name=name, shape=shape, axes=axes, decay=True))
    for name, (shape, axes) in SHAPES.items()
}
START = {name: 0.3 * Stream(2, f"start/{name}").normal([0], role.shape)[0] for name, role in ROLES.items()}
STEPS, LR, DECAY = 50, 2.0**-7, 0.125


def gradients(k: int) -> dict[str, np.ndarray]:
    return {
        name: 10.0 ** -(k % 4) * Stream(2, f"gradient/{name}").normal([0], role.shape, row=k)[0]
        for name, role in ROLES.items()
    }


def rates(varies: bool) -> Iterator[tuple[int, float]]:
    return ((k, LR * (1 + k % 3) if varies else LR) for k in range(1, STEPS + 1))


def assert_agrees(theirs: dict[str, np.ndarray], varies: bool, options: dict[str, Any]) -> None:
    optimiser, weights = make_optimiser(**({"clip": None} | options)), {name: START[name] for name in theirs}
    slots = start_slots(optimiser, ROLES, START, {})
    for k, lr in rates(varies):
        own = {name: g for name, g in gradients(k).items() if name in theirs}
        weights, slots = optimiser_update(optimiser, ROLES, weights, slots, own, k, lr)
    for name, value in theirs.items():
        assert np.max(np.abs(value - START[name])) > 1e-2, name
        np.testing.assert_allclose(weights[name], value, rtol=0, atol=1e-10 * LR, err_msg=name)


TORCH: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "Adam": ("Adam", {"weight_decay": DECAY}, {"decay": "l2", "weight_decay": DECAY}),
    "Adam, amsgrad": ("Adam", {"amsgrad": True}, {"amsgrad": "torch"}),
    "AdamW": ("AdamW", {"weight_decay": DECAY}, {"weight_decay": DECAY}),
    "SGD": ("SGD", {"momentum": 0.9, "dampening": 0.2, "weight_decay": DECAY},
            {"name": "sgd", "dampening": 0.2, "weight_decay": DECAY}),
    "SGD, Nesterov": ("SGD", {"momentum": 0.9, "nesterov": True}, {"name": "sgd", "nesterov": True}),
    "Adafactor": ("Adafactor", {"weight_decay": DECAY}, {"name": "adafactor", "weight_decay": DECAY}),
    "RAdam": ("RAdam", {"betas": (0.9, 0.9), "weight_decay": DECAY},
              {"name": "radam", "beta2": 0.9, "decay": "l2", "weight_decay": DECAY}),
    "NAdam": ("NAdam", {"weight_decay": DECAY, "decoupled_weight_decay": True},
              {"name": "nadam", "weight_decay": DECAY}),
}  # fmt: skip


@pytest.mark.backend
@pytest.mark.skipif(not find_spec("torch"), reason="it is about PyTorch")
@pytest.mark.parametrize("case", TORCH)
def test_the_optimisers_of_torch(case, request):
    import torch

    # NAdam of PyTorch keeps its product of momenta in this type.
    request.addfinalizer(partial(torch.set_default_dtype, torch.get_default_dtype()))
    torch.set_default_dtype(torch.float64)
    kind, theirs, ours = TORCH[case]
    tensors = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in START.items()}
    optimiser = getattr(torch.optim, kind)(list(tensors.values()), lr=LR, **theirs)
    for k, lr in rates(varies=True):
        optimiser.param_groups[0]["lr"] = lr
        for name, g in gradients(k).items():
            tensors[name].grad = torch.tensor(g)
        optimiser.step()
    assert_agrees({name: tensor.detach().numpy() for name, tensor in tensors.items()}, True, ours)


BETAS, KERAS_BETAS = {"beta1": 0.875, "beta2": 0.96875, "eps": 2.0**-20}, {"beta_1": 0.875, "beta_2": 0.96875}
KERAS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "AdamW": ("AdamW", {**KERAS_BETAS, "epsilon": 2.0**-20, "weight_decay": DECAY},
              {**BETAS, "epsilon": "keras", "weight_decay": DECAY}),
    "Adam, amsgrad": ("Adam", {**KERAS_BETAS, "epsilon": 2.0**-20, "amsgrad": True},
                      {**BETAS, "epsilon": "keras", "amsgrad": "torch"}),
    "SGD": ("SGD", {"momentum": 0.875}, {"name": "sgd", "momentum": 0.875, "buffer": "steps"}),
    "SGD, Nesterov": ("SGD", {"momentum": 0.875, "nesterov": True},
                      {"name": "sgd", "momentum": 0.875, "buffer": "steps", "nesterov": True}),
    "Lion": ("Lion", {"beta_1": 0.875, "beta_2": 0.96875, "weight_decay": DECAY},
             {"name": "lion", "beta1": 0.875, "beta2": 0.96875, "weight_decay": DECAY}),
    "Adafactor": ("Adafactor", {"weight_decay": DECAY, "epsilon_2": 2.0**-10},
                  {"name": "adafactor", "convention": "keras", "weight_decay": DECAY, "eps2": 2.0**-10}),
    "Muon": ("Muon", {"adam_beta_1": 0.875, "adam_beta_2": 0.96875, "epsilon": 2.0**-20, "momentum": 0.875,
                      "weight_decay": DECAY, "adam_weight_decay": DECAY, "rms_rate": 0.2},
             {**BETAS, "name": "muon", "convention": "keras", "momentum": 0.875, "weight_decay": DECAY}),
}  # fmt: skip


@pytest.mark.backend
@pytest.mark.skipif(not find_spec("tensorflow"), reason="it is about TensorFlow")
@pytest.mark.parametrize("case", KERAS)
def test_the_optimisers_of_keras(case, request):
    import keras

    # Muon of Keras has a factor of this type.
    request.addfinalizer(partial(keras.config.set_floatx, keras.config.floatx()))
    keras.config.set_floatx("float64")

    kind, theirs, ours = KERAS[case]
    names = [name for name in START if kind != "Muon" or name != "kernel"]  # Muon of Keras takes matrices only
    variables = {name: keras.Variable(START[name], dtype="float64", name=name) for name in names}
    optimiser = getattr(keras.optimizers, kind)(LR, **theirs)
    for k, lr in rates(varies=True):
        optimiser.learning_rate = lr
        optimiser.apply([keras.ops.convert_to_tensor(gradients(k)[name]) for name in names], list(variables.values()))
    assert_agrees({name: variable.numpy() for name, variable in variables.items()}, True, ours)


def test_nothing_is_compared_with_itself():
    """A wrong convention is told from the right one by far more than the tolerance."""
    one, other = (trained_alone(epsilon=epsilon) for epsilon in ("torch", "keras"))
    assert np.max(np.abs(one - other)) > 1e-7 * LR


def trained_alone(**options: Any) -> np.ndarray:
    optimiser, weights = make_optimiser(**options), {"bias": START["bias"]}
    roles: dict[str, Any] = {"bias": ROLES["bias"]}
    slots = start_slots(optimiser, roles, weights, {})
    step: Callable = optimiser_update
    for k, lr in rates(varies=False):
        weights, slots = step(optimiser, roles, weights, slots, {"bias": gradients(k)["bias"]}, k, lr)
    return weights["bias"]
