"""One row of a sampler plan in the operations of a framework: what backends do with the outputs of their networks.

For x = register 0, the outputs F of the network with and without its class, and fresh noise z::

    F_i       = F_null + guidance_scale (F - F_null)                     in the channels that guidance applies to
    estimate  = c_skip x + c_out F_i + classifier c_in grad log p        U = estimate, D = clip(estimate)
    registers = state X + denoised D + unclipped U + noise z             with one D per estimate of the history

A framework fills one `RowExecutor`; a formula uses its functions, the operators ``+ - * /`` and slices of the batch.
`backend/reference/sampling.py` states the same in NumPy, independently of this file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from diffusion_core.backend.network import MIN_STD, Guidance
from diffusion_core.sampling.rows import Row, RowSignature

__all__ = ["Outputs", "RowExecutor"]

# An array of a framework.
Tensor = Any
# F of the network, F of the guide, and the classifier's gradient.
Outputs = tuple[Tensor, Tensor | None, Tensor | None]


@dataclass(frozen=True)
class RowExecutor:
    """The operations of one framework, and the row in them; images have a batch axis in front and an axis of channels.

    Args:
        axis: the axis of the channels.
        channels: the channels of an array from a first to a last, None meaning the end.
        length: the length of the batch.
        concat: of a list of arrays along an axis.
        halves: an array split into two along the batch.
        fill: one float64 number per image of an array, all equal to a number.
        exp: of each element.
        std: the standard deviation of each image, with axes of length 1.
        clip: of an array between two numbers, the second of which may be None.
        within: of an array between -bound and bound, both arrays.
        sizes: the absolute values of each image in ascending order, with shape (B, N).
    """

    axis: int
    channels: Callable[[Tensor, int | None, int | None], Tensor]
    length: Callable[[Tensor], Any]
    concat: Callable[[list[Tensor], int], Tensor]
    halves: Callable[[Tensor], tuple[Tensor, Tensor]]
    fill: Callable[[Tensor, Any], Tensor]
    exp: Callable[[Tensor], Tensor]
    std: Callable[[Tensor], Tensor]
    clip: Callable[[Tensor, float, float | None], Tensor]
    within: Callable[[Tensor, Tensor], Tensor]
    sizes: Callable[[Tensor], Tensor]

    def network_inputs(
        self,
        network: Any,
        signature: RowSignature,
        row: Row,
        x: Tensor,
        label: Tensor,
        null_label: Tensor,
        guide: Any,
        estimate: Tensor,
        features: Tensor,
        null_features: Tensor,
    ) -> tuple[Tensor | None, ...]:
        """Return the inputs of the network for one row.

        Under classifier-free guidance, the conditional and the unconditional batch are concatenated. A self-conditioned
        network reads the estimate D_{i-1} of the previous row.
        """
        if signature.guided and guide is None:
            pairs = [x, x], [label, null_label], [estimate, estimate], [features, null_features]
            x, label, estimate, features = (self.concat(pair, 0) for pair in pairs)
        second = network.program.default_second_time if row.second_time is None else row.second_time
        c_noise, second_time = (self.fill(x, t) for t in (row.c_noise, second))
        # As `Network.forward` calls it, so that a network is traced once for both.
        estimate = estimate if network.program.self_conditioned else None
        return row.c_in * x, c_noise, label, features, estimate, second_time if network.program.two_times else None

    def evaluate(
        self,
        network: Any,
        signature: RowSignature,
        inputs: tuple[Tensor | None, ...],
        label: Tensor,
        guidance: Guidance,
    ) -> Outputs:
        """Return (F of the network, F of the guide, the classifier's gradient of log p(class | x)); None without one.

        A guide gets no estimate of the previous row, and the features if it takes as many.
        """
        guide, guide_output, grad_log_prob, count = guidance.guide, None, None, self.length(label)
        if signature.guided and guide is not None:
            same = guide.program.features == network.program.features
            guide_output = guide.call(*inputs[:3], inputs[3] if same else guide.zero_features(count), None, None)
        if signature.classified:
            x, c_noise = (value[:count] for value in inputs[:2])
            grad_log_prob = guidance.classifier.grad_log_prob(x, c_noise, label - network.program.labels.start)
        return network.call(*inputs), guide_output, grad_log_prob

    def _guided_output(
        self, signature: RowSignature, row: Row, output: Tensor, guide_output: Tensor | None, channels: int
    ) -> Tensor:
        """Return F_i: guidance applies to the image channels; those of a learned variance stay conditional."""
        if not signature.guided:
            return output
        if guide_output is None:
            output, guide_output = self.halves(output)
        image, rest = self.channels(output, None, channels), self.channels(output, channels, None)
        negative = self.channels(guide_output, None, channels)
        guided = negative + row.guidance_scale * (image - negative)
        if (first := signature.guidance_channels) is not None:
            guided = self.concat([self.channels(guided, None, first), self.channels(image, first, None)], self.axis)
        if signature.rescale:
            ratio = self.std(image) / self.clip(self.std(guided), MIN_STD, None)
            guided = (signature.rescale * ratio + (1.0 - signature.rescale)) * guided
        return self.concat([guided, rest], self.axis)

    def clip_estimate(self, signature: RowSignature, estimate: Tensor) -> Tensor:
        """Clip the estimates to the plan's bounds, or by dynamic thresholding (a quantile of each image)."""
        if signature.bounds is None:
            return estimate
        if signature.threshold is None:
            return self.clip(estimate, *signature.bounds)
        middle, half = signature.scale
        y = (estimate - middle) / half
        sizes = self.sizes(y)
        below, above, weight = signature.quantile(sizes.shape[1])
        quantile = sizes[:, below] + weight * (sizes[:, above] - sizes[:, below])
        bound = self.clip(quantile, signature.clip, signature.threshold_max)[:, None, None, None]
        return middle + half * (signature.clip / bound * self.within(y, bound))

    def estimate_images(self, signature: RowSignature, row: Row, x: Tensor, outputs: Outputs) -> tuple[Tensor, Tensor]:
        """Return (the estimate of x_0 before it is bounded, the output F_i)."""
        output, guide_output, grad_log_prob = outputs
        channels = x.shape[self.axis]
        output = self._guided_output(signature, row, output, guide_output, channels)
        image = output if output.shape[self.axis] == channels else self.channels(output, None, channels)
        estimate = row.c_skip * x + row.c_out * image
        if grad_log_prob is not None:
            estimate = estimate + row.classifier * (row.c_in * grad_log_prob)
        return estimate, output

    def finish_row(
        self,
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
        x, channels = registers[0], registers[0].shape[self.axis]
        unclipped = estimate
        if signature.unclipped:
            estimate = row.clipped[0] * x + row.clipped[1] * unclipped
        history = [self.clip_estimate(signature, estimate), *history[:-1]]
        if z is not None and signature.learned:
            z = self.exp(row.learned[0] + row.learned[1] * self.channels(output, channels, 2 * channels)) * z
        registers = _update_registers(row, registers, history, unclipped, z)
        if mask is not None:
            registers[0] = mask * known + (1.0 - mask) * registers[0]
        return registers, history


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
