"""The executor of sampler plans in PyTorch."""

from __future__ import annotations

import torch
from numpy.typing import NDArray
from torch import Tensor

from backends.torch.network import Network, to_host
from diffusion_core.backend.interface import MIN_STD, Guidance, NoiseSource, StepCallback
from diffusion_core.sampling.plan import SamplerPlan
from diffusion_core.sampling.rows import Row, RowSignature

__all__ = ["sample"]


def _inputs(
    network: Network,
    form: RowSignature,
    row: Row,
    x: Tensor,
    label: Tensor,
    null: Tensor,
    guide: Network | None,
    before: Tensor,
) -> tuple[Tensor, ...]:
    """What the network is called with at a row: of the class and of none, one after the other, where it guides itself.

    A self-conditioned network is given D_{i-1}.
    """
    if form.guided and guide is None:
        x, label, before = torch.cat([x, x]), torch.cat([label, null]), torch.cat([before, before])
    c_noise = torch.full((len(x),), row.c_noise, dtype=torch.float64, device=x.device)
    return row.c_in * x, c_noise, label, network.no_features(len(x)), before


def _answers(
    network: Network, form: RowSignature, inputs: tuple[Tensor, ...], label: Tensor, guidance: Guidance
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(F of the network, F of its guide, the classifier's gradient of log p(class | x)); None where there is none.

    A guide is given no estimate.
    """
    guide, other, grad_log_prob = guidance.guide, None, None
    if form.guided and guide is not None:
        other = guide.call(*inputs[:3], guide.no_features(len(label)), None)
    if form.classified:
        x, c_noise = (one[: len(label)] for one in inputs[:2])
        grad_log_prob = guidance.classifier.grad_log_prob(x, c_noise, label - network.program.labels.start)
    return network.call(*inputs), other, grad_log_prob


def _output(form: RowSignature, row: Row, wanted: Tensor, other: Tensor | None, channels: int) -> Tensor:
    """F_i: guided in the channels of the image, of the class alone in those of a learned variance."""
    if not form.guided:
        return wanted
    if other is None:
        wanted, other = wanted.chunk(2)
    wanted, rest, other = wanted[:, :channels], wanted[:, channels:], other[:, :channels]
    guided = other + row.guidance_scale * (wanted - other)
    if form.rescale:
        spread = _spread(wanted) / _spread(guided).clamp(min=MIN_STD)
        guided = (form.rescale * spread + (1.0 - form.rescale)) * guided
    return torch.cat([guided, rest], dim=1)


def _spread(images: Tensor) -> Tensor:
    """The standard deviation of each image."""
    return images.std(dim=(1, 2, 3), correction=0, keepdim=True)


def _bounded(form: RowSignature, estimate: Tensor) -> Tensor:
    """Estimates within the plan's bounds, or within each image's own and brought back to them."""
    if form.bounds is None:
        return estimate
    if form.threshold is None:
        return estimate.clamp(*form.bounds)
    middle, half = form.scale
    y = (estimate - middle) / half
    sizes = y.abs().flatten(1).sort(dim=1).values
    below, above, share = form.quantile(sizes.shape[1])
    bound = (sizes[:, below] + share * (sizes[:, above] - sizes[:, below])).clamp(min=form.clip)[:, None, None, None]
    return middle + half * (form.clip / bound * torch.minimum(torch.maximum(y, -bound), bound))


def _advance(row: Row, registers: list[Tensor], history: list[Tensor], z: Tensor | None) -> list[Tensor]:
    """state X + denoised D + noise z, register by register."""
    advanced = []
    for state, denoised, noise in zip(row.state, row.denoised, row.noise, strict=True):
        terms = [weight * x for weight, x in zip(state, registers, strict=True)]
        terms += [weight * d for weight, d in zip(denoised, history, strict=True)]
        if z is not None:
            terms.append(noise * z)
        advanced.append(sum(terms[1:], start=terms[0]))
    return advanced


def _next(
    form: RowSignature,
    row: Row,
    registers: list[Tensor],
    history: list[Tensor],
    answers: tuple[Tensor, Tensor | None, Tensor | None],
    z: Tensor | None,
    mask: Tensor | None,
    known: Tensor | None,
) -> tuple[list[Tensor], list[Tensor]]:
    """(registers, history) after a row."""
    wanted, other, grad_log_prob = answers
    x, channels = registers[0], registers[0].shape[1]
    output = _output(form, row, wanted, other, channels)
    image = output if output.shape[1] == channels else output[:, :channels]
    estimate = row.c_skip * x + row.c_out * image
    if grad_log_prob is not None:
        estimate = estimate + row.classifier * (row.c_in * grad_log_prob)
    history = [_bounded(form, estimate), *history[:-1]]
    if z is not None and form.learned:
        z = torch.exp(row.learned[0] + row.learned[1] * output[:, channels : 2 * channels]) * z
    registers = _advance(row, registers, history, z)
    if mask is not None:
        registers[0] = mask * known + (1.0 - mask) * registers[0]
    return registers, history


@torch.inference_mode()
def sample(
    network: Network,
    plan: SamplerPlan,
    start: NDArray,
    label: NDArray,
    noise: NoiseSource,
    callback: StepCallback | None,
    guidance: Guidance,
) -> NDArray:
    """Run a plan; see `diffusion_core.backend.interface.Backend.sample`."""
    context = network.context
    numbers, noisy = plan.coefficients(), plan.is_noisy
    label = context.tensor(label, torch.int64)
    null = torch.full_like(label, network.program.null_label or 0)
    mask = None if guidance.mask is None else context.images(guidance.mask)
    x = context.images(start)
    registers = [x] + [torch.zeros_like(x) for _ in range(plan.registers - 1)]
    history = [torch.zeros_like(x) for _ in range(plan.history)]
    for form, rows in plan.segments(ends=() if callback is None else callback.selected_rows(plan.rows)):
        for i in rows:
            row = form.row(numbers[i].tolist())
            z = context.images(noise(i)) if noisy[i] else None
            known = None if mask is None else context.images(guidance.known(i))
            inputs = _inputs(network, form, row, registers[0], label, null, guidance.guide, history[0])
            answers = _answers(network, form, inputs, label, guidance)
            registers, history = _next(form, row, registers, history, answers, z, mask, known)
        if callback is not None:
            callback(rows[-1], to_host(registers[0]), to_host(history[0]))
    return to_host(registers[0])
