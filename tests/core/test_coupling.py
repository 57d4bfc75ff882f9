"""The coupling of noise and images: plans, what they preserve, and batches that do not depend on who computes them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from diffusion_core.backend.interface import TrainBatch
from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.data import Dataset, Loader
from diffusion_core.diffusion.continuous import flow_continuous
from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import cosine
from diffusion_core.runtime.distributed import ProcessGroup
from diffusion_core.training.coupling import (
    COUPLINGS,
    draw_pairs,
    exact_plan,
    make_coupling,
    sinkhorn_plan,
    transport_cost,
)
from diffusion_core.training.loop import make_batch
from diffusion_core.training.objective import Objective

FLOW = Process(flow_continuous(), "velocity")
OPTIMAL = {"name": "optimal_transport"}
DRAWN = {"name": "optimal_transport", "draw": "replacement"}
SINKHORN = {"name": "sinkhorn", "reg": 2.0}


def points(n: int, shape=(2, 2, 1), stream="images") -> np.ndarray:
    return Stream(0, stream).normal(np.arange(n), shape)


def batch(coupling, n=16, labels=None, process=FLOW, dtype=np.float64, seed=3, first=0, **options) -> TrainBatch:
    objective = Objective(process, seed, coupling=coupling, **options)
    labels = np.zeros(n, int) if labels is None else labels
    return objective.batch(np.tanh(points(n)), labels, first + np.arange(n), dtype)


def test_the_exact_plan_is_the_best_of_all_permutations():
    cost = transport_cost(points(6), points(6, stream="others"))
    np.testing.assert_allclose(cost[1, 2], np.square(points(6)[1] - points(6, stream="others")[2]).sum(), rtol=1e-12)
    plan = exact_plan(cost)
    best = min(itertools.permutations(range(6)), key=lambda order: cost[np.arange(6), order].sum())
    assert plan.argmax(axis=1).tolist() == list(best)
    np.testing.assert_allclose(plan.sum(axis=0), 1 / 6)
    np.testing.assert_allclose(plan.sum(axis=1), 1 / 6)


def test_the_entropic_plan_solves_its_own_problem():
    """P_ij = u_i exp(-C_ij / reg) v_j with the right sums, at every scale; between the two other plans."""
    cost = transport_cost(points(12), points(12, stream="others"))
    for reg, scale in ((0.5, 1.0), (0.3, 1.0), (0.5, 4000.0)):  # exp(-cost/reg) underflows in the last
        plan = sinkhorn_plan(scale * cost, reg * scale if scale > 1 else reg, iterations=3000)
        np.testing.assert_allclose(plan.sum(axis=1), 1 / 12, rtol=1e-10)
        np.testing.assert_allclose(plan.sum(axis=0), 1 / 12, atol=1e-9)
        rest = np.log(plan) + cost / reg  # log u_i + log v_j
        np.testing.assert_allclose(rest - rest[:1] - rest[:, :1] + rest[0, 0], 0, atol=1e-8)
    np.testing.assert_allclose(sinkhorn_plan(cost, 1e6), 1 / 144, rtol=1e-4)
    costs = [float((sinkhorn_plan(cost, reg, 3000) * cost).sum()) for reg in (0.2, 0.5, 10.0)]
    assert (exact_plan(cost) * cost).sum() - 1e-9 <= costs[0] < costs[1] < costs[2] < cost.mean()
    assert np.isfinite(sinkhorn_plan(1e5 * cost, 0.05, iterations=20)).all()


def test_pairs_are_drawn_in_proportion_to_the_plan():
    plan = sinkhorn_plan(transport_cost(points(3), points(3, stream="others")), 1.0)
    u = (np.arange(90_000) + 0.5) / 90_000
    i, j = draw_pairs(plan, u)
    counts = np.zeros((3, 3))
    np.add.at(counts, (i, j), 1 / 90_000)
    np.testing.assert_allclose(counts, plan, atol=2e-5)
    rows, columns = draw_pairs(exact_plan([[4.0, 1.0], [2.0, 3.0]]), [0.0, 0.49, 0.5, 0.999])
    assert (rows.tolist(), columns.tolist()) == ([0, 0, 1, 1], [1, 1, 0, 0])


@pytest.mark.parametrize("coupling", [OPTIMAL, OPTIMAL | {"per_class": True}])
def test_an_assignment_keeps_images_and_noises_and_shortens_paths(coupling):
    labels = np.arange(16) % 3
    own, coupled = (batch(one, labels=labels, classes=3) for one in ({"name": "independent"}, coupling))
    for name in set(own.arrays) - {"noise"}:
        np.testing.assert_array_equal(own.arrays[name], coupled.arrays[name], err_msg=name)
    groups = [np.flatnonzero(labels == k) for k in range(3)] if "per_class" in coupling else [np.arange(16)]
    for group in groups:
        kept = [sorted(map(bytes, noise[group])) for noise in (own.noise, coupled.noise)]
        assert kept[0] == kept[1]
    lengths = [np.square(one.noise - one.images).sum() for one in (own, coupled)]
    assert lengths[1] < lengths[0]


def test_coupling_classes_apart_costs_more_than_together():
    labels = np.arange(32) % 2
    costs = []
    for coupling in (OPTIMAL, OPTIMAL | {"per_class": True}, {"name": "independent"}):
        made = batch(coupling, 32, labels, classes=2)
        costs.append(np.square(made.noise - made.images).sum())
    assert costs[0] < costs[1] < costs[2]


@pytest.mark.parametrize("coupling", [DRAWN, SINKHORN])
def test_drawn_pairs_are_rows_of_the_batch_with_their_labels(coupling):
    labels = np.arange(16) % 4
    own, coupled = (
        batch({"name": "independent"}, labels=labels, null_label=4),
        batch(coupling, labels=labels, null_label=4),
    )
    rows = [bytes(row) for row in own.images]
    taken = [rows.index(bytes(row)) for row in coupled.images]
    assert len(set(taken)) < 16  # with replacement
    np.testing.assert_array_equal(coupled.label, own.label[taken])
    assert {bytes(row) for row in coupled.noise} <= {bytes(row) for row in own.noise}
    np.testing.assert_array_equal(coupled.c_noise, own.c_noise)


def test_the_variance_of_the_velocity_has_its_closed_form():
    """In one dimension the coupling sorts: for N(0, s^2) data, E (eps - x)^2 falls from 1 + s^2 to (1 - s)^2."""
    n, s = 512, 0.6
    images = s * Stream(1, "images").normal(np.arange(n), (1, 1, 1))
    for name, expected in (("independent", 1 + s**2), ("optimal_transport", (1 - s) ** 2)):
        made = Objective(FLOW, 5, coupling={"name": name}).batch(images, np.zeros(n, int), np.arange(n), np.float64)
        assert np.square(made.noise - made.images).mean() == pytest.approx(expected, abs=0.1)
        assert made.noise.mean() == pytest.approx(0, abs=0.1)
        assert made.noise.std() == pytest.approx(1, rel=0.05)
        is_sorted = np.array_equal(np.argsort(made.noise.ravel()), np.argsort(images.ravel()))
        assert is_sorted == (name == "optimal_transport")


@pytest.mark.parametrize("coupling", [OPTIMAL, DRAWN, SINKHORN, OPTIMAL | {"per_class": True}])
def test_a_coupled_batch_is_a_function_of_seed_and_positions_in_any_number_of_processes(coupling):
    data = Dataset(np.arange(24 * 4, dtype=np.uint8).reshape(24, 2, 2, 1), np.arange(24) % 3, ("a", "b", "c"), "some")
    loader = Loader(data, seed=1)
    objective = Objective(FLOW, 1, null_label=3, label_dropout=0.3, coupling=coupling, input_perturbation=0.1)
    whole = make_batch(loader, objective, 40, 10)
    parts = [make_batch(loader, objective, 40, 10, group=ProcessGroup(rank, 3)) for rank in range(3)]
    for name, value in whole.arrays.items():
        if name not in ("dropout_key", "importance"):
            joined = np.concatenate([part.arrays[name] for part in parts])
            np.testing.assert_array_equal(value, joined, err_msg=name)
    assert sum(part.importance.mean() for part in parts) == pytest.approx(1)
    again = make_batch(loader, objective, 40, 10)
    np.testing.assert_array_equal(whole.noise, again.noise)
    assert not np.array_equal(whole.noise, make_batch(loader, objective, 50, 10).noise)


def test_a_loader_of_a_part_is_refused():
    data = Dataset(np.zeros((8, 2, 2, 1), np.uint8), np.zeros(8, int), ("all",), "some")
    loader = Loader(data, seed=1, group=ProcessGroup(0, 2))
    with pytest.raises(DuetError, match=r"process.coupling: optimal_transport needs the 8 images of the whole batch"):
        make_batch(loader, Objective(FLOW, 1, coupling=OPTIMAL), 0, 8)


def test_equal_images_have_equal_costs():
    """Otherwise the rounding of a sum would choose between them, in another way on another machine."""
    images = np.tanh(points(5, (7, 7, 3)))[[0, 1, 0, 2, 3, 0, 4]]
    cost = transport_cost(points(7, (7, 7, 3), "others"), images)
    np.testing.assert_array_equal(cost[:, 0], cost[:, 2])
    np.testing.assert_array_equal(cost[:, 0], cost[:, 5])


def test_every_process_with_free_noise_can_be_coupled_and_a_scale_changes_nothing():
    scaled = Process(flow_continuous(noise_scale=3.0), "velocity")
    for process in (Process(cosine(), "eps"), Process(cosine(), "v"), scaled):
        np.testing.assert_array_equal(batch(OPTIMAL, process=process).noise, batch(OPTIMAL).noise)


@pytest.mark.parametrize(
    "coupling, message",
    [
        ({"name": "optimal"}, r"process.coupling.name: 'optimal' was given.*optimal_transport"),
        (OPTIMAL | {"draw": "all"}, r"process.coupling.draw: 'all' was given.*assignment.*replacement"),
        (OPTIMAL | {"reg": 1.0}, r"option of process.coupling 'optimal_transport'"),
        ({"name": "sinkhorn", "reg": 0.0}, r"process.coupling.reg: 0.0 was given"),
        ({"name": "sinkhorn", "iterations": 0}, r"process.coupling.iterations: 0 was given"),
    ],
)
def test_a_wrong_coupling_is_refused(coupling, message):
    with pytest.raises(DuetError, match=message):
        make_coupling(**coupling)
    with pytest.raises(DuetError, match=message):
        Objective(FLOW, 0, coupling=coupling)


def test_a_network_without_classes_has_none_to_couple():
    with pytest.raises(DuetError, match=r"process.coupling.per_class: true was given, but the network has no classes"):
        Objective(FLOW, 0, coupling=OPTIMAL | {"per_class": True})


def test_the_variational_bound_needs_independent_noise():
    with pytest.raises(DuetError, match=r"process.coupling: optimal_transport was given with process.variance"):
        Objective(Process(cosine(), "eps"), 0, variance="learned_range", coupling=OPTIMAL)
    assert "independent" in COUPLINGS
