"""Every optimiser against the algorithm of the library that defines it, written again as a loop over its formulas.

The formulas were compared with torch.optim 2.14, optax 0.2.8, transformers 5.24, lion-pytorch 0.2.5, schedulefree 1.4.1
and the code of the authors of Muon and SOAP, in float64 over 100 steps with gradients of 0 and of 1e-25. The largest
difference was 2e-13 of a learning rate. `tests/backend/test_optimisers.py` compares with the framework that is
installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import cache
from typing import Any

import numpy as np
import pytest

from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.networks.registry import Parameter
from diffusion_core.optim import OPTIMISERS, make_optimiser, optimiser_options, optimiser_update, role_of, start_slots
from diffusion_core.optim.ops import NUMPY as NUMPY_OPS
from diffusion_core.runs.checkpoint import average_names

PARAMETERS = {
    "tall": Parameter("tall", (6, 4), "o i", ("normal", 1.0), decay=True),
    "wide": Parameter("wide", (3, 5), "o i", ("normal", 1.0), decay=True),
    "kernel": Parameter("kernel", (4, 3, 3, 2), "o i kh kw", ("normal", 1.0), decay=True),
    "table": Parameter("table", (5, 3), "n o", ("normal", 1.0)),
    "bias": Parameter("bias", (7,), "o", ("constant", 0.0)),
    "gain": Parameter("gain", (), "", ("constant", 0.0)),
}
STEPS, DECAY = 50, 0.1
RATES = [1e-2 * min(1.0, k / 5) for k in range(1, STEPS + 1)]
ROLES = {name: role_of(parameter) for name, parameter in PARAMETERS.items()}


@cache
def gradient(name: str, k: int) -> np.ndarray:
    # Sizes from 1 to 1e-4, so that each eps matters.
    return 10.0 ** -(k % 5) * Stream(1, f"gradient/{name}").normal([0], PARAMETERS[name].shape, row=k)[0]


def start(name: str) -> np.ndarray:
    return 0.3 * Stream(1, f"start/{name}").normal([0], PARAMETERS[name].shape)[0]


def trained(rates: list[float] = RATES, **options: Any) -> dict[str, np.ndarray]:
    """Return the weights after the steps of an optimiser of Duet, without a clip."""
    optimiser = make_optimiser(**({"clip": None} | options))
    weights = {name: start(name) for name in PARAMETERS}
    slots = start_slots(optimiser, ROLES, weights, {})
    for k, lr in enumerate(rates, 1):
        gradients = {name: gradient(name, k) for name in PARAMETERS}
        weights, slots = optimiser_update(optimiser, ROLES, weights, slots, gradients, k, lr)
    return weights


Loop = Callable[[np.ndarray, Iterator, float], np.ndarray]


def assert_agrees(loop: Loop, names: tuple[str, ...] = tuple(PARAMETERS), rates: list[float] = RATES, **options: Any):
    """Compare Duet's weights with those of `loop(p, steps, weight decay)`, where steps are (k, gradient, lr)."""
    got = trained(rates, **options)
    for name in names:
        steps = ((k, gradient(name, k), lr) for k, lr in enumerate(rates, 1))
        decay = options.get("weight_decay", 0.0) if PARAMETERS[name].decay else 0.0
        expected = loop(start(name), steps, decay)
        assert np.max(np.abs(expected - start(name))) > 1e-4, name
        np.testing.assert_allclose(got[name], expected, rtol=0, atol=1e-10 * max(RATES), err_msg=name)


def adam(epsilon="torch", l2=False, amsgrad="none", b1=0.9, b2=0.999, eps=1e-8, ratio=1.0) -> Loop:
    def loop(p, steps, decay):
        m = v = largest = 0.0
        for k, g, lr in steps:
            lr = lr * ratio
            g, p = (g + decay * p, p) if l2 else (g, p - lr * decay * p)
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
            m_hat, c2 = m / (1 - b1**k), 1 - b2**k
            if amsgrad == "optax":
                largest = np.maximum(largest, v / c2)
                p = p - lr * m_hat / (np.sqrt(largest) + eps)
                continue
            largest = np.maximum(largest, v) if amsgrad == "torch" else v
            if epsilon == "torch":
                p = p - lr * m_hat / (np.sqrt(largest / c2) + eps)
            else:
                p = p - lr * np.sqrt(c2) / (1 - b1**k) * m / (np.sqrt(largest) + eps)
        return p

    return loop


