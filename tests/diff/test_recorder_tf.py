"""The recorder of TensorFlow: its operations mean what the vocabulary says, and it says where they come from.

The law: each recorded operation, evaluated in NumPy on the recorded inputs, gives the recorded outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.backend
tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")
recorder = pytest.importorskip("backends.tf.recorder")

layers = keras.layers
X = np.random.default_rng(0).standard_normal((2, 8, 8, 4))
S = np.random.default_rng(1).standard_normal((2, 5, 4))
# Where TensorFlow itself computes in float32 in a float64 model: resizing, and numbers that it stores as float32.
FLOAT32_WITHIN = ("resize", "leaky_relu")


def stacked(*given: Any) -> Callable[[], Any]:
    """Return a function that makes a model of layers."""
    return lambda: keras.Sequential([make() for make in given])


def lambda_(function: Callable) -> Callable[[], Any]:
    return lambda: layers.Lambda(function)


IMAGES: dict[str, Callable[[], Any]] = {
    "convolutions": stacked(
        lambda: layers.Conv2D(6, 3, strides=2, padding="same"),
        lambda: layers.Conv2DTranspose(4, 3, strides=2, padding="same"),
        lambda: layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same"),
        lambda: layers.Conv2D(4, 3, groups=2),
        lambda: layers.SeparableConv2D(4, 3, dilation_rate=2, padding="same"),
    ),
    "pools": stacked(
        lambda: layers.MaxPooling2D(3, 2, padding="same"),
        lambda: layers.AveragePooling2D(3, 1, padding="same"),
        lambda: layers.ZeroPadding2D(2),
        lambda: layers.Cropping2D(1),
        lambda: layers.GlobalAveragePooling2D(keepdims=True),
    ),
    "norms": stacked(
        lambda: layers.BatchNormalization(),
        lambda: layers.GroupNormalization(2),
        lambda: layers.LayerNormalization(),
        lambda: layers.UnitNormalization(),
        lambda: layers.RMSNormalization(),
    ),
    "shapes": stacked(
        lambda: layers.UpSampling2D(2, interpolation="bilinear"),
        lambda: layers.UpSampling2D(2),
        lambda_(lambda x: tf.cast(tf.image.resize(x, (x.shape[1] // 2, x.shape[2]), method="area"), x.dtype)),
        lambda: layers.Permute((3, 1, 2)),
        lambda: layers.Reshape((4, -1)),
        lambda: layers.Flatten(),
        lambda: layers.RepeatVector(2),
    ),
    "activations": stacked(
        *(
            lambda name=name: layers.Activation(name)
            for name in ("elu", "selu", "softplus", "silu", "tanh", "hard_sigmoid", "relu6", "mish", "celu", "softsign")
        ),
        lambda: layers.LeakyReLU(0.1),
        lambda: layers.PReLU(),
        lambda: layers.Activation("gelu"),
        lambda: layers.Softmax(axis=1),
    ),
    "functions": stacked(
        lambda_(lambda x: x + tf.one_hot(tf.argmax(x, -1), x.shape[-1], dtype=x.dtype)),
        lambda_(lambda x: tf.math.l2_normalize(x, -1) + tf.math.reduce_std(x, 1, keepdims=True)),
        lambda_(lambda x: tf.einsum("bhwc,bxwc->bhxw", x, x[:, ::-2])),
        lambda_(lambda x: tf.where(x > 0, x, 0.1) + tf.roll(tf.reverse(x, [1]), 1, 2)),
        lambda_(lambda x: tf.pad(x[..., 1:, tf.newaxis, 0], [[0, 0], [1, 1], [1, 1], [0, 0]], "REFLECT")),
        lambda_(lambda x: tf.concat(tf.split(tf.cumsum(x, 1, exclusive=True, reverse=True), 2, 1), -2)),
        lambda_(lambda x: tf.clip_by_value(tf.tile(x, [1, 1, 2, 1]), -1.0, 1.0) - tf.reduce_logsumexp(x)),
        lambda_(lambda x: tf.gather(x, [0, 1, 1], axis=2) ** 2 / (1 + tf.abs(tf.stack([x[:, :, 0]] * 3, 2)))),
    ),
}
SEQUENCES: dict[str, Callable[[], Any]] = {
    "recurrent": stacked(
        lambda: layers.LSTM(3, return_sequences=True),
        lambda: layers.Bidirectional(layers.GRU(3, return_sequences=True)),
        lambda: layers.SimpleRNN(4, go_backwards=True),
    ),
    "convolutions": stacked(
        lambda: layers.Conv1D(6, 3, padding="causal", dilation_rate=2),
        lambda: layers.MaxPooling1D(2, padding="same"),
        lambda: layers.Dense(3),
    ),
}


def attention() -> Any:
    x = keras.Input((5, 4))
    y = layers.MultiHeadAttention(2, 4)(x, x, use_causal_mask=True)
    return keras.Model(x, layers.Dot(2)([layers.Attention()([y, x]), layers.Add()([x, y])]))


def recorded(make: Callable[[], Any], inputs: Any, name: str = "float64") -> Any:
    precision = "float64" if name.endswith("64") else "float32"
    with recorder.building(precision, 0):
        model = make()
    return recorder.record_pass(recorder.prepare(model, precision), inputs, name)


CASES = (
    [(f"images {name}", make, (X,)) for name, make in IMAGES.items()]
    + [(f"sequences {name}", make, (S,)) for name, make in SEQUENCES.items()]
    + [("attention", attention, (S,))]
    + [("embedding", stacked(lambda: layers.Embedding(7, 3), lambda: layers.Dense(2)), (np.array([[1, 6, 0]]),))]
)


@pytest.mark.parametrize(("make", "inputs"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_each_operation_evaluated_in_numpy_gives_what_was_recorded(make: Callable[[], Any], inputs: tuple) -> None:
    pytest.importorskip("diffusion_core.parity.diff.operations")
    registry = pytest.importorskip("diffusion_core.parity.diff.operations.registry")
    record = recorded(make, inputs)
    values = dict(record.values)
    assert not [each.native for each in record.operations if each.kind == "opaque"]
    for operation in record.operations:
        if operation.kind in ("random", "constant"):
            continue
        result = registry.EVALUATORS[operation.kind](
            *(values[i] for i in operation.inputs), **registry.options(operation)
        )
        results = result if isinstance(result, (tuple, list)) else [result]
        for number, found in zip(operation.outputs, results, strict=False):
            if number not in values:
                values[number] = np.asarray(found)
                continue
            tolerance = 2e-7 if operation.kind in FLOAT32_WITHIN or values[number].dtype != np.float64 else 1e-12
            scale = max(1.0, float(np.abs(values[number]).max(initial=0)))
            assert np.shape(found) == values[number].shape, operation
            np.testing.assert_allclose(found, values[number], rtol=0, atol=tolerance * scale, err_msg=str(operation))


def test_an_attribute_that_the_caller_left_out_is_the_default_of_tensorflow() -> None:
    """``tf.one_hot`` without an axis gives none, and neither do the raw operations."""

    def call(x: Any) -> Any:
        kinds = tf.one_hot(tf.argmax(x, -1), 4, dtype=x.dtype)
        sums = tf.raw_ops.Cumsum(x=x, axis=0)
        return kinds + sums + tf.raw_ops.LeakyRelu(features=x) + tf.raw_ops.MatMul(a=x, b=tf.transpose(x) @ x)

    record = recorded(lambda_(call), (X[0, 0],))
    assert {"one_hot", "cumsum", "leaky_relu", "matmul"} <= {each.kind for each in record.operations}
    assert next(each for each in record.operations if each.kind == "one_hot").attributes["axis"] == 1


def test_gradients_are_those_of_the_fixed_loss() -> None:
    record = recorded(stacked(lambda: layers.Dense(3)), (X[0, 0],))
    (y,) = (record.values[number] for number in record.outputs.values())
    cotangent = (y + np.cos(2 * y) / 2) / y.size
    kernel = next(number for name, number in record.parameters.items() if name.endswith("kernel"))
    np.testing.assert_allclose(record.gradients[kernel], X[0, 0].T @ cotangent, atol=1e-15)
    assert record.inputs[0] in record.gradients


def test_same_padding_is_written_in_numbers_and_a_dilated_convolution_is_one_operation() -> None:
    record = recorded(IMAGES["convolutions"], (X,))
    convolutions = [each for each in record.operations if each.kind == "conv"]
    assert convolutions[0].attributes["padding"] == [[0, 1], [0, 1]]
    assert [2, 2] in [each.attributes["dilation"] for each in convolutions]


def test_operations_name_their_layer_and_the_line_that_made_it() -> None:
    def make() -> Any:
        x = keras.Input((4,))
        y = layers.Dense(3, name="made_here")(x)
        return keras.Model(x, y * 2)

    product = next(each for each in recorded(make, (X[0, 0],)).operations if each.kind == "matmul")
    assert product.layer == "made_here"
    assert product.code == 'y = layers.Dense(3, name="made_here")(x)'
    assert product.source.startswith(f"{Path(__file__).name}:")


def test_a_training_pass_moves_the_buffers_and_leaves_the_model_as_it_was() -> None:
    make = stacked(lambda: layers.BatchNormalization(momentum=0.9), lambda: layers.Dropout(0.25))
    with recorder.building("float64", 0):
        model = make()
    model(tf.constant(X))
    before = recorder.read_state(model)
    record = recorder.record_pass(model, (X,), "train64")
    after = recorder.read_state(model)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert [name.split("/")[-1] for name in record.buffers] == ["moving_mean", "moving_variance"]
    mean = next(iter(record.buffers))
    np.testing.assert_allclose(record.buffers_after[0][mean], 0.1 * X.mean((0, 1, 2)), atol=1e-15)
    np.testing.assert_allclose(record.buffers_after[1][mean], 0.19 * X.mean((0, 1, 2)), atol=1e-15)
    (draw,) = (each for each in record.operations if each.kind == "random")
    assert draw.attributes == {"distribution": "bernoulli", "rate": 0.25}


def test_a_float32_model_runs_in_float64_and_comes_back() -> None:
    with recorder.building("float32", 0):
        model = keras.Sequential([keras.Input((4,), dtype="float32"), layers.Dense(3, dtype="float32")])
    before = recorder.read_state(model)
    record = recorder.record_pass(recorder.prepare(model, "float64"), (X[0, 0],), "float64")
    assert all(array.dtype == np.float64 for array in record.values.values())
    after = recorder.read_state(recorder.prepare(model, "float32"))
    assert all(after[name].dtype == np.float32 and np.array_equal(after[name], before[name]) for name in before)


def test_variables_of_modules_and_closures_are_parameters() -> None:
    class Inner(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = tf.Variable(X[0, 0, :4])

        def __call__(self, x: Any) -> Any:
            return x @ self.w

    class Outer(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = [Inner(), Inner()]

        def __call__(self, x: Any) -> Any:
            return self.blocks[1](self.blocks[0](x))

    record = recorded(Outer, (X[0, 0],))
    assert list(record.parameters) == ["blocks/0/w", "blocks/1/w"]
    assert [each.layer for each in record.operations] == ["blocks/0", "blocks/1"]

    def make() -> Any:
        scale = tf.Variable(2.0, dtype=tf.float64)
        return tf.function(lambda x: x * scale)

    record = recorded(make, (X,))
    assert list(record.parameters) == ["scale"]
    assert record.parameters["scale"] in record.gradients


def test_a_saved_model_is_recorded_node_by_node(tmp_path: Path) -> None:
    with recorder.building("float32", 0):
        inner = [layers.Conv2D(3, 3, strides=2), layers.BatchNormalization(), layers.GroupNormalization(1)]
        model = keras.Sequential([keras.Input((8, 8, 4)), *inner, layers.Flatten(), layers.Dense(3, activation="relu")])
    model.export(str(tmp_path), verbose=False)
    loaded = tf.saved_model.load(str(tmp_path))
    with pytest.raises(ValueError, match="float64 is not possible: a SavedModel has fixed types"):
        recorder.prepare(loaded, "float64")
    mine = recorder.record_pass(model, (X,), "float32")
    layer = layers.TFSMLayer(str(tmp_path), call_endpoint="serve")
    for other in (loaded, layer, loaded.signatures["serving_default"]):
        record = recorder.record_pass(other, (X,), "float32")
        assert [each.kind for each in record.operations if each.kind != "identity"] == [
            each.kind for each in mine.operations
        ]
        (found,), (wanted,) = record.outputs.values(), mine.outputs.values()
        np.testing.assert_allclose(record.values[found], mine.values[wanted], atol=1e-6)
        assert len(record.parameters) + len(record.buffers) == len(mine.parameters) + len(mine.buffers)
        gradients = sum(number in record.gradients for number in record.parameters.values())
        assert gradients >= len(mine.parameters)


def test_a_random_model_is_noticed() -> None:
    record = recorded(lambda: lambda x: x + tf.random.normal(x.shape, dtype=x.dtype), (X,))
    assert record.notes == ("two passes with the same inputs differ: the model is random or keeps a state",)


def test_what_is_no_array_of_numbers_is_refused() -> None:
    for function, said in ((lambda x: None, "NoneType; it must return tensors"), (tf.strings.as_string, "texts")):
        with pytest.raises(ValueError, match=said):
            recorded(lambda function=function: lambda x: function(tf.identity(x)), (X,))


def test_numbers_that_numpy_draws_are_those_of_every_side() -> None:
    record = recorded(lambda: lambda x: x + np.random.standard_normal(x.shape), (X,))  # noqa: NPY002
    (output,) = record.outputs.values()
    np.random.seed(0)  # noqa: NPY002
    np.testing.assert_allclose(record.values[output] - X, np.random.standard_normal(X.shape))  # noqa: NPY002
    assert record.notes


def test_inputs_may_be_nested() -> None:
    record = recorded(lambda: lambda batch: batch["x"] * batch["c"][0], ({"x": X, "c": [X]},))
    (output,) = record.outputs.values()
    np.testing.assert_allclose(record.values[output], X * X)
    assert len(record.inputs) == 2


def test_steps_of_a_module_name_moments_and_averages_by_parameter() -> None:
    class Twice(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = [tf.Variable(X[0, 0, :4]), tf.Variable(X[0, 1, :4])]

        def __call__(self, x: Any) -> Any:
            return x @ self.parts[0] @ self.parts[1]

    def adam(model: Any) -> Any:
        schedule = keras.optimizers.schedules.CosineDecay(1e-3, 10)
        return keras.optimizers.Adam(schedule, clipnorm=1.0, use_ema=True)

    steps, optimiser = recorder.record_steps(Twice(), [(X[0, 0],)] * 2, None, adam, None)
    assert {"parts/0/momentum", "parts/0/velocity", "parts/1/momentum"} <= set(steps[1].state)
    assert list(steps[1].averages) == ["parts/0", "parts/1"]
    assert steps[1].learning_rate < steps[0].learning_rate
    assert (optimiser["clipnorm"], optimiser["learning_rate"]["decay_steps"]) == (1.0, 10)


def test_two_optimisers_in_one_step_are_both_seen() -> None:
    with recorder.building("float64", 0):
        model = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="one"), layers.Dense(2, name="two")])

    def training(model: Any) -> Any:
        parts = [
            (keras.optimizers.SGD(0.1), model.layers[0].trainable_variables),
            (keras.optimizers.Adam(0.2), model.layers[1].trainable_variables),
        ]

        def step(x: Any) -> Any:
            with tf.GradientTape() as tape:
                value = tf.reduce_sum(model(x) ** 2)
            for (optimizer, some), found in zip(parts, tape.gradient(value, [v for _, v in parts]), strict=True):
                optimizer.apply(found, some)
            return value

        return step

    (only,), optimiser = recorder.record_steps(model, [(X[0, 0],)], training, None, None)
    assert sorted(only.gradients) == sorted(recorder.read_state(model))
    assert (only.learning_rate, optimiser["class"], optimiser["others"]) == (0.1, "SGD", ["Adam"])
    assert any(name.endswith("/velocity") for name in only.state)


def test_what_float64_cannot_do_is_said_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"^float64 is not possible: .*Mul") as caught:
        recorded(lambda: lambda x: x * tf.constant([0.5] * 4, tf.float32), (X,))
    assert "\n" not in str(caught.value)


def test_steps_have_what_the_optimiser_received_and_wrote() -> None:
    with recorder.building("float64", 0):
        model = keras.Sequential([keras.Input((4,)), layers.Dense(3, use_bias=False)])
    (name,) = recorder.read_state(model)
    before = recorder.read_state(model)[name]

    def loss(outputs: Any, x: Any) -> Any:
        return tf.reduce_sum(outputs**2)

    batches = [(X[0, i],) for i in range(2)]
    sgd = lambda model: keras.optimizers.SGD(0.5, momentum=0.5)  # noqa: E731
    steps, optimiser = recorder.record_steps(model, batches, None, sgd, loss)
    gradient = 2 * X[0, 0].T @ (X[0, 0] @ before)
    np.testing.assert_allclose(steps[0].gradients[name], gradient, atol=1e-12)
    np.testing.assert_allclose(steps[0].parameters[name], before - 0.5 * gradient, atol=1e-6)
    assert steps[0].loss == pytest.approx(np.sum((X[0, 0] @ before) ** 2))
    assert steps[0].learning_rate == 0.5
    assert steps[0].gradient_norm == pytest.approx(np.linalg.norm(gradient))
    assert f"{name}/momentum" in steps[0].state
    assert (optimiser["class"], optimiser["momentum"]) == ("SGD", 0.5)
    assert np.array_equal(recorder.read_state(model)[name], before)

    def training(model: Any) -> Any:
        def step(x: Any) -> Any:
            with tf.GradientTape() as tape:
                value = loss(model(x), x)
            (found,) = tape.gradient(value, model.trainable_variables)
            model.trainable_variables[0].assign_sub(0.1 * found)
            return {"loss": value, "learning_rate": 0.1}

        return step

    compiled = keras.Sequential([keras.Input((4,)), layers.Dense(1)])
    compiled.compile("sgd", "mse")
    steps, _ = recorder.record_steps(compiled, [(X[0, 0], X[0, 0, :, :1])] * 2, None, None, None)
    assert steps[1].loss < steps[0].loss

    steps, _ = recorder.record_steps(model, batches, training, None, None)
    np.testing.assert_allclose(steps[0].gradients[name], gradient, atol=1e-12)
    assert steps[1].learning_rate == 0.1


def test_steps_run_in_the_models_type_and_with_schedules_that_cannot_be_written_down() -> None:
    class Falling(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step: Any) -> Any:
            return 0.5 / (1.0 + tf.cast(step, keras.config.floatx()))

    def training(model: Any) -> Any:
        made = keras.optimizers.SGD(Falling(), momentum=0.5)

        def step(x: Any) -> Any:
            rate = tf.constant(0.1, keras.config.floatx())
            with tf.GradientTape() as tape:
                value = rate * tf.reduce_sum(model(x) ** 2)
            made.apply(tape.gradient(value, model.trainable_variables), model.trainable_variables)
            return value

        return step

    with recorder.building("float64", 0):
        model = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    steps, optimiser = recorder.record_steps(model, [(X[0, 0],)] * 2, training, None, None)
    assert [step.learning_rate for step in steps] == [0.5, 0.25]
    assert (optimiser["class"], optimiser["momentum"]) == ("SGD", 0.5)
