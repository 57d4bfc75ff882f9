"""The executor of sampler plans in TensorFlow: a segment of rows is a loop, and one graph if compiled."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from backends.tf.network import Network, to_host
from diffusion_core.backend.interface import MIN_STD, Guidance, NoiseSource, StepCallback
from diffusion_core.sampling.plan import SamplerPlan
from diffusion_core.sampling.rows import Row, RowSignature

__all__ = ["sample", "sample_tensors"]

# F of the network, F of the guide, and the classifier's gradient.
Outputs = tuple[tf.Tensor, tf.Tensor | None, tf.Tensor | None]

# Limits of one loop, in rows and in bytes of noise, so that memory does not grow with the number of steps.
_MAX_ROWS, _MAX_NOISE_BYTES = 64, 2**24


def _network_inputs(
    network: Network,
    signature: RowSignature,
    row: Row,
    x: tf.Tensor,
    label: tf.Tensor,
    null_label: tf.Tensor,
    guide: Network | None,
    estimate: tf.Tensor,
    features: tf.Tensor,
    null_features: tf.Tensor,
) -> tuple[tf.Tensor | None, ...]:
    """Return the inputs of the network for one row.

    Under classifier-free guidance, the conditional and the unconditional batch are concatenated. A self-conditioned
    network reads the estimate D_{i-1} of the previous row.
    """
    if signature.guided and guide is None:
        x, label, estimate = (tf.concat(pair, axis=0) for pair in ([x, x], [label, null_label], [estimate, estimate]))
        features = tf.concat([features, null_features], axis=0)
    second = network.program.default_second_time if row.second_time is None else row.second_time
    c_noise, second_time = (
        tf.fill([tf.shape(x)[0]], tf.convert_to_tensor(t, row.c_noise.dtype)) for t in (row.c_noise, second)
    )
    # As `Network.forward` calls it, so that the network is traced once for both.
    estimate = estimate if network.program.self_conditioned else None
    return row.c_in * x, c_noise, label, features, estimate, second_time if network.program.two_times else None


def _evaluate(
    network: Network,
    signature: RowSignature,
    inputs: tuple[tf.Tensor | None, ...],
    label: tf.Tensor,
    guidance: Guidance,
) -> Outputs:
    """Return (F of the network, F of the guide, the classifier's gradient of log p(class | x)); None without one.

    A guide gets no estimate of the previous row, and the features if it takes as many.
    """
    guide, guide_output, grad_log_prob = guidance.guide, None, None
    if signature.guided and guide is not None:
        same = guide.program.features == network.program.features
        features = inputs[3] if same else guide.zero_features(tf.shape(label)[0])
        guide_output = guide.call(*inputs[:3], features, None, None)
    if signature.classified:
        x, c_noise = (value[: tf.shape(label)[0]] for value in inputs[:2])
        grad_log_prob = guidance.classifier.grad_log_prob(x, c_noise, label - network.program.labels.start)
    return network.call(*inputs), guide_output, grad_log_prob


def _guided_output(
    signature: RowSignature, row: Row, output: tf.Tensor, guide_output: tf.Tensor | None, channels: int
) -> tf.Tensor:
    """Return F_i: guidance applies to the image channels; those of a learned variance stay conditional."""
    if not signature.guided:
        return output
    if guide_output is None:
        output, guide_output = tf.split(output, 2)
    image, rest, negative = output[..., :channels], output[..., channels:], guide_output[..., :channels]
    guided = negative + row.guidance_scale * (image - negative)
    if (first := signature.guidance_channels) is not None:
        guided = tf.concat([guided[..., :first], image[..., first:]], axis=-1)
    if signature.rescale:
        ratio = _std(image) / tf.maximum(_std(guided), tf.constant(MIN_STD, guided.dtype))
        guided = (signature.rescale * ratio + (1.0 - signature.rescale)) * guided
    return tf.concat([guided, rest], axis=-1)


def _std(images: tf.Tensor) -> tf.Tensor:
    """Return the standard deviation of each image."""
    return tf.math.reduce_std(images, axis=(1, 2, 3), keepdims=True)


def _clip_estimate(signature: RowSignature, estimate: tf.Tensor) -> tf.Tensor:
    """Clip the estimates to the plan's bounds, or by dynamic thresholding (a quantile of each image)."""
    if signature.bounds is None:
        return estimate
    if signature.threshold is None:
        return tf.clip_by_value(estimate, *signature.bounds)
    middle, half = signature.scale
    y = (estimate - middle) / half
    sizes = tf.sort(tf.reshape(tf.abs(y), [-1, y.shape[1:].num_elements()]), axis=1)
    below, above, weight = signature.quantile(sizes.shape[1])
    quantile = sizes[:, below] + weight * (sizes[:, above] - sizes[:, below])
    bound = tf.maximum(quantile, signature.clip)
    if signature.threshold_max is not None:
        bound = tf.minimum(bound, signature.threshold_max)
    bound = bound[:, None, None, None]
    return middle + half * (signature.clip / bound * tf.minimum(tf.maximum(y, -bound), bound))


def _update_registers(
    row: Row, registers: list[tf.Tensor], history: list[tf.Tensor], unclipped: tf.Tensor, z: tf.Tensor | None
) -> list[tf.Tensor]:
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


def _estimate(signature: RowSignature, row: Row, x: tf.Tensor, outputs: Outputs) -> tuple[tf.Tensor, tf.Tensor]:
    """Return (the estimate of x_0 before it is bounded, the output F_i)."""
    output, guide_output, grad_log_prob = outputs
    channels = x.shape[-1]
    output = _guided_output(signature, row, output, guide_output, channels)
    image = output if output.shape[-1] == channels else output[..., :channels]
    estimate = row.c_skip * x + row.c_out * image
    if grad_log_prob is not None:
        estimate = estimate + row.classifier * (row.c_in * grad_log_prob)
    return estimate, output


def _follow_measurement(
    network: Network,
    signature: RowSignature,
    row: Row,
    registers: list[tf.Tensor],
    history: list[tf.Tensor],
    outputs: Callable[[tf.Tensor], Outputs],
    z: tf.Tensor | None,
    moves_state: bool,
    shift: Callable[[NDArray, Callable[[NDArray], NDArray]], NDArray],
) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
    """Return (registers, history) after a row whose estimate, or register 0, a measurement shifts."""
    context, x = network.context, registers[0]

    def evaluate() -> tuple[tf.GradientTape, tf.Tensor, tf.Tensor, tf.Tensor]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            estimate, output = _estimate(signature, row, x, outputs(x))
            return tape, estimate, output, _clip_estimate(signature, estimate) if moves_state else estimate

    evaluated = [evaluate()]
    _, estimate, output, followed = evaluated[0]

    def pull_back(cotangent: NDArray) -> NDArray:
        # Evaluate again for each further product: a persistent tape would trace second derivatives too, for seconds.
        tape, _, _, target = evaluated.pop() if evaluated else evaluate()
        return to_host(tape.gradient(target, x, context.images(cotangent)))

    shifted = context.images(shift(to_host(followed), pull_back))
    estimate = estimate if moves_state else estimate + shifted
    registers, history = _finish_row(signature, row, registers, history, estimate, output, z)
    return [registers[0] + shifted, *registers[1:]] if moves_state else registers, history


def _finish_row(
    signature: RowSignature,
    row: Row,
    registers: list[tf.Tensor],
    history: list[tf.Tensor],
    estimate: tf.Tensor,
    output: tf.Tensor,
    z: tf.Tensor | None,
    mask: tf.Tensor | None = None,
    known: tf.Tensor | None = None,
) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
    """Return (registers, history) after a row."""
    x, channels = registers[0], registers[0].shape[-1]
    unclipped = estimate
    if signature.unclipped:
        estimate = row.clipped[0] * x + row.clipped[1] * unclipped
    history = [_clip_estimate(signature, estimate), *history[:-1]]
    if z is not None and signature.learned:
        z = tf.exp(row.learned[0] + row.learned[1] * output[..., channels : 2 * channels]) * z
    registers = _update_registers(row, registers, history, unclipped, z)
    if mask is not None:
        registers[0] = mask * known + (1.0 - mask) * registers[0]
    return registers, history


def _make_loop(
    network: Network, signature: RowSignature, guide: Network | None, classifier: Network | None, whole: bool
):
    """Return a function that runs rows of one signature, given their coefficients, their number and the state.

    If `whole`, it is one graph. Otherwise the operations before and after the networks are one graph each: a graph
    around everything would trace the networks again for every signature, which takes seconds.
    """
    context, guidance = network.context, Guidance(guide, classifier)

    def make_row(coefficients: tf.Tensor) -> Row:
        row = signature.row(tf.unstack(tf.cast(coefficients, context.dtype)))
        return row._replace(c_noise=coefficients[0], second_time=coefficients[-1] if signature.two_times else None)

    def before(coefficients, x, label, null_label, estimate, *features):
        row = make_row(coefficients)
        return _network_inputs(network, signature, row, x, label, null_label, guide, estimate, *features)

    def after(coefficients, registers, history, outputs, *images):
        row = make_row(coefficients)
        return _finish_row(
            signature, row, registers, history, *_estimate(signature, row, registers[0], outputs), *images
        )

    if not whole:
        before, after = context.function(before), context.function(after)

    def loop(coefficients, count, registers, history, label, null_label, noise, mask, known, *features, follow=None):
        def body(i, registers, history):
            row, z, image = (None if array is None else tf.gather(array, i) for array in (coefficients, noise, known))

            def outputs(x: tf.Tensor) -> Outputs:
                inputs = before(row, x, label, null_label, history[0], *features)
                return _evaluate(network, signature, inputs, label, guidance)

            if follow is not None:  # a Python loop, whose measurement is followed on the host
                state = registers, history, outputs, z
                return i + 1, *_follow_measurement(network, signature, make_row(row), *state, *follow(i))
            return i + 1, *after(row, registers, history, outputs(registers[0]), z, mask, image)

        if not whole:  # a Python loop: the condition of a while loop would wait for the device at each row
            for i in range(count):
                _, registers, history = body(i, registers, history)
            return registers, history
        start = (tf.constant(0), registers, history)
        # XLA can differentiate a loop only if it knows the largest number of iterations.
        longest = coefficients.shape[0]
        return tf.while_loop(lambda i, *_: i < count, body, start, parallel_iterations=1, maximum_iterations=longest)[
            1:
        ]

    return context.function(loop) if whole else loop


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
    context, whole = network.context, network.context.compile and guidance.measurement is None
    return to_host(_run(network, plan, context.images(start), label, noise, callback, guidance, whole))


def sample_tensors(
    network: Network,
    plan: SamplerPlan,
    start: tf.Tensor,
    label: NDArray,
    noise: NoiseSource,
    callback: StepCallback | None,
    guidance: Guidance,
) -> tf.Tensor:
    """Run a plan from a tensor b h w c to a tensor, through which gradients can flow."""
    # XLA cannot hand a loop from the graph of its values to that of its gradients.
    return _run(network, plan, start, label, noise, callback, guidance, whole=False)


def _run(
    network: Network,
    plan: SamplerPlan,
    start: tf.Tensor,
    label: NDArray,
    noise: NoiseSource,
    callback: StepCallback | None,
    guidance: Guidance,
    whole: bool,
) -> tf.Tensor:
    """Run a plan; if `whole`, a segment of its rows is one graph."""
    context = network.context
    longest = max(1, min(_MAX_ROWS, plan.rows, _MAX_NOISE_BYTES // (start.dtype.size * start.shape.num_elements())))
    coefficients, noisy, every_row = plan.coefficients(), plan.is_noisy, np.ones(plan.rows, bool)

    def stack(source: NoiseSource, used: NDArray, rows: range, length: int) -> tf.Tensor:
        """Return the images of some rows, with zeros in unused rows and up to `length`."""
        images = np.zeros((length, *start.shape), context.dtype.as_numpy_dtype)
        for k, i in enumerate(rows):
            if used[i]:
                images[k] = source(i)
        return context.tensor(images)

    with tf.device(context.device):
        label = context.tensor(label, tf.int32)
        null_label = tf.fill([len(label)], network.program.null_label or 0)
        mask = None if guidance.mask is None else context.images(guidance.mask)
        zeros = network.zero_features(len(label))
        features = zeros if guidance.features is None else context.tensor(guidance.features)
        null_features = zeros if guidance.null_features is None else context.tensor(guidance.null_features)
        registers = [start] + [tf.zeros_like(start) for _ in range(plan.registers - 1)]
        history = [tf.zeros_like(start) for _ in range(plan.history)]
        for signature, rows in plan.segments(longest, () if callback is None else callback.selected_rows(plan.rows)):
            loop = network.make_once(_make_loop, signature, guidance.guide, guidance.classifier, whole)
            follow = guidance.measurement and partial(guidance.measurement.follow, plan, rows)
            # A whole graph has one shape and runs any number of rows in it. A graph of another shape, as with a
            # callback, would round differently.
            length, count = (longest, tf.constant(len(rows))) if whole else (len(rows), len(rows))
            table = np.zeros((length, coefficients.shape[1]))
            table[: len(rows)] = coefficients[rows.start : rows.stop]
            z = stack(noise, noisy, rows, length) if noisy.any() else None
            known = None if mask is None else stack(guidance.known, every_row, rows, length)
            state = context.tensor(table, tf.float64), count, registers, history
            more = {} if follow is None else {"follow": follow}
            registers, history = loop(*state, label, null_label, z, mask, known, features, null_features, **more)
            if callback is not None:
                callback(rows[-1], to_host(registers[0]), to_host(history[0]))
        return registers[0]