@pytest.mark.parametrize("epsilon, amsgrad", [
    ("torch", "none"), ("keras", "none"), ("torch", "torch"), ("keras", "torch"), ("torch", "optax"),
])  # fmt: skip
@pytest.mark.parametrize("decay", ["decoupled", "l2"])
def test_adam(epsilon, amsgrad, decay):
    options = {"epsilon": epsilon, "amsgrad": amsgrad, "decay": decay, "weight_decay": DECAY}
    assert_agrees(adam(epsilon, decay == "l2", amsgrad), **options)


def test_the_conventions_of_adam_are_told_apart():
    """Measured on the first step at gradients of 1e-3 eps: 5e-3 of the learning rate."""
    one, other = (trained(RATES[:1], epsilon=epsilon) for epsilon in ("torch", "keras"))
    assert max(np.max(np.abs(one[name] - other[name])) for name in one) > 1e-9


@pytest.mark.parametrize("buffer, momentum, dampening, nesterov", [
    ("gradients", 0, 0, False), ("gradients", 0.9, 0, False), ("gradients", 0.9, 0.3, False),
    ("gradients", 0.8, 0, True), ("steps", 0.9, 0, False), ("steps", 0.9, 0, True),
])  # fmt: skip
def test_sgd(buffer, momentum, dampening, nesterov):
    def loop(p, steps, decay):
        b = None
        for _, g, lr in steps:
            g = g + decay * p
            if buffer == "steps":
                b = momentum * (0.0 if b is None else b) - lr * g
                p = p + (momentum * b - lr * g if nesterov else b)
                continue
            b = g if b is None else momentum * b + (1 - dampening) * g
            p = p - lr * (g if not momentum else g + momentum * b if nesterov else b)
        return p

    options = {"momentum": momentum, "dampening": dampening, "nesterov": nesterov, "buffer": buffer}
    assert_agrees(loop, name="sgd", weight_decay=DECAY, **options)


def test_lion():
    def loop(p, steps, decay):
        m = 0.0
        for _, g, lr in steps:
            p = p * (1 - lr * decay)
            p, m = p - lr * np.sign(0.9 * m + (1 - 0.9) * g), 0.99 * m + (1 - 0.99) * g
        return p

    assert_agrees(loop, name="lion", weight_decay=DECAY)
    still = make_optimiser("lion", clip=None)
    role = ROLES["bias"]
    weights = {"bias": np.ones(7)}
    slots = start_slots(still, {"bias": role}, weights, {})
    moved, _ = optimiser_update(still, {"bias": role}, weights, slots, {"bias": np.zeros(7)}, 1, 0.1)
    np.testing.assert_array_equal(moved["bias"], 1.0)  # sign(0) = 0


@pytest.mark.parametrize("epsilon", ["torch", "optax"])
@pytest.mark.parametrize("b2", [0.999, 0.9])
def test_radam(epsilon, b2):
    def loop(p, steps, decay):
        m, v, limit = 0.0, 0.0, 2 / (1 - b2) - 1
        for k, g, lr in steps:
            g = g + decay * p
            m, v, c2 = 0.9 * m + 0.1 * g, b2 * v + (1 - b2) * g * g, 1 - b2**k
            m_hat, rho = m / (1 - 0.9**k), limit - 2 * k * b2**k / c2
            if rho > 5:
                r = np.sqrt((rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho))
                root = np.sqrt(v) + 1e-8 if epsilon == "torch" else (np.sqrt(v / c2) + 1e-8) * np.sqrt(c2)
                m_hat = m_hat * r * np.sqrt(c2) / root
            p = p - lr * m_hat
        return p

    assert_agrees(loop, name="radam", epsilon=epsilon, beta2=b2, decay="l2", weight_decay=DECAY)


