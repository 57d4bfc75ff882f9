"""The executor of sampler plans in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import torch
from numpy.typing import NDArray
from torch import Tensor

from backends.torch.network import Network, to_host
from diffusion_core.backend.interface import MIN_STD, Guidance, NoiseSource, StepCallback
from diffusion_core.sampling.plan import SamplerPlan
from diffusion_core.sampling.rows import Row, RowSignature

__all__ = ["sample", "sample_tensors"]

# F of the network, F of the guide, and the classifier's gradient.
Outputs = tuple[Tensor, Tensor | None, Tensor | None]


def _network_inputs(
    network: Network,
    signature: RowSignature,
    row: Row,
    x: Tensor,
    label: Tensor,
    null_label: Tensor,
    guide: Network | None,
    estimate: Tensor,
    features: Tensor,
    null_features: Tensor,
) -> tuple[Tensor, ...]:
    """Return the inputs of the network for one row.

    Under classifier-free guidance, the conditional and the unconditional batch are concatenated. A self-conditioned
    network reads the estimate D_{i-1} of the previous row.
    """
    if signature.guided and guide is None:
        x, label, estimate = torch.cat([x, x]), torch.cat([label, null_label]), torch.cat([estimate, estimate])
        features = torch.cat([features, null_features])
    second = network.program.default_second_time if row.second_time is None else row.second_time
    c_noise, second_time = (
        torch.full((len(x),), t, dtype=torch.float64, device=x.device) for t in (row.c_noise, second)
    )
    return row.c_in * x, c_noise, label, features, estimate, second_time


def _evaluate(
    network: Network, signature: RowSignature, inputs: tuple[Tensor, ...], label: Tensor, guidance: Guidance
) -> Outputs:
    """Return (F of the network, F of the guide, the classifier's gradient of log p(class | x)); None without one.

    A guide gets no estimate of the previous row, and the features if it takes as many.
    """
    guide, guide_output, grad_log_prob = guidance.guide, None, None
    if signature.guided and guide is not None:
        same = guide.program.features == network.program.features
        guide_output = guide.call(*inputs[:3], inputs[3] if same else guide.zero_features(len(label)), None)
    if signature.classified:
        x, c_noise = (value[: len(label)] for value in inputs[:2])
        grad_log_prob = guidance.classifier.grad_log_prob(x, c_noise, label - network.program.labels.start)
    return network.call(*inputs), guide_output, grad_log_prob


def _guided_output(
    signature: RowSignature, row: Row, output: Tensor, guide_output: Tensor | None, channels: int
) -> Tensor:
    """Return F_i: guidance applies to the image channels; those of a learned variance stay conditional."""
    if not signature.guided:
        return output
    if guide_output is None:
        output, guide_output = output.chunk(2)
    image, rest, negative = output[:, :channels], output[:, channels:], guide_output[:, :channels]
    guided = negative + row.guidance_scale * (image - negative)
    if (first := signature.guidance_channels) is not None:
        guided = torch.cat([guided[:, :first], image[:, first:]], dim=1)
    if signature.rescale:
        ratio = _std(image) / _std(guided).clamp(min=MIN_STD)
        guided = (signature.rescale * ratio + (1.0 - signature.rescale)) * guided
    return torch.cat([guided, rest], dim=1)


def _std(images: Tensor) -> Tensor:
    """Return the standard deviation of each image."""
    return images.std(dim=(1, 2, 3), correction=0, keepdim=True)


def _clip_estimate(signature: RowSignature, estimate: Tensor) -> Tensor:
    """Clip the estimates to the plan's bounds, or by dynamic thresholding (a quantile of each image)."""
    if signature.bounds is None:
        return estimate
    if signature.threshold is None:
        return estimate.clamp(*signature.bounds)
    middle, half = signature.scale
    y = (estimate - middle) / half
    sizes = y.abs().flatten(1).sort(dim=1).values
    below, above, weight = signature.quantile(sizes.shape[1])
    quantile = sizes[:, below] + weight * (sizes[:, above] - sizes[:, below])
    bound = quantile.clamp(min=signature.clip, max=signature.threshold_max)[:, None, None, None]
    return middle + half * (signature.clip / bound * torch.minimum(torch.maximum(y, -bound), bound))


def _update_registers(
    row: Row, registers: list[Tensor], history: list[Tensor], unclipped: Tensor, z: Tensor | None
) -> list[Tensor]:
    """Return state X + denoised D + unclipped U + noise z, one register after another."""
    updated = []
    for r, (state, denoised, noise) in enumerate(zip(row.state, row.denoised, row.noise, strict=True)):
        terms = [weight * x for weight, x in zip(state, registers, strict=True)]
        terms += [weight * d for weight, d in zip(denoised, history, strict=True)]
        if row.unclipped:
            terms.append(row.unclipped[r] * unclipped)
        if z is not None:
            terms.append(noise * z)
        updated.append(sum(terms[1:], start=terms[0]))
    return updated


def _estimate(signature: RowSignature, row: Row, x: Tensor, outputs: Outputs) -> tuple[Tensor, Tensor]:
    """Return (the estimate of x_0 before it is bounded, the output F_i)."""
    output, guide_output, grad_log_prob = outputs
    channels = x.shape[1]
    output = _guided_output(signature, row, output, guide_output, channels)
    image = output if output.shape[1] == channels else output[:, :channels]
    estimate = row.c_skip * x + row.c_out * image
    if grad_log_prob is not None:
        estimate = estimate + row.classifier * (row.c_in * grad_log_prob)
    return estimate, output


def _follow_measurement(
    network: Network,
    signature: RowSignature,
    row: Row,
    registers: list[Tensor],
    history: list[Tensor],
    outputs: Callable[[Tensor], Outputs],
    z: Tensor | None,
    moves_state: bool,
    shift: Callable[[NDArray, Callable[[NDArray], NDArray]], NDArray],
) -> tuple[list[Tensor], list[Tensor]]:
    """Return (registers, history) after a row whose estimate, or register 0, a measurement shifts."""
    context = network.context

    def evaluate() -> tuple[Tensor, Tensor, Tensor, Tensor]:
        with torch.enable_grad():
            x = registers[0].detach().requires_grad_()
            estimate, output = _estimate(signature, row, x, outputs(x))
            return x, estimate, output, _clip_estimate(signature, estimate) if moves_state else estimate

    evaluated = [evaluate()]
    _, estimate, output, followed = evaluated[0]

    def pull_back(cotangent: NDArray) -> NDArray:
        # A compiled backward pass frees what it needs: evaluate again for each further product.
        x, _, _, target = (evaluated.pop() if context.compile else evaluated[0]) if evaluated else evaluate()
        given = target, x, context.images(cotangent)
        return to_host(torch.autograd.grad(*given, retain_graph=not context.compile)[0])

    shifted = context.images(shift(to_host(followed.detach()), pull_back))
    estimate = estimate.detach() if moves_state else estimate.detach() + shifted
    registers, history = _finish_row(signature, row, registers, history, estimate, output.detach(), z)
    return [registers[0] + shifted, *registers[1:]] if moves_state else registers, history


def _finish_row(
    signature: RowSignature,
    row: Row,
    registers: list[Tensor],
    history: list[Tensor],
    estimate: Tensor,
    output: Tensor,
    z: Tensor | None,
    mask: Tensor | None = None,
    known: Tensor | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Return (registers, history) after a row."""
    x, channels = registers[0], registers[0].shape[1]
    unclipped = estimate
    if signature.unclipped:
        estimate = row.clipped[0] * x + row.clipped[1] * unclipped
    history = [_clip_estimate(signature, estimate), *history[:-1]]
    if z is not None and signature.learned:
        z = torch.exp(row.learned[0] + row.learned[1] * output[:, channels : 2 * channels]) * z
    registers = _update_registers(row, registers, history, unclipped, z)
    if mask is not None:
        registers[0] = mask * known + (1.0 - mask) * registers[0]
    return registers, history


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
    # Tensors made in inference mode do not take part in autograd.
    with torch.inference_mode() if guidance.measurement is None else torch.no_grad():
        start = network.context.images(start)
        return to_host(sample_tensors(network, plan, start, label, noise, callback, guidance))


def sample_tensors(
    network: Network,
    plan: SamplerPlan,
    start: Tensor,
    label: NDArray,
    noise: NoiseSource,
    callback: StepCallback | None,
    guidance: Guidance,
) -> Tensor:
    """Run a plan from a tensor b c h w to a tensor, through which gradients can flow."""
    context = network.context
    coefficients, noisy = plan.coefficients(), plan.is_noisy
    label = context.tensor(label, torch.int64)
    null_label = torch.full_like(label, network.program.null_label or 0)
    mask = None if guidance.mask is None else context.images(guidance.mask)
    zeros = network.zero_features(len(label))
    features = zeros if guidance.features is None else context.tensor(guidance.features)
    null_features = zeros if guidance.null_features is None else context.tensor(guidance.null_features)
    registers = [start] + [torch.zeros_like(start) for _ in range(plan.registers - 1)]
    history = [torch.zeros_like(start) for _ in range(plan.history)]

    def evaluate(signature: RowSignature, row: Row, estimate: Tensor, x: Tensor) -> Outputs:
        inputs = _network_inputs(
            network, signature, row, x, label, null_label, guidance.guide, estimate, features, null_features
        )
        return _evaluate(network, signature, inputs, label, guidance)

    with ExitStack() as stack:
        for each in (network, guidance.guide, guidance.classifier):
            if each is not None:
                stack.enter_context(each.mode())
        for signature, rows in plan.segments(ends=() if callback is None else callback.selected_rows(plan.rows)):
            for i in rows:
                row = signature.row(coefficients[i].tolist())
                z = context.images(noise(i)) if noisy[i] else None
                known = None if mask is None else context.images(guidance.known(i))
                state, outputs = (registers, history), partial(evaluate, signature, row, history[0])
                if guidance.measurement is None:
                    estimated = _estimate(signature, row, registers[0], outputs(registers[0]))
                    registers, history = _finish_row(signature, row, *state, *estimated, z, mask, known)
                else:
                    follow = guidance.measurement.follow(plan, rows, i - rows.start)
                    registers, history = _follow_measurement(network, signature, row, *state, outputs, z, *follow)
            if callback is not None:
                callback(rows[-1], to_host(registers[0].detach()), to_host(history[0].detach()))
    return registers[0]
