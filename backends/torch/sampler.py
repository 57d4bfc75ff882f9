"""The executor of sampler plans in PyTorch."""

from __future__ import annotations

import torch
from numpy.typing import NDArray
from torch import Tensor

from backends.torch.network import Network, to_host
from diffusion_core.backend import NoiseSource, Watch
from diffusion_core.sampling.plan import SamplerPlan

__all__ = ["sample"]


def _estimate(network: Network, plan: SamplerPlan, i: int, x: Tensor, label: Tensor, null: Tensor) -> Tensor:
    """D_i, the estimate of x_0 at row i."""
    c_in, guidance = float(plan.c_in[i]), float(plan.guidance[i])
    c_noise = torch.full((len(x),), float(plan.c_noise[i]), dtype=torch.float64, device=x.device)
    if plan.is_guided[i]:
        twice = torch.cat([x, x])
        c_noise, label = torch.cat([c_noise, c_noise]), torch.cat([label, null])
        both = network.call(c_in * twice, c_noise, label, network.no_features(len(twice)))
        conditional, unconditional = both.chunk(2)
        output = unconditional + guidance * (conditional - unconditional)
    else:
        output = network.call(c_in * x, c_noise, label, network.no_features(len(x)))
    estimate = float(plan.c_skip[i]) * x + float(plan.c_out[i]) * output[:, : x.shape[1]]
    return estimate if plan.bounds is None else estimate.clamp(*plan.bounds)


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
    watch: Watch | None = None,
) -> NDArray:
    """Run a plan; see `diffusion_core.backend.Backend.sample`."""
    place = network.place
    label = place.tensor(label, torch.int64)
    null = torch.full_like(label, network.program.null_label or 0)
    x = place.images(start)
    registers = [x] + [torch.zeros_like(x) for _ in range(plan.registers - 1)]
    history = [torch.zeros_like(x) for _ in range(plan.history)]
    for i in range(plan.rows):
        history = [_estimate(network, plan, i, registers[0], label, null), *history[:-1]]
        z = place.images(noise(i)) if plan.is_noisy[i] else None
        registers = _advance(plan, i, registers, history, z)
        if watch is not None:
            watch(i, to_host(registers[0]), to_host(history[0]))
    return to_host(registers[0])