@pytest.mark.parametrize(
    "convention, momentum_decay", [("torch", None), ("torch", 0.02), ("keras", None), ("optax", None)]
)
def test_nadam(convention, momentum_decay):
    def loop(p, steps, decay):
        m = v = 0.0
        product = 1.0
        for k, g, lr in steps:
            p = p * (1 - lr * decay)
            m, v = 0.9 * m + (1 - 0.9) * g, 0.999 * v + (1 - 0.999) * g * g
            root = np.sqrt(v / (1 - 0.999**k)) + 1e-8
            if convention == "optax":
                p = p - lr * (0.9 * m / (1 - 0.9 ** (k + 1)) + 0.1 * g / (1 - 0.9**k)) / root
                continue
            slowness = {"torch": 0.004, "keras": 1.0}[convention] if momentum_decay is None else momentum_decay
            mu, following = (0.9 * (1 - 0.5 * 0.96 ** (n * slowness)) for n in (k, k + 1))
            product = product * mu
            p = p - lr * ((1 - mu) / (1 - product) * g + following / (1 - product * following) * m) / root
        return p

    options = {"convention": convention, "momentum_decay": momentum_decay, "weight_decay": DECAY}
    assert_agrees(loop, name="nadam", **options)


def test_the_momentum_of_nadam_is_the_same_in_a_resumed_run():
    optimiser = make_optimiser("nadam")
    whole = [optimiser.scalars(k, 1e-3) for k in range(1, 2000)]
    assert [optimiser.scalars(k, 1e-3) for k in (1500, 3, 1999)] == [whole[1499], whole[2], whole[1998]]


def rms(x: np.ndarray) -> float:
    return np.sqrt(np.mean(np.square(x)))


@pytest.mark.parametrize("convention", ["torch", "keras", "transformers", "optax"])
@pytest.mark.parametrize(
    "beta1, scaled, rates", [(None, True, RATES), (0.9, True, RATES), (None, False, [1.0] * STEPS)]
)
def test_adafactor(convention, beta1, scaled, rates):
    def loop(p, steps, decay):
        row = column = v = m = 0.0
        # The axes (row, column): the last two, or in optax the two largest.
        axes = (p.ndim - 2, p.ndim - 1) if convention != "optax" else tuple(np.argsort(p.shape, kind="stable")[-2:])
        for k, g, lr in steps:
            fresh, eps = k**-0.8, np.finfo(float).eps if convention == "torch" else 1e-30
            kept = 1 - fresh
            if convention == "optax":  # in float32
                kept = np.float32(1) - np.float32(k ** float(np.float32(-0.8)))
                kept, fresh = float(kept), float(np.float32(1) - kept)
            rate = min(lr, k**-0.5) if convention in ("torch", "keras") else lr
            p = p * (1 - lr * decay) if convention == "keras" else p
            square = g * g if convention == "torch" else g * g + eps
            if p.ndim > 1:
                row = kept * row + fresh * square.mean(axis=axes[1], keepdims=True)
                column = kept * column + fresh * square.mean(axis=axes[0], keepdims=True)
                mean = row.mean(axis=axes[0], keepdims=True)
                estimate = row * column / (np.maximum(mean, eps) if convention == "torch" else mean)
            else:
                estimate = v = kept * v + fresh * square
            u = g / np.sqrt(np.maximum(estimate, eps * eps) if convention == "torch" else estimate)
            rate = rate * max(1e-3, rms(p)) if scaled else rate
            u = rate * u / max(1.0, rms(u))
            if beta1 is not None:
                u = m = beta1 * m + (1 - beta1) * u
            shrink = {"torch": lr * decay, "keras": 0.0, "transformers": rate * decay, "optax": decay}[convention]
            p = p - shrink * p - u
        return p

    options = {"convention": convention, "beta1": beta1, "scale_parameter": scaled, "weight_decay": 1e-3}
    assert_agrees(loop, rates=rates, name="adafactor", smallest=1, **options)


