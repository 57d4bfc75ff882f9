"""What is held to TensorFlow's own graphs, in the environment that owns it."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest

from diffusion_core.parity import cases

pytestmark = [
    pytest.mark.backend,
    pytest.mark.skipif(not find_spec("tensorflow"), reason="it is about TensorFlow"),
]


@pytest.mark.parametrize("kernel", (1, 2, 3, 4, 5))
@pytest.mark.parametrize("stride", (1, 2, 3))
@pytest.mark.parametrize("size", (4, 5, 9))
def test_named_padding_equals_the_explicit_padding(open_backend, kernel, stride, size):
    open_backend("float64")  # it sets the threads before TensorFlow starts
    import tensorflow as tf

    from backends.tf.network import convolve

    draw = np.random.default_rng(kernel)
    x, weight = draw.normal(size=(2, size, size + 1, 3)), draw.normal(size=(kernel, kernel, 3, 2))
    for padding in ((0, 0, 0, 0), (0, 1, 0, 1), (1, 1, 1, 1), (1, 1, 0, 1), (1, 2, 1, 2), (2, 2, 2, 2)):
        top, bottom, left, right = padding
        wanted = tf.nn.conv2d(x, weight, stride, [[0, 0], [top, bottom], [left, right], [0, 0]])
        np.testing.assert_allclose(convolve(x, weight, None, stride, padding), wanted, rtol=1e-12, atol=1e-12)


def test_every_convolution_of_a_step_has_a_padding_that_onednn_accepts(open_backend):
    """Neither forward nor backward: with an explicit one TensorFlow falls back to kernels of half the speed."""
    import tensorflow as tf

    from diffusion_core.backend.interface import TrainerState
    from diffusion_core.networks.weights import initial_weights
    from diffusion_core.optim.adam import Adam

    backend = open_backend("float32")
    program, spec = cases.PARITY.program, cases.PARITY.spec
    trainer = backend.trainer(program, TrainerState.fresh(initial_weights(program, 0, np.float32)), Adam(), "mse")
    trainer.step(cases.cast(cases.noise_batch(program, spec.image_shape), np.float32), 1e-3, (0.9,))
    (graph,) = trainer.full_step._list_all_concrete_functions()
    paddings = [op.get_attr("padding") for op in graph.graph.get_operations() if op.type.startswith("Conv2D")]
    assert len(paddings) >= 3 * 10
    assert set(paddings) <= {b"SAME", b"VALID"}
    explicit = tf.function(lambda x: tf.nn.conv2d(x, x, 1, [[0, 0], [1, 1], [1, 1], [0, 0]]))
    planted = explicit.get_concrete_function(tf.zeros([3, 3, 3, 3])).graph.get_operations()
    assert b"EXPLICIT" in {op.get_attr("padding") for op in planted if op.type == "Conv2D"}
