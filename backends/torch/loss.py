"""The loss of a training batch in PyTorch: noise, forward, distance, variational bound; or the steps of a target."""

from __future__ import annotations

import math
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from backends.torch.device import DeviceContext
from backends.torch.network import Network, to_host
from diffusion_core.backend.batch import noised_and_target
from diffusion_core.backend.interface import MIN_PROBABILITY, PSEUDO_HUBER_C, TrainBatch
from diffusion_core.backend.target import MIN_SQUARES, Distance, Pass, Sum, Target, Unit, run
from diffusion_core.networks.program import Training

__all__ = ["Batch", "batch_tensors", "loss_tensors", "noised", "split_batch", "target_tensors"]


def _pseudo_huber(a: Tensor, b: Tensor) -> Tensor:
    square = torch.square(a - b)
    return square / (torch.sqrt(square + PSEUDO_HUBER_C**2) + PSEUDO_HUBER_C)


def _pixel_mean(distance: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return the mean of a distance over each image; only the first channels of a wider output count."""
    return lambda output, target, label: distance(output[:, : target.shape[1]], target).mean(dim=(1, 2, 3))


# The distance per image, of (output, target, label).
_DISTANCES = {
    "mse": _pixel_mean(lambda a, b: F.mse_loss(a, b, reduction="none")),
    "l1": _pixel_mean(lambda a, b: F.l1_loss(a, b, reduction="none")),
    "huber": _pixel_mean(lambda a, b: F.huber_loss(a, b, reduction="none")),
    "pseudo_huber": _pixel_mean(_pseudo_huber),
    "cross_entropy": lambda logits, target, label: F.cross_entropy(logits, label, reduction="none"),
}


# A batch on the device.
Batch = namedtuple("Batch", [field.name for field in fields(TrainBatch)])
_TYPES = {
    "label": torch.int64,
    "c_noise": torch.float64,
    "positions": torch.int64,
    "dropout_key": torch.int64,
    "times": torch.float64,
}


def batch_tensors(batch: TrainBatch, context: DeviceContext) -> Batch:
    """Return the fields of a batch as tensors on the device."""

    def tensor(name: str, array: NDArray) -> Tensor:
        return context.images(array) if array.ndim == 4 else context.tensor(array, _TYPES.get(name))

    return Batch(*(None if array is None else tensor(name, array) for name, array in vars(batch).items()))


def split_batch(b: Batch, count: int) -> Iterator[Batch]:
    """Split a batch into equal micro-batches whose losses sum to the batch loss."""
    if count == 1:
        yield b
        return
    each, scaled = len(b.label) // count, b._replace(importance=b.importance / count)
    for i in range(count):
        part = slice(i * each, (i + 1) * each)
        yield Batch(*(None if t is None else t[part] for t in scaled))._replace(dropout_key=b.dropout_key)


def _to_pixels(column: Tensor) -> Tensor:
    return column[:, None, None, None]


def noised(batch: TrainBatch, context: DeviceContext) -> tuple[NDArray, NDArray]:
    """Return (x_t, target) of a batch, as the training step computes them."""
    x, target = noised_and_target(batch_tensors(batch, context))
    return to_host(x), to_host(target)


def _normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * torch.special.erfc(-math.sqrt(0.5) * x)


def _tanh_cdf(x: Tensor) -> Tensor:
    # (1 + tanh z) / 2 = sigmoid(2 z), which keeps the digits of small probabilities.
    return torch.sigmoid(2.0 * math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x))


def _variational_bound(b: Batch, residual: Tensor, variance: Tensor) -> Tensor:
    """Return the weighted variational bound of each image; see `diffusion_core.backend.interface.TrainBatch`."""
    *columns, weight = b.variational[:, :8].unbind(1)
    offset, scale, error, half_bin, lowest, highest, mean_gradient = map(_to_pixels, columns)
    cdf = _tanh_cdf if b.variational.shape[1] > 8 else _normal_cdf
    detached = residual.detach()
    u = offset + scale * variance if variance.shape[1] else offset  # a fixed variance needs no output
    e = error * (detached + mean_gradient * (residual - detached))
    divergence = 0.5 * (u + torch.expm1(-u) + torch.exp(-u) * torch.square(e))
    black, white = b.images < lowest, b.images > highest
    # Mirror the bin so that its far or open side is at minus infinity, where probabilities are small numbers.
    e = torch.where(black, e, torch.where(white, -e, e.abs()))
    narrow = torch.exp(-0.5 * u)
    beyond = torch.where(black | white, 0.0, cdf(-narrow * (half_bin + e)))
    probability = cdf(narrow * (half_bin - e)) - beyond
    decoder = -torch.log(probability.clamp(min=MIN_PROBABILITY))
    return weight * torch.where(half_bin > 0, decoder, divergence).mean(dim=(1, 2, 3))


def _output(
    network: Network, b: Batch, x: Tensor, estimate: Tensor | None, values: dict[str, Tensor] | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return F in training mode, and the new running statistics by name."""
    training, scaled = Training(b.dropout_key, b.positions, values=values), _to_pixels(b.c_in) * x
    output = network.apply_program(scaled, b.c_noise, b.label, b.features, estimate, training=training)
    return output, training.statistics


@torch.no_grad()
def _estimate(network: Network, b: Batch, x: Tensor, values: dict[str, Tensor] | None) -> Tensor | None:
    """Return the estimate of a first pass for self-conditioning; None without it."""
    if b.self_conditioning is None:
        return None
    c_skip, c_out, keep, lowest, highest = map(_to_pixels, b.self_conditioning.unbind(1))
    output, _ = _output(network, b, x, None, values)
    return keep * torch.clamp(c_skip * x + c_out * output[:, : x.shape[1]], lowest, highest)


def loss_tensors(
    network: Network, b: Batch, distance: str, values: dict[str, Tensor] | None = None
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return the loss of a batch, the loss of each image, and the new running statistics by name.

    Gradients can flow through the first two; `values` is filled with the value of each block if it is given.
    """
    x, target = noised_and_target(b)
    channels = x.shape[1]
    output, statistics = _output(network, b, x, _estimate(network, b, x, values), values)
    losses = b.weight * _DISTANCES[distance](output, target, b.label)
    if network.program.uncertainty:
        uncertainty = output[:, -1].mean(dim=(1, 2))
        losses = torch.exp(-uncertainty) * losses + uncertainty
    if b.variational is not None:
        losses = losses + _variational_bound(b, output[:, :channels] - target, output[:, channels : 2 * channels])
    return (b.importance * losses).mean(), losses, statistics


def _known(b: Batch) -> dict[str, Tensor]:
    """Return the values that the steps of a target begin with."""
    return {"images": b.images, "noise": b.noise}


def _by_name(names: tuple[str, ...], table: Tensor) -> dict[str, Tensor]:
    """Return the columns of a table by name."""
    return dict(zip(names, table.unbind(1), strict=True))


def _combine(step: Sum | Unit, values: Mapping[str, Tensor], columns: Mapping[str, Tensor]) -> Tensor:
    """Return a linear combination of values, or a value divided by its norm."""
    if isinstance(step, Unit):
        value = values[step.value]
        square = torch.square(value)
        square = (square.mean if step.mean else square.sum)(dim=(1, 2, 3), keepdim=True)
        return value / (torch.sqrt(square.clamp(min=MIN_SQUARES)) + step.c)
    total = sum((_to_pixels(columns[c]) if isinstance(c, str) else c) * values[name] for c, name in step.terms)
    return total if step.bounds is None else total.clamp(*step.bounds)


def _rows(step: Pass, columns: Mapping[str, Tensor]) -> Tensor | slice:
    """Return the indices of the images that a pass evaluates."""
    if step.rows is None or len(column := columns[step.rows.column]) % step.rows.every:
        return slice(None)
    every, place = step.rows.every, column.view(-1, step.rows.every).argmax(dim=1)
    return place + every * torch.arange(len(place), device=column.device)


def _evaluate(
    networks: Mapping[str, Network],
    b: Batch,
    step: Pass,
    values: Mapping[str, Tensor],
    columns: Mapping[str, Tensor],
    times: Mapping[str, Tensor],
    training: Training,
) -> tuple[Tensor, ...]:
    """Return the outputs of a pass."""
    network, rows = networks[step.network], _rows(step, columns)
    label = torch.full_like(b.label, network.program.null_label) if step.null_label else b.label
    label, features = label[rows], b.features[rows, : network.program.features]
    x, c_noise = values[step.x][rows], times[step.c_noise][rows]
    second = network.second_times(c_noise) if step.second_time is None else times[step.second_time][rows]
    mode = training if step.trains else None
    with torch.set_grad_enabled(step.gradient and torch.is_grad_enabled()):
        if step.direction is None:
            outputs = (network.apply_program(x, c_noise, label, features, None, second, mode),)
        else:
            to = step.direction
            dsecond = torch.zeros_like(second) if to.second_time is None else times[to.second_time]
            direction = values[to.x], times[to.c_noise], dsecond
            outputs = network.derivative((x, c_noise, second), direction, label, features, mode)
    uncertainty = (outputs[0][:, -1].mean(dim=(1, 2)),) if step.uncertainty else ()
    output, *rate = (value[:, : x.shape[1]] for value in outputs)
    if len(x) < len(b.label):
        output = output.repeat_interleave(step.rows.every, dim=0)
    return (output, *(value.detach() for value in rate), *uncertainty)


def _scored(distance: Distance, residual: Tensor) -> Tensor:
    """Return the distance of each image."""
    square, c = torch.square(residual), distance.c
    if distance.name in ("squares", "norm"):
        loss = square.sum(dim=(1, 2, 3))
        if distance.name == "norm":
            loss = torch.sqrt((loss + c**2).clamp(min=MIN_SQUARES)) - c
    elif distance.name == "pseudo_huber":
        loss = (square / (torch.sqrt(square + c**2) + c)).mean(dim=(1, 2, 3))
    else:
        loss = _DISTANCES[distance.name](residual, torch.zeros_like(residual), None)
    return loss / (loss.detach() + distance.eps) ** distance.power if distance.power else loss


def target_tensors(
    networks: Mapping[str, Network], b: Batch, target: Target, values: dict[str, Tensor] | None = None
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return what `loss_tensors` returns, for a target that needs the network; see `diffusion_core.backend.target`."""
    columns, times = _by_name(target.columns, b.columns), _by_name(target.times, b.times)
    statistics: dict[str, Tensor] = {}

    def evaluate(step: Pass, known: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        training = Training(b.dropout_key, b.positions, values=values if step.gradient else None)
        outputs = _evaluate(networks, b, step, known, columns, times, training)
        if step.gradient:
            statistics.update(training.statistics)
        return outputs

    known = run(target, _known(b), lambda step, known: _combine(step, known, columns), evaluate)
    losses = b.weight * _scored(target.distance, known[target.prediction] - known[target.target].detach())
    if target.uncertainty is not None:
        losses = torch.exp(-known[target.uncertainty]) * losses + known[target.uncertainty]
    return (b.importance * losses).mean(), losses, statistics