def test_adafactor_rounds_its_decay_as_optax_does():
    """Twenty steps of optax.adafactor(0.01, min_dim_size_to_factor=1, momentum=0.9, dtype_momentum=float64), 0.2.8."""
    p = np.array([[0.5, -1.0, 2.0], [0.1, 0.2, -0.3]])
    g = np.array([[1.0, -0.1, 0.001], [0.5, 0.2, -0.03]])
    optimiser = make_optimiser("adafactor", convention="optax", smallest=1, beta1=0.9, clip=None)
    weights, roles = {"m": p}, {"m": role_of(Parameter("m", p.shape, "o i", ("given", 0.0)))}
    slots = start_slots(optimiser, roles, weights, {})
    for k in range(1, 21):
        gradient = {"m": g * (-1) ** (k // 3) * k**0.5}
        weights, slots = optimiser_update(optimiser, roles, weights, slots, gradient, k, 0.01)
    theirs = [
        [0.4959642688046529, -0.9979821344023265, 1.999849680666028],
        [0.09624005685911566, 0.19248011371823134, -0.2915971784836124],
    ]
    np.testing.assert_allclose(weights["m"], theirs, rtol=0, atol=1e-14)


def test_optax_factors_no_small_axes():
    slots = make_optimiser("adafactor", convention="optax").slots(ROLES["kernel"])
    assert list(slots) == ["moment2"]
    large = role_of(Parameter("k", (256, 3, 128), "", ("given", 0.0)))
    slots = make_optimiser("adafactor", convention="optax").slots(large)
    assert {name: slot.shape for name, slot in slots.items()} == {"row": (3, 128), "column": (256, 3)}


def orthogonalised(x: np.ndarray, norm: Callable[[float], float]) -> np.ndarray:
    """Newton and Schulz's iteration on the matrix as it stands, without the exchange of rows and columns."""
    x = x / norm(np.sqrt(np.sum(x * x)))
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


@pytest.mark.parametrize("convention", ["original", "torch", "keras", "optax"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon(convention, nesterov):
    def loop(p, steps, decay):
        b = np.zeros_like(p)
        rows, columns = p.shape[0], p.size // p.shape[0]
        for k, g, lr in steps:
            b = 0.95 * b + (g if convention == "keras" else (1 - 0.95) * g)
            d = b
            if convention == "optax":
                d = b / (1 - 0.95**k)
                if nesterov:
                    d = 0.95 * b / (1 - 0.95 ** (k + 1)) + (1 - 0.95) * g / (1 - 0.95**k)
            elif nesterov:
                d = g + 0.95 * b if convention == "keras" else (1 - 0.95) * g + 0.95 * b
            eps = {"optax": 1e-8}.get(convention, 1e-7)
            norm = (lambda size: max(size, 1e-7)) if convention == "torch" else (lambda size, eps=eps: size + eps)
            d = orthogonalised(d.reshape(rows, columns), norm).reshape(p.shape)
            scale = {
                "original": max(1, p.shape[-2] / p.shape[-1]) ** 0.5, "torch": max(1, rows / columns) ** 0.5,
                "optax": max(1, columns / rows) ** 0.5, "keras": 0.2 * max(rows, columns) ** 0.5,
            }[convention]  # fmt: skip
            p = p * (1 - lr * decay) - lr * scale * d
        return p

    options = {"name": "muon", "convention": convention, "nesterov": nesterov, "weight_decay": DECAY}
    assert_agrees(loop, ("tall", "wide", "kernel"), **options)


def test_muon_leaves_the_rest_to_adamw():
    rest = adam(b2=0.95, eps=1e-10, ratio=0.1)
    assert_agrees(rest, ("table", "bias", "gain", "wide"), name="muon", adam_lr_ratio=0.1, adam_for=["w*"])
    assert_agrees(adam("keras", b2=0.95, eps=1e-10), ("bias",), name="muon", convention="keras")


def test_soap():
    """Along all axes, with the eigenvectors of LAPACK; the kernel's gradients have full rank along each axis."""

    def loop(p, steps, decay):
        axes = range(p.ndim) if p.ndim > 1 else ()
        m = v = np.zeros_like(p)
        outer = {a: 0.0 for a in axes}
        basis: dict[int, np.ndarray] = {}

        def turn(x, matrices):
            for a, matrix in matrices.items():
                x = np.moveaxis(np.tensordot(x, matrix, axes=([a], [0])), -1, a)
            return x

        for k, g, lr in steps:
            if k > 1:
                step, turned = k - 1, turn(g, basis)
                m, v = 0.95 * m + 0.05 * turned, 0.95 * v + 0.05 * turned * turned
                rate = lr * np.sqrt(1 - 0.95**step) / (1 - 0.95**step)
                p = p - rate * turn(m / (np.sqrt(v) + 1e-8), {a: q.T for a, q in basis.items()})
                p = p - lr * decay * p
            m = turn(m, {a: q.T for a, q in basis.items()})
            for a in axes:
                rows = np.moveaxis(g, a, 0).reshape(p.shape[a], -1)
                outer[a] = 0.95 * outer[a] + 0.05 * rows @ rows.T
            if k == 1:
                basis = {a: np.linalg.eigh(outer[a])[1][:, ::-1] for a in axes}
            elif (k - 1) % 10 == 0:
                for a in axes:
                    order = np.argsort(-np.diag(basis[a].T @ outer[a] @ basis[a]))
                    v = np.take(v, order, axis=a)
                    basis[a] = np.linalg.qr(outer[a] @ basis[a][:, order])[0]
            m = turn(m, basis)
        return p

    assert_agrees(loop, ("kernel", "bias", "gain"), name="soap", weight_decay=DECAY)


def test_soap_merges_axes_as_its_authors_do():
    """12 steps of nikhilvyas/SOAP a1e5535 with merge_dims, max_precond_dim=4 and precondition_frequency=3."""
    index, role = np.arange(16), role_of(Parameter("k", (2, 2, 2, 2), "o i kh kw", ("given", 0.0)))
    optimiser = make_optimiser("soap", merge_axes=True, largest=4, frequency=3, clip=None)
    weights = {"k": np.cos(1.0 * index).reshape(role.shape)}
    slots = start_slots(optimiser, {"k": role}, weights, {})
    for k in range(1, 13):
        g = (np.sin(1.7 * index * index + k) + 0.3 * np.cos(index * k)).reshape(role.shape)
        weights, slots = optimiser_update(optimiser, {"k": role}, weights, slots, {"k": g}, k, 0.01)
    theirs = [0.9237503694076936, 0.23202174966459685, -0.8337521188504288, -0.7893047345380109]
    np.testing.assert_allclose(weights["k"].ravel()[[0, 5, 10, 15]], theirs, rtol=1e-12)


@pytest.mark.parametrize(
    "shape, largest, merged",
    [
        ((64, 3, 3, 3), 100, (64, 27)),
        ((5, 7, 2), 6, (5, 7, 2)),
        ((2, 9, 2, 2), 4, (2, 9, 4)),
        ((9, 1), 4, (9,)),
        ((3,), 1, (3,)),
    ],
)
def test_the_axes_that_soap_merges(shape, largest, merged):
    optimiser = make_optimiser("soap", merge_axes=True, largest=largest)
    slots = optimiser.slots(role_of(Parameter("k", shape, "", ("given", 0.0))))
    kept = [size for size in merged if size <= largest] if len(shape) > 1 else []
    assert [slot.shape[0] for name, slot in slots.items() if name.startswith("basis")] == kept


def test_soap_does_not_depend_on_what_a_decomposition_makes_of_equal_eigenvalues():
    """A gradient of rank 1 along each axis leaves most eigenvectors open; another framework chooses others."""
    from dataclasses import replace

    from diffusion_core.optim.ops import NUMPY

    def turned(x):
        values, vectors = np.linalg.eigh(x)
        null = np.flatnonzero(values < 1e-10)
        mixed = np.linalg.qr(np.cos(np.add.outer(np.arange(len(null)), 3.0 * np.arange(len(null)) ** 2)))[0]
        vectors[:, null] = vectors[:, null] @ mixed
        return values, vectors * np.where(np.arange(len(values)) % 2, -1.0, 1.0)

    optimiser, role = make_optimiser("soap", frequency=2), ROLES["tall"]
    ends = []
    for ops in (NUMPY, replace(NUMPY, eigenvectors=turned)):
        p = start("tall")
        slots = {name: slot.first(p) for name, slot in optimiser.slots(role).items()}
        for k in range(1, 8):
            g = np.outer(gradient("tall", k)[:, 0], gradient("tall", k)[0])
            p, new = optimiser.update(ops, role, p, g, slots, optimiser.scalars(k, 1e-2))
            slots |= new
        ends.append(p)
    np.testing.assert_allclose(*ends, rtol=0, atol=1e-12)


@pytest.mark.parametrize("r, decay_at", [(0.0, "y"), (1.0, "z")])
def test_schedule_free(r, decay_at):
    def loop(p, steps, decay):
        x, y, z = p, p, p
        v = total = largest = 0.0
        for k, g, lr in steps:
            largest = max(largest, lr)
            weight = k**r * largest**2
            total = total + weight
            z = z - lr * decay * (y if decay_at == "y" else z)
            v = 0.999 * v + (1 - 0.999) * g * g
            z = z - lr * g / (np.sqrt(v / (1 - 0.999**k)) + 1e-8)
            x = (1 - weight / total) * x + weight / total * z
            y = 0.9 * x + (1 - 0.9) * z
        return x

    assert_agrees(loop, name="schedule_free", weight_decay=DECAY, r=r, decay_at=decay_at)


def test_schedule_free_takes_the_gradient_between_its_steps_and_their_average():
    optimiser, role = make_optimiser("schedule_free", beta1=0.75), ROLES["bias"]
    assert np.all(optimiser.point(None, role, np.full(7, 4.0), {"steps": np.zeros(7)}) == 3.0)


# What holds for all of them


@pytest.mark.parametrize("name", OPTIMISERS)
def test_an_update_changes_no_argument_and_fills_the_slots_that_it_states(name):
    optimiser = make_optimiser(name)
    for role in ROLES.values():
        p, g = start(role.name), gradient(role.name, 1)
        slots = {slot: value.first(p) for slot, value in optimiser.slots(role).items()}
        kept = {slot: np.array(value) for slot, value in slots.items()}
        new_p, new = optimiser.update(NUMPY_OPS, role, p, g, slots, optimiser.scalars(1, 1e-3))
        assert list(new) and set(new) == set(slots)
        assert {slot: np.shape(value) for slot, value in new.items()} == {n: v.shape for n, v in kept.items()}
        assert np.shape(new_p) == p.shape
        np.testing.assert_array_equal(p, start(role.name))
        for slot, value in kept.items():
            np.testing.assert_array_equal(slots[slot], value)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_the_numbers_of_an_update_have_the_same_names_at_every_update(name):
    optimiser = make_optimiser(name)
    first = optimiser.scalars(1, 1e-3)
    for k in (2, 11, 100_000):
        later = optimiser.scalars(k, 1e-3)
        assert list(later) == list(first) and all(np.isfinite(value) for value in later.values())


@pytest.mark.parametrize("name", OPTIMISERS)
def test_slots_have_names_of_their_own_in_a_checkpoint(name):
    kept = {slot for role in ROLES.values() for slot in make_optimiser(name).slots(role)}
    assert not kept & {"weights", "history", "state", "batch", *average_names(20)}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_an_optimiser_is_made_again_from_its_options(name):
    optimiser = make_optimiser(name)
    assert optimiser_options(optimiser)["name"] == name
    assert make_optimiser(**optimiser_options(optimiser)) == optimiser


@pytest.mark.parametrize("name", OPTIMISERS)
def test_without_a_gradient_nothing_moves_but_what_decays(name):
    optimiser = make_optimiser(name, weight_decay=0.1, clip=None)
    weights = {n: start(n) for n in PARAMETERS}
    slots = start_slots(optimiser, ROLES, weights, {})
    zeros = {n: np.zeros(p.shape) for n, p in PARAMETERS.items()}
    moved = weights
    for k in (1, 2):
        moved, slots = optimiser_update(optimiser, ROLES, moved, slots, zeros, k, 1e-2)
    for n, parameter in PARAMETERS.items():
        assert np.array_equal(moved[n], weights[n]) == (not parameter.decay), n


@pytest.mark.parametrize("options, message", [
    ({"name": "sgdd"}, r"optimiser.name: 'sgdd' was given; it must be one of .* Did you mean 'sgd'"),
    ({"name": "sgd", "beta1": 0.9}, "option of optimiser 'sgd': 'beta1' was given"),
    ({"name": "sgd", "nesterov": True, "momentum": 0.0}, "optimiser.nesterov: true was given with momentum 0.0"),
    ({"name": "sgd", "dampening": 1.5}, "optimiser.dampening: 1.5 was given; it must be between 0 and 1"),
    ({"name": "sgd", "buffer": "steps", "dampening": 0.1}, "optimiser.dampening: 0.1 was given with buffer steps"),
    ({"epsilon": "kears"}, "optimiser.epsilon: 'kears' was given; it must be one of torch, keras"),
    ({"epsilon": "keras", "amsgrad": "optax"}, "optimiser.epsilon: keras was given with amsgrad optax"),
    ({"beta1": "0.9"}, "optimiser.beta1: '0.9' was given; it must be a number"),
    ({"name": "nadam", "convention": "optax", "momentum_decay": 0.1}, "optimiser.momentum_decay: 0.1 was given with"),
    ({"name": "adafactor", "eps2": 0.0}, "optimiser.eps2: 0.0 was given; it must be positive"),
    ({"name": "muon", "steps": 0}, "optimiser.steps: 0 was given; it must be between 1 and 99"),
    ({"name": "muon", "adam_for": "out"}, "optimiser.adam_for: 'out' was given; it must be a list of names"),
    ({"name": "soap", "frequency": 0}, "optimiser.frequency: 0 was given; it must be at least 1"),
    ({"name": "schedule_free", "decay_at": "x"}, "optimiser.decay_at: 'x' was given; it must be one of y, z"),
])  # fmt: skip
def test_options_that_do_not_fit_are_refused_in_one_line(options, message):
    with pytest.raises(DuetError, match=message) as caught:
        make_optimiser(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_every_optimiser_clips_and_says_so(name):
    assert "clip" in {field.name for field in fields(OPTIMISERS[name])}
    with pytest.raises(DuetError, match=r"optimiser\.clip: 0.0 was given"):
        make_optimiser(name, clip=0.0)


@pytest.mark.parametrize("change, message", [
    (lambda s: {"momentum": s["moment1"]}, "the state has the parts momentum, but Adam keeps moment1, moment2"),
    (lambda s: s | {"moment2": {}}, "moment2: tall: the network needs shape"),
    (lambda s: s | {"moment2": s["moment2"] | {"bias": np.zeros(3)}}, r"moment2: bias: .* but \(3,\) was given"),
    (lambda s: s | {"moment2": s["moment2"] | {"other": np.zeros(3)}}, "moment2: other: no parameter"),
])  # fmt: skip
def test_the_state_of_another_optimiser_or_network_is_refused(change, message):
    weights, optimiser = {n: start(n) for n in PARAMETERS}, make_optimiser("adam")
    slots = start_slots(optimiser, ROLES, weights, {})
    assert start_slots(optimiser, ROLES, weights, slots) == slots
    with pytest.raises(DuetError, match=message):
        start_slots(optimiser, ROLES, weights, change(slots))
