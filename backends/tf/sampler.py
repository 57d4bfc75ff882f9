"""The executor of sampler plans in TensorFlow: a stretch of rows is a loop, and one graph where the place compiles."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from backends.tf.network import Network, to_host
from diffusion_core.backend.interface import MIN_STD, Guidance, NoiseSource, StepCallback
from diffusion_core.sampling.plan import SamplerPlan
from diffusion_core.sampling.rows import Row, RowSignature

__all__ = ["sample"]

# Rows that a loop is handed at once, and what their noise may take: memory must not grow with the number of steps.
_ROWS, _BYTES = 64, 2**24


def _inputs(
    network: Network,
    form: RowSignature,
    row: Row,
    x: tf.Tensor,
    label: tf.Tensor,
    null: tf.Tensor,
    guide: Network | None,
    before: tf.Tensor,
) -> tuple[tf.Tensor, ...]:
    """What the network is called with at a row: of the class and of none, one after the other, where it guides itself.

    A self-conditioned network is given D_{i-1}.
    """
    if form.guided and guide is None:
        x, label, before = (tf.concat(pair, axis=0) for pair in ([x, x], [label, null], [before, before]))
    batch = tf.shape(x)[0]
    return row.c_in * x, tf.fill([batch], row.c_noise), label, network.no_features(batch), before


def _answers(
    network: Network, form: RowSignature, inputs: tuple[tf.Tensor, ...], label: tf.Tensor, guidance: Guidance
) -> tuple[tf.Tensor, tf.Tensor | None, tf.Tensor | None]:
    """(F of the network, F of its guide, the classifier's gradient of log p(class | x)); None where there is none.

    A guide is given no estimate.
    """
    guide, other, grad_log_prob = guidance.guide, None, None
    if form.guided and guide is not None:
        other = guide.call(*inputs[:3], guide.no_features(tf.shape(label)[0]), None)
    if form.classified:
        x, c_noise = (one[: tf.shape(label)[0]] for one in inputs[:2])
        grad_log_prob = guidance.classifier.grad_log_prob(x, c_noise, label - network.program.labels.start)
    return network.call(*inputs), other, grad_log_prob


def _output(form: RowSignature, row: Row, wanted: tf.Tensor, other: tf.Tensor | None, channels: int) -> tf.Tensor:
    """F_i: guided in the channels of the image, of the class alone in those of a learned variance."""
    if not form.guided:
        return wanted
    if other is None:
        wanted, other = tf.split(wanted, 2)
    wanted, rest, other = wanted[..., :channels], wanted[..., channels:], other[..., :channels]
    guided = other + row.guidance_scale * (wanted - other)
    if form.rescale:
        spread = _spread(wanted) / tf.maximum(_spread(guided), tf.constant(MIN_STD, guided.dtype))
        guided = (form.rescale * spread + (1.0 - form.rescale)) * guided
    return tf.concat([guided, rest], axis=-1)


def _spread(images: tf.Tensor) -> tf.Tensor:
    """The standard deviation of each image."""
    return tf.math.reduce_std(images, axis=(1, 2, 3), keepdims=True)


def _bounded(form: RowSignature, estimate: tf.Tensor) -> tf.Tensor:
    """Estimates within the plan's bounds, or within each image's own and brought back to them."""
    if form.bounds is None:
        return estimate
    if form.threshold is None:
        return tf.clip_by_value(estimate, *form.bounds)
    middle, half = form.scale
    y = (estimate - middle) / half
    sizes = tf.sort(tf.reshape(tf.abs(y), [-1, y.shape[1:].num_elements()]), axis=1)
    below, above, share = form.quantile(sizes.shape[1])
    bound = tf.maximum(sizes[:, below] + share * (sizes[:, above] - sizes[:, below]), form.clip)[:, None, None, None]
    return middle + half * (form.clip / bound * tf.minimum(tf.maximum(y, -bound), bound))


def _advance(row: Row, registers: list[tf.Tensor], history: list[tf.Tensor], z: tf.Tensor | None) -> list[tf.Tensor]:
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
    registers: list[tf.Tensor],
    history: list[tf.Tensor],
    answers: tuple[tf.Tensor, tf.Tensor | None, tf.Tensor | None],
    z: tf.Tensor | None,
    mask: tf.Tensor | None,
    known: tf.Tensor | None,
) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
    """(registers, history) after a row."""
    wanted, other, grad_log_prob = answers
    x, channels = registers[0], registers[0].shape[-1]
    output = _output(form, row, wanted, other, channels)
    image = output if output.shape[-1] == channels else output[..., :channels]
    estimate = row.c_skip * x + row.c_out * image
    if grad_log_prob is not None:
        estimate = estimate + row.classifier * (row.c_in * grad_log_prob)
    history = [_bounded(form, estimate), *history[:-1]]
    if z is not None and form.learned:
        z = tf.exp(row.learned[0] + row.learned[1] * output[..., channels : 2 * channels]) * z
    registers = _advance(row, registers, history, z)
    if mask is not None:
        registers[0] = mask * known + (1.0 - mask) * registers[0]
    return registers, history


def _loop(network: Network, form: RowSignature, guide: Network | None, classifier: Network | None):
    """The rows of a form as a function of their numbers, how many they are, the state, and what they are given.

    Where the place compiles it is one graph. Elsewhere what comes before the networks and what comes behind them are
    graphs of their own: one around all would have the networks traced anew for every form, which takes seconds.
    """
    context, guidance = network.context, Guidance(guide, classifier)

    def row_of(numbers: tf.Tensor) -> Row:
        return form.row(tf.unstack(tf.cast(numbers, context.dtype)))._replace(c_noise=numbers[0])

    def before(numbers, x, label, null, estimate):
        return _inputs(network, form, row_of(numbers), x, label, null, guide, estimate)

    def behind(numbers, *given):
        return _next(form, row_of(numbers), *given)

    if not context.compile:
        before, behind = context.function(before), context.function(behind)

    def loop(numbers, count, registers, history, label, null, noise, mask, known):
        def body(i, registers, history):
            own, z, over = (None if array is None else tf.gather(array, i) for array in (numbers, noise, known))
            inputs = before(own, registers[0], label, null, history[0])
            answers = _answers(network, form, inputs, label, guidance)
            return i + 1, *behind(own, registers, history, answers, z, mask, over)

        if not context.compile:  # to ask a tensor whether it goes on would be to wait for the device at each row
            for i in range(count):
                _, registers, history = body(i, registers, history)
            return registers, history
        start = (tf.constant(0), registers, history)
        return tf.while_loop(lambda i, *_: i < count, body, start, parallel_iterations=1)[1:]

    return context.function(loop) if context.compile else loop


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
    longest = max(1, min(_ROWS, plan.rows, _BYTES // start.nbytes))
    numbers, noisy, everywhere = plan.coefficients(), plan.is_noisy, np.ones(plan.rows, bool)

    def block(source: NoiseSource, wanted: NDArray, rows: range, room: int) -> tf.Tensor:
        """The pictures of some rows, with zeros where none are wanted, and behind them."""
        pictures = np.zeros((room, *start.shape), context.dtype.as_numpy_dtype)
        for k, i in enumerate(rows):
            if wanted[i]:
                pictures[k] = source(i)
        return context.tensor(pictures)

    with tf.device(context.device):
        label = context.tensor(label, tf.int32)
        null = tf.fill([len(label)], network.program.null_label or 0)
        mask = None if guidance.mask is None else context.images(guidance.mask)
        x = context.images(start)
        registers = [x] + [tf.zeros_like(x) for _ in range(plan.registers - 1)]
        history = [tf.zeros_like(x) for _ in range(plan.history)]
        for form, rows in plan.segments(longest, () if callback is None else callback.selected_rows(plan.rows)):
            loop = network.made(_loop, form, guidance.guide, guidance.classifier)
            # A graph is compiled for one shape, and for any number of rows in it; of another shape, as when somebody
            # watches, it would round in another way.
            room, count = (longest, tf.constant(len(rows))) if context.compile else (len(rows), len(rows))
            table = np.zeros((room, numbers.shape[1]))
            table[: len(rows)] = numbers[rows.start : rows.stop]
            z = block(noise, noisy, rows, room) if noisy.any() else None
            known = None if mask is None else block(guidance.known, everywhere, rows, room)
            given = context.tensor(table, tf.float64), count, registers, history
            registers, history = loop(*given, label, null, z, mask, known)
            if callback is not None:
                callback(rows[-1], to_host(registers[0]), to_host(history[0]))
        return to_host(registers[0])
