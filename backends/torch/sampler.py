"""The executor of sampler plans in PyTorch."""

from __future__ import annotations

import torch
from numpy.typing import NDArray
from torch import Tensor

from backends.torch.network import Network, to_host
from diffusion_core.backend import LEAST_SPREAD, NoiseSource, Steering, Watch
from diffusion_core.sampling.plan import SamplerPlan

__all__ = ["sample"]


def _output(
    network: Network,
    plan: SamplerPlan,
    i: int,
    x: Tensor,
    label: Tensor,
    null: Tensor,
    guide: Network | None,
    before: Tensor,
) -> Tensor:
    """F_i: guided in the channels of the image, of the class alone in those of a learned variance.

    A self-conditioned network is given D_{i-1}, and a guide nothing.
    """
    x, guidance, channels = float(plan.c_in[i]) * x, float(plan.guidance[i]), x.shape[1]
    c_noise = torch.full((len(x),), float(plan.c_noise[i]), dtype=torch.float64, device=x.device)
    if not plan.is_guided[i]:
        return network.call(x, c_noise, label, network.no_features(len(x)), before)
    if guide is None:
        twice, c_noise, label = torch.cat([x, x]), torch.cat([c_noise, c_noise]), torch.cat([label, null])
        before = torch.cat([before, before])
        wanted, other = network.call(twice, c_noise, label, network.no_features(len(twice)), before).chunk(2)
    else:
        wanted = network.call(x, c_noise, label, network.no_features(len(x)), before)
        other = guide.call(x, c_noise, label, guide.no_features(len(x)), None)
    wanted, rest, other = wanted[:, :channels], wanted[:, channels:], other[:, :channels]
    guided = other + guidance * (wanted - other)
    if plan.rescale:
        spread = _spread(wanted) / _spread(guided).clamp(min=LEAST_SPREAD)
        guided = (plan.rescale * spread + (1.0 - plan.rescale)) * guided
    return torch.cat([guided, rest], dim=1)


def _spread(images: Tensor) -> Tensor:
    """The standard deviation of each image."""
    return images.std(dim=(1, 2, 3), correction=0, keepdim=True)


def _slope(classifier: Network, plan: SamplerPlan, i: int, x: Tensor, label: Tensor) -> Tensor:
    """The gradient of log p(class | x) at row i."""
    c_in = float(plan.c_in[i])
    c_noise = torch.full((len(x),), float(plan.c_noise[i]), dtype=torch.float64, device=x.device)
    return c_in * classifier.slope(c_in * x, c_noise, label)


def _bounded(plan: SamplerPlan, estimate: Tensor) -> Tensor:
    """Estimates within the plan's bounds, or within each image's own and brought back to them."""
    if plan.bounds is None:
        return estimate
    if plan.threshold is None:
        return estimate.clamp(*plan.bounds)
    middle, half = plan.scale
    y = (estimate - middle) / half
    sizes = y.abs().flatten(1).sort(dim=1).values
    below, above, share = plan.quantile(sizes.shape[1])
    bound = (sizes[:, below] + share * (sizes[:, above] - sizes[:, below])).clamp(min=plan.clip)[:, None, None, None]
    return middle + half * (plan.clip / bound * torch.minimum(torch.maximum(y, -bound), bound))


def _advance(
    plan: SamplerPlan, i: int, registers: list[Tensor], history: list[Tensor], z: Tensor | None
) -> list[Tensor]:
    """state[i] X + denoised[i] D + noise[i] z, register by register."""
    advanced = []
    for r in range(plan.registers):
        terms = [float(plan.state[i, r, q]) * x for q, x in enumerate(registers)]
        terms += [float(plan.denoised[i, r, h]) * d for h, d in enumerate(history)]
        if z is not None:
            terms.append(float(plan.noise[i, r]) * z)
        advanced.append(sum(terms[1:], start=terms[0]))
    return advanced


@torch.inference_mode()
def sample(
    network: Network,
    plan: SamplerPlan,
    start: NDArray,
    label: NDArray,
    noise: NoiseSource,
    watch: Watch | None,
    steering: Steering,
) -> NDArray:
    """Run a plan; see `diffusion_core.backend.Backend.sample`."""
    place = network.place
    label = place.tensor(label, torch.int64)
    null = torch.full_like(label, network.program.null_label or 0)
    mask = None if steering.mask is None else place.images(steering.mask)
    x = place.images(start)
    registers = [x] + [torch.zeros_like(x) for _ in range(plan.registers - 1)]
    history = [torch.zeros_like(x) for _ in range(plan.history)]
    for i in range(plan.rows):
        x = registers[0]
        output = _output(network, plan, i, x, label, null, steering.guide, history[0])
        image, rest = output[:, : x.shape[1]], output[:, x.shape[1] : 2 * x.shape[1]]
        estimate = float(plan.c_skip[i]) * x + float(plan.c_out[i]) * image
        if plan.classifier is not None:
            slope = _slope(steering.classifier, plan, i, x, label - network.program.labels.start)
            estimate = estimate + float(plan.classifier[i]) * slope
        history = [_bounded(plan, estimate), *history[:-1]]
        z = place.images(noise(i)) if plan.is_noisy[i] else None
        if z is not None and plan.learned is not None:
            z = torch.exp(float(plan.learned[i, 0]) + float(plan.learned[i, 1]) * rest) * z
        registers = _advance(plan, i, registers, history, z)
        if mask is not None:
            registers[0] = mask * place.images(steering.known(i)) + (1.0 - mask) * registers[0]
        if watch is not None:
            watch(i, to_host(registers[0]), to_host(history[0]))
    return to_host(registers[0])
