"""Own networks of every kind that TensorFlow has: Keras models, modules, functions and SavedModels."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import duet
from diffusion_core.backend.interface import TrainBatch, TrainerState
from diffusion_core.common.errors import DuetError
from diffusion_core.networks import lower
from diffusion_core.networks.weights import initial_weights
from diffusion_core.optim.adam import Adam
from experiments.runtime.own_networks import adapt

pytestmark = [
    pytest.mark.backend,
    pytest.mark.skipif(not find_spec("tensorflow"), reason="it is about TensorFlow"),
]

PROCESS = duet.process("cosine", "v", T=16)
PLAN = duet.samplers.ddim(PROCESS, steps=3, eta=0.5)
DRAW = np.random.default_rng(0)
KERNEL, TABLE = DRAW.normal(size=(2, 2)).astype(np.float32), DRAW.normal(size=(4, 2)).astype(np.float32)
LABELS = [0, 1, 2]


@pytest.fixture(scope="module", autouse=True)
def _threads(open_backend: Any) -> None:
    open_backend("float32")  # it sets the threads before TensorFlow starts


def by_numpy(x: np.ndarray, t: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Return what every network of this file computes."""
    return x @ KERNEL + (np.cos(t)[:, None] * TABLE[label])[:, None, None, :]


def keras_model(inputs: str) -> Any:
    """Return the network as a Keras model, functional with its inputs in a list or a dict, or of a class."""
    import keras
    from keras import layers, ops

    dense, table = layers.Dense(2, use_bias=False), layers.Embedding(4, 2)

    def compute(x: Any, t: Any, label: Any) -> Any:
        vector = ops.cos(t)[:, None] * table(label)
        return dense(x) + vector[:, None, None, :]

    class Net(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense, self.table = dense, table

        def call(self, x: Any, t: Any, label: Any) -> Any:
            return compute(x, t, label)

    given = {
        "t": keras.Input((), name="t"),
        "x": keras.Input((4, 4, 2), name="x"),
        "label": keras.Input((), dtype="int32", name="label"),
    }
    if inputs == "class":
        model = Net()
        model(np.zeros((1, 4, 4, 2)), np.zeros(1), np.zeros(1, np.int32))
    else:
        output = compute(given["x"], given["t"], given["label"])
        model = keras.Model(given if inputs == "dict" else [given["x"], given["t"], given["label"]], output)
    dense.kernel.assign(KERNEL)
    table.embeddings.assign(TABLE)
    return model


def tf_module(signature: bool = False) -> Any:
    import tensorflow as tf

    class Dense(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = tf.Variable(KERNEL)

        @tf.function
        def __call__(self, x: Any) -> Any:
            return x @ self.kernel

    class Net(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.tables = [Dense()], {"label": (tf.Variable(TABLE),)}
            self.embed = tf.function(self.vector)

        def vector(self, t: Any, label: Any) -> Any:
            return tf.cos(t)[:, None] * tf.gather(self.tables["label"][0], label)

        @tf.function(
            input_signature=[
                tf.TensorSpec([None, 4, 4, 2], tf.float32, "x"),
                tf.TensorSpec([None], tf.float32, "t"),
                tf.TensorSpec([None], tf.int32, "label"),
            ]
        )
        def __call__(self, x: Any, t: Any, label: Any) -> Any:
            return self.layers[0](x) + self.embed(t, label)[:, None, None, :]

    return Net()


def tf_function(module: Any) -> Any:
    import tensorflow as tf

    return tf.function(lambda x, t, label: module(x, t, label))


def saved(network: Any, path: Path, call: bool) -> Any:
    import tensorflow as tf

    module = network if call else tf.Module()
    module.network = network
    tf.saved_model.save(module, str(path), {"serving_default": network.__call__})
    return tf.saved_model.load(str(path))


def signature(model: Any) -> Any:
    found = model.signatures["serving_default"]
    found.model = model  # a signature does not keep its variables alive
    return found


def keras_file(model: Any, path: Path) -> str:
    model.save(path)
    return str(path)


KINDS: dict[str, Any] = {
    "a functional model with a list": lambda path: keras_model("list"),
    "a functional model with a dict": lambda path: keras_model("dict"),
    "a model of a class": lambda path: keras_model("class"),
    "a module": lambda path: tf_module(),
    "a tf.function": lambda path: tf_function(tf_module()),
    "a SavedModel with a call": lambda path: saved(tf_module(), path / "saved", True),
    "a SavedModel with a signature": lambda path: saved(tf_module(), path / "saved", False),
    "a signature": lambda path: signature(saved(tf_module(), path / "saved", False)),
    "a directory": lambda path: (saved(tf_module(), path / "saved", False), str(path / "saved"))[1],
    "a file of Keras": lambda path: keras_file(keras_model("list"), path / "net.keras"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_network_samples_as_the_function_of_numpy(kind: str, tmp_path: Path) -> None:
    options = {"shape": (3, 4, 4, 2), "labels": LABELS, "classes": 3, "seed": 1}
    wanted = duet.sample(by_numpy, PLAN, **options)
    got = duet.sample(KINDS[kind](tmp_path), PLAN, **options)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def noisy_model(make: str = "class") -> Any:
    """Return a model with batch normalisation and dropout."""
    import keras
    import tensorflow as tf
    from keras import layers

    class Net(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.drop = layers.Dense(4), layers.BatchNormalization(), layers.Dropout(0.5)
            self.last = layers.Dense(2)

        def call(self, x: Any, t: Any) -> Any:  # no argument training: Keras hands it on
            return self.last(self.drop(self.norm(self.first(x) + t[:, None, None, None])))

    class Wrapped(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.scale = Net(), tf.Variable(1.0)
            self.mean, self.calls = tf.Variable(tf.zeros(2), trainable=False), tf.Variable(0, trainable=False)

        @tf.function
        def __call__(self, x: Any, t: Any, training: bool = False) -> Any:
            if training:
                self.mean.assign(0.9 * self.mean + 0.1 * tf.reduce_mean(x, [0, 1, 2]))
                self.calls.assign_add(1)
            return self.scale * self.net(x - self.mean, t, training=training)

    return Net() if make == "class" else Wrapped()


def batch(step: int, size: int = 4) -> TrainBatch:
    draw, ones = np.random.default_rng(step), np.ones(size, np.float32)
    images, noise = (draw.normal(size=(size, 4, 4, 2)).astype(np.float32) for _ in range(2))
    return TrainBatch(
        images, noise, np.zeros(size, np.int32), 0.8 * ones, 0.6 * ones, ones, np.full(size, 0.5), 0 * ones, ones, ones,
        ones, np.zeros((size, 0), np.float32), step * size + np.arange(size), np.array([1, 2]),
    )  # fmt: skip


def trainer(network: Any, open_backend: Any, state: TrainerState | None = None, **settings: Any) -> Any:
    program = lower(adapt(network).spec((4, 4, 2), owned=True))
    state = state or TrainerState.fresh(initial_weights(program, 0, np.float32))
    return open_backend("float32", **settings).trainer(program, state, Adam(), "mse")


@pytest.mark.parametrize(("make", "compile"), [("module", False), ("class", True)], ids=["module", "Keras, XLA"])
def test_statistics_and_dropout_resume_bit_for_bit(make: str, compile: bool, open_backend: Any) -> None:
    network = noisy_model(make)
    whole = trainer(network, open_backend, compile=compile)
    losses = [float(whole.step(batch(i), 1e-2, [0.9]).loss) for i in range(2)]
    middle = whole.state()
    losses += [float(whole.step(batch(2), 1e-2, [0.9]).loss)]
    rest = trainer(network, open_backend, middle, compile=compile)
    assert float(rest.step(batch(2), 1e-2, [0.9]).loss) == losses[2]
    for part, arrays in whole.state().parts.items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(rest.state().parts[part][name], array, err_msg=f"{part} {name}")


@pytest.mark.parametrize("make", ["class", "module"])
def test_only_a_finite_step_changes_statistics(make: str, open_backend: Any) -> None:
    """Neither gradients nor activations do, and the network that was given never changes."""
    network = noisy_model(make)
    train = trainer(network, open_backend)
    before, images = train.state().weights, batch(0)
    given = adapt(network).manifest.values
    loss = train.gradients(images)[0]
    train.activations(images)
    other = replace(images, positions=images.positions + 1)
    assert train.gradients(images)[0] == loss != train.gradients(other)[0]  # dropout follows the positions
    wrong = replace(images, images=np.full_like(images.images, np.nan))
    train.step(wrong, 1e-2, [0.9])
    for name, array in before.items():
        np.testing.assert_array_equal(train.state().weights[name], array)
    train.clear_non_finite()
    train.step(images, 0.0, [1.0])
    after = train.state().weights
    for name, array in before.items():
        is_statistic = name.endswith(("moving_mean", "moving_variance", ".mean"))
        assert np.any(after[name] != array) == is_statistic, name
        np.testing.assert_array_equal(adapt(network).manifest.values[name.partition(".")[2]], given[name[8:]])
    if make == "module":
        assert int(network.calls) == 0
        mean = 0.1 * (0.8 * images.images + 0.6 * images.noise).mean((0, 1, 2))
        np.testing.assert_allclose(after["network.mean"], mean, rtol=1e-5, atol=1e-7)
    else:
        h = (0.8 * images.images + 0.6 * images.noise) @ before["network.dense/kernel"]
        h += before["network.dense/bias"] + 0.5
        wanted = 0.99 * before["network.batch_normalization/moving_mean"] + 0.01 * h.mean((0, 1, 2))
        np.testing.assert_allclose(after["network.batch_normalization/moving_mean"], wanted, rtol=1e-5, atol=1e-7)


def test_micro_batches_add_up_and_repeat_their_dropout(open_backend: Any) -> None:
    import keras
    from keras import layers

    for rate in (0.0, 0.5):
        x, t = keras.Input((4, 4, 2)), keras.Input(())
        network = keras.Model([x, t], layers.Dense(2)(layers.Dropout(rate)(layers.Dense(4)(x))))
        train = trainer(network, open_backend)
        (loss, gradients), (again, repeated) = (train.gradients(batch(0), 2) for _ in range(2))
        assert loss == again
        for name, array in gradients.items():
            np.testing.assert_array_equal(repeated[name], array)
        whole, of_whole = train.gradients(batch(0))
        assert (loss == pytest.approx(whole, rel=1e-6)) == (rate == 0)  # each micro-batch draws by its first position
        if rate == 0:
            for name, array in gradients.items():
                np.testing.assert_allclose(of_whole[name], array, rtol=1e-5, atol=1e-6)


def test_names_do_not_depend_on_what_was_made_before() -> None:
    first = [name for name, _, _ in adapt(noisy_model()).spec((4, 4, 2), owned=True).owned]
    noisy_model()
    again = [name for name, _, _ in adapt(noisy_model()).spec((4, 4, 2), owned=True).owned]
    assert first == again
    assert first[:2] == ["dense/kernel", "dense/bias"]
    assert "dense_1/kernel" in first


def test_a_shared_layer_has_its_arrays_once() -> None:
    import keras
    from keras import layers

    dense = layers.Dense(2)
    x, t = keras.Input((4, 4, 2)), keras.Input(())
    parameters = adapt(keras.Model([x, t], dense(dense(x)))).manifest.parameters
    assert [name for name, _, _ in parameters] == ["dense/kernel", "dense/bias"]


def test_frozen_arrays_are_not_trained(open_backend: Any) -> None:
    network = keras_model("class")
    network.dense.trainable = False
    spec = adapt(network, classes=3).spec((4, 4, 2), owned=True)
    assert {name: trained for name, _, trained in spec.owned} == {
        "dense/kernel": False, "embedding/embeddings": True
    }  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "layout"),
    [((3,), "channels_last"), ((5, 2), "channels_first"), ((5, 2), "channels_last"), ((2, 3, 4, 2), "channels_last"),
     ((2, 3, 4, 5), "channels_first"), ((2, 3, 4), "channels_first")],
)  # fmt: skip
def test_samples_of_any_shape_and_layout(shape: tuple[int, ...], layout: str) -> None:
    """A network that multiplies by a number must not notice how its samples lie in memory."""
    import tensorflow as tf

    def network(x: Any, t: Any) -> Any:
        assert tuple(x.shape[1:]) == shape
        return x * tf.cast(tf.reshape(tf.cos(t), [-1, *[1] * len(shape)]), x.dtype)

    def numpy(x: np.ndarray, t: np.ndarray) -> np.ndarray:
        assert x.shape[1:] == shape
        return x * np.cos(t).reshape(-1, *[1] * len(shape))

    options = {"shape": (2, *shape), "seed": 3, "layout": layout}
    got = duet.sample(network, PLAN, framework="tf", **options)
    np.testing.assert_allclose(got, duet.sample(numpy, PLAN, **options), rtol=1e-5, atol=1e-6)


def test_conditions_whole_timesteps_and_vectors_of_classes() -> None:
    import tensorflow as tf

    seen: dict[str, Any] = {}

    def network(images: Any, time: Any, *, kind: Any, text: Any, count: Any) -> Any:
        seen.update(time=time, kind=kind, text=text, count=count)
        return images + text[:, None, None, :] + tf.cast(count[:, None, None, None], images.dtype)

    own = duet.adapt(
        network, inputs="x, t, kind=one_hot, text=text, count=count", time="int", classes=3, framework="tf"
    )
    text, count = DRAW.normal(size=(3, 2)).astype(np.float32), np.arange(3)
    plan = duet.samplers.ddim(PROCESS, steps=2, spacing="trailing")
    got = duet.sample(own, plan, shape=(3, 4, 4, 2), labels=LABELS, conditions={"text": text, "count": count}, seed=0)

    def numpy(x: np.ndarray, t: np.ndarray, *, text: np.ndarray, count: np.ndarray) -> np.ndarray:
        return x + text[:, None, None, :] + count[:, None, None, None]

    wanted = duet.sample(numpy, plan, shape=(3, 4, 4, 2), conditions={"text": text, "count": count}, seed=0)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    assert seen["time"].dtype == tf.int32 and seen["count"].dtype == tf.int32
    assert seen["kind"].shape[-1] == 3


@pytest.mark.parametrize("compile", [False, True], ids=["graph", "XLA"])
def test_gradients_flow_through_sampling(compile: bool) -> None:
    import tensorflow as tf

    network = keras_model("list")
    options = {"shape": (3, 4, 4, 2), "labels": LABELS, "classes": 3, "seed": 1, "differentiable": True}
    plan = duet.samplers.ddim(PROCESS, steps=2)

    def loss() -> Any:
        return tf.reduce_sum(tf.square(duet.sample(network, plan, compile=compile, **options)))

    with tf.GradientTape() as tape:
        value = loss()
    kernel, step = next(v for v in network.trainable_variables if v.name == "kernel"), 1e-2
    gradient = tape.gradient(value, kernel.value)
    moved = []
    for sign in (1, -1):
        kernel.assign(KERNEL + sign * step * np.eye(2, dtype=np.float32))
        moved.append(float(loss()))
    kernel.assign(KERNEL)
    assert float(np.trace(gradient)) == pytest.approx((moved[0] - moved[1]) / (2 * step), rel=2e-3)


def test_gradients_flow_through_sampling_to_a_start_with_noise() -> None:
    import tensorflow as tf

    start, plan = tf.Variable(tf.ones((3, 4, 4, 2))), duet.samplers.ddim(PROCESS, steps=4, clip=None)
    options = {"shape": (3, 4, 4, 2), "labels": LABELS, "classes": 3, "strength": 0.5, "start": start}
    with tf.GradientTape() as tape:
        samples = duet.sample(keras_model("list"), plan, differentiable=True, **options)
    np.testing.assert_allclose(samples, duet.sample(keras_model("list"), plan, **options), rtol=1e-5, atol=1e-5)
    assert float(tf.reduce_min(tf.abs(tape.gradient(samples, start)))) > 0


def closing_over(make: str) -> Any:
    """Return a network that reads a variable which none of its attributes holds."""
    import keras
    import tensorflow as tf

    hidden = tf.Variable(2.0)

    class Net(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = tf.Variable(1.0)

        def __call__(self, x: Any, t: Any) -> Any:
            return x * hidden * self.scale

    class Layer(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense, self.raw = keras.layers.Dense(2), tf.Variable(1.0)

        def call(self, x: Any, t: Any) -> Any:
            return self.dense(x) * self.raw

    return Net() if make == "module" else Layer()


@pytest.mark.parametrize("make", ["module", "keras"])
def test_a_variable_that_would_not_be_trained_is_refused(make: str, open_backend: Any) -> None:
    with pytest.raises(DuetError, match="not among its weights"):
        trainer(closing_over(make), open_backend).step(batch(0), 1e-2, [0.9])


def test_an_array_that_a_call_does_not_use_has_a_gradient_of_zero(open_backend: Any) -> None:
    import tensorflow as tf

    class Net(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = tf.Variable(1.0), tf.Variable(2.0)

        def __call__(self, x: Any, t: Any) -> Any:
            return x * self.used

    train = trainer(Net(), open_backend)
    train.step(batch(0), 1e-2, [0.9])
    assert train.state().weights["network.unused"] == 2.0
    assert train.state().weights["network.used"] != 1.0


def test_a_function_without_weights_is_not_trained() -> None:
    with pytest.raises(DuetError, match="no weights that Duet can train"):
        trainer(tf_function(tf_module()), None)


def test_python_that_reads_a_tensor_is_explained() -> None:
    def network(x: Any, t: Any) -> Any:
        return x if t[0] > 0 else -x

    with pytest.raises(DuetError, match=r"tf\.cond or tf\.where"):
        duet.sample(network, PLAN, shape=(2, 4, 4, 2), framework="tf")


@pytest.mark.parametrize("seed", [None, 0])
def test_random_numbers_without_a_seed_are_refused(open_backend: Any, seed: int | None) -> None:
    """Also where the program has set a seed for all draws, as `keras.utils.set_random_seed` does."""
    import tensorflow as tf

    tf.random.set_seed(seed)

    class Net(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = tf.Variable(1.0)

        def __call__(self, x: Any, t: Any) -> Any:
            return self.scale * x + tf.random.normal(tf.shape(x))

    try:
        with pytest.raises(DuetError, match=r"keras\.random, whose seeds Duet sets"):
            trainer(Net(), open_backend).step(batch(0), 1e-2, [0.9])
    finally:
        tf.random.set_seed(None)


def test_draws_without_a_generator_follow_the_seed_of_the_step(open_backend: Any) -> None:
    import keras

    class Net(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense = keras.layers.Dense(2)

        def call(self, x: Any, t: Any) -> Any:
            return self.dense(x) + keras.random.normal((4, 4, 4, 2))

    train = trainer(Net(), open_backend)
    assert train.gradients(batch(0))[0] == train.gradients(batch(0))[0] != train.gradients(batch(1))[0]


@pytest.mark.parametrize(
    ("precision", "words"), [("float64", r"set_dtype_policy\('float64'\)"), ("bf16", "mixed_bfloat16")]
)
def test_a_network_in_another_precision_is_refused(precision: str, words: str, open_backend: Any) -> None:
    program = lower(adapt(noisy_model()).spec((4, 4, 2), owned=True))
    with pytest.raises(DuetError, match=words):
        open_backend(precision).network(program, initial_weights(program, 0))


def test_a_penalty_that_is_no_part_of_the_loss_is_said(open_backend: Any) -> None:
    import keras

    x, t = keras.Input((4, 4, 2)), keras.Input(())
    network = keras.Model([x, t], keras.layers.Dense(2, kernel_regularizer="l2", name="mine")(x))
    with pytest.warns(UserWarning, match="regularizer of its layer mine"):
        trainer(network, open_backend)


@pytest.mark.parametrize("dtype", ["int32", "float32"])
def test_a_functional_model_of_t_and_x_is_read_by_the_names_of_its_inputs(dtype: str) -> None:
    import keras

    t, x = keras.Input((), name="t", dtype=dtype), keras.Input((5,), name="x")
    level = keras.layers.Reshape((1,))(keras.ops.cast(t, "float32"))
    plan = duet.samplers.ddim(PROCESS, steps=2, spacing="trailing")
    got = duet.sample(keras.Model([t, x], 0.5 * x + level / 100), plan, shape=(3, 5))
    wanted = duet.sample(lambda x, t: 0.5 * x + t[:, None] / 100, plan, shape=(3, 5))
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_a_module_without_a_call_is_refused() -> None:
    import tensorflow as tf

    with pytest.raises(DuetError, match="cannot be called; give it a method __call__"):
        duet.sample(tf.Module(), PLAN, shape=(3, 5))


def test_an_input_that_is_not_given_is_named() -> None:
    with pytest.raises(DuetError, match="label"):
        duet.sample(keras_model("list"), PLAN, shape=(3, 4, 4, 2), inputs="x, t")


def test_a_copy_of_a_network_has_other_weights() -> None:
    import keras

    from backends.tf import own

    class Net(keras.Model):
        def __init__(self, width: int) -> None:  # takes none of the arguments that Keras adds
            super().__init__()
            self.width = width
            self.wide, self.last = keras.layers.Dense(width), keras.layers.Dense(2)

        def call(self, x: Any, t: Any, label: Any) -> Any:
            return self.last(self.wide(x) + t[:, None, None, None])

    mine = Net(width=3)
    mine(np.zeros((1, 4, 4, 2)), np.zeros(1), np.zeros(1, np.int32))
    for network in (tf_module(), keras_model("list"), mine):
        given = own.read_network(network).values
        arrays = {name: value + 1 for name, value in given.items()}
        copied = own.with_weights(network, arrays)
        for name in given:
            np.testing.assert_array_equal(own.read_network(copied).values[name], arrays[name])
            np.testing.assert_array_equal(own.read_network(network).values[name], given[name])
    with pytest.raises(DuetError, match="Keras cannot copy it"):
        own.with_weights(noisy_model("module"), {})
