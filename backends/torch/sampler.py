"""The executor of sampler plans in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import torch
from numpy.typing import NDArray
from torch import Tensor

from backends.torch.network import Network, to_host
from diffusion_core.backend.executor import Outputs, RowExecutor
from diffusion_core.backend.interface import Guidance, NoiseSource, StepCallback
from diffusion_core.sampling.plan import SamplerPlan
from diffusion_core.sampling.rows import Row, RowSignature

__all__ = ["sample", "sample_tensors"]


# The operations of a row, for images b c h w.
ROWS = RowExecutor(
    axis=1,
    channels=lambda x, start, stop: x[:, start:stop],
    length=len,
    concat=torch.cat,
    halves=lambda x: x.chunk(2),
    fill=lambda x, t: torch.full((len(x),), t, dtype=torch.float64, device=x.device),
    exp=torch.exp,
    std=lambda x: x.std(dim=(1, 2, 3), correction=0, keepdim=True),
    clip=torch.clamp,
    within=lambda x, bound: torch.minimum(torch.maximum(x, -bound), bound),
    sizes=lambda x: x.abs().flatten(1).sort(dim=1).values,
)


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
            estimate, output = ROWS.estimate_images(signature, row, x, outputs(x))
            return x, estimate, output, ROWS.clip_estimate(signature, estimate) if moves_state else estimate

    evaluated = [evaluate()]
    _, estimate, output, followed = evaluated[0]

    def pull_back(cotangent: NDArray) -> NDArray:
        # A compiled backward pass frees what it needs: evaluate again for each further product.
        x, _, _, target = (evaluated.pop() if context.compile else evaluated[0]) if evaluated else evaluate()
        given = target, x, context.images(cotangent)
        return to_host(torch.autograd.grad(*given, retain_graph=not context.compile)[0])

    shifted = context.images(shift(to_host(followed.detach()), pull_back))
    estimate = estimate.detach() if moves_state else estimate.detach() + shifted
    registers, history = ROWS.finish_row(signature, row, registers, history, estimate, output.detach(), z)
    return [registers[0] + shifted, *registers[1:]] if moves_state else registers, history


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
        inputs = ROWS.network_inputs(
            network, signature, row, x, label, null_label, guidance.guide, estimate, features, null_features
        )
        return ROWS.evaluate(network, signature, inputs, label, guidance)

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
                    estimated = ROWS.estimate_images(signature, row, registers[0], outputs(registers[0]))
                    registers, history = ROWS.finish_row(signature, row, *state, *estimated, z, mask, known)
                else:
                    follow = guidance.measurement.follow(plan, rows, i - rows.start)
                    registers, history = _follow_measurement(network, signature, row, *state, outputs, z, *follow)
            if callback is not None:
                callback(rows[-1], to_host(registers[0].detach()), to_host(history[0].detach()))
    return registers[0]
