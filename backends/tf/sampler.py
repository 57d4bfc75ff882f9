"""The executor of sampler plans in TensorFlow: a segment of rows is a loop, and one graph if compiled."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from backends.tf.network import Network, to_host
from diffusion_core.backend.executor import Outputs, RowExecutor
from diffusion_core.backend.interface import Guidance, NoiseSource, StepCallback
from diffusion_core.sampling.plan import SamplerPlan
from diffusion_core.sampling.rows import Row, RowSignature

__all__ = ["sample", "sample_tensors"]

# Limits of one loop, in rows and in bytes of noise, so that memory does not grow with the number of steps.
_MAX_ROWS, _MAX_NOISE_BYTES = 64, 2**24

# The operations of a row, for images b h w c.
ROWS = RowExecutor(
    axis=-1,
    channels=lambda x, start, stop: x[..., start:stop],
    length=lambda x: tf.shape(x)[0],
    concat=tf.concat,
    halves=lambda x: tf.split(x, 2),
    fill=lambda x, t: tf.fill([tf.shape(x)[0]], tf.convert_to_tensor(t, tf.float64)),
    exp=tf.exp,
    std=lambda x: tf.math.reduce_std(x, axis=(1, 2, 3), keepdims=True),
    clip=lambda x, low, high: (
        tf.maximum(x, tf.constant(low, x.dtype)) if high is None else tf.clip_by_value(x, low, high)
    ),
    within=lambda x, bound: tf.minimum(tf.maximum(x, -bound), bound),
    sizes=lambda x: tf.sort(tf.reshape(tf.abs(x), [-1, x.shape[1:].num_elements()]), axis=1),
)


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
            estimate, output = ROWS.estimate_images(signature, row, x, outputs(x))
            return tape, estimate, output, ROWS.clip_estimate(signature, estimate) if moves_state else estimate

    evaluated = [evaluate()]
    _, estimate, output, followed = evaluated[0]

    def pull_back(cotangent: NDArray) -> NDArray:
        # Evaluate again for each further product: a persistent tape would trace second derivatives too, for seconds.
        tape, _, _, target = evaluated.pop() if evaluated else evaluate()
        return to_host(tape.gradient(target, x, context.images(cotangent)))

    shifted = context.images(shift(to_host(followed), pull_back))
    estimate = estimate if moves_state else estimate + shifted
    registers, history = ROWS.finish_row(signature, row, registers, history, estimate, output, z)
    return [registers[0] + shifted, *registers[1:]] if moves_state else registers, history


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
        return ROWS.network_inputs(network, signature, row, x, label, null_label, guide, estimate, *features)

    def after(coefficients, registers, history, outputs, *images):
        row = make_row(coefficients)
        estimated = ROWS.estimate_images(signature, row, registers[0], outputs)
        return ROWS.finish_row(signature, row, registers, history, *estimated, *images)

    if not whole:
        before, after = context.function(before), context.function(after)

    def loop(coefficients, count, registers, history, label, null_label, noise, mask, known, *features, follow=None):
        def body(i, registers, history):
            row, z, image = (None if array is None else tf.gather(array, i) for array in (coefficients, noise, known))

            def outputs(x: tf.Tensor) -> Outputs:
                inputs = before(row, x, label, null_label, history[0], *features)
                return ROWS.evaluate(network, signature, inputs, label, guidance)

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
