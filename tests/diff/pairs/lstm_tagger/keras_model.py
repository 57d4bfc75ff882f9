import keras
import numpy as np
import weights
from keras import layers, ops


class GateCell(layers.Layer):
    """LSTM cell with its gates in the order o f i g."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.state_size = [units, units]

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 4 * self.units), name="kernel")
        self.recurrent = self.add_weight(shape=(self.units, 4 * self.units), name="recurrent")
        self.bias = self.add_weight(shape=(4 * self.units,), name="bias")

    def call(self, x, states):
        h, c = states
        z = ops.matmul(x, self.kernel) + ops.matmul(h, self.recurrent) + self.bias
        o, f, i, g = ops.split(z, 4, axis=-1)
        c = ops.sigmoid(f) * c + ops.sigmoid(i) * ops.tanh(g)
        h = ops.sigmoid(o) * ops.tanh(c)
        return h, [h, c]


def build(fault=None, variant=None, dtype="float32"):
    keras.config.set_floatx(dtype)
    keras.utils.clear_session()

    def lstm(name, backwards):
        options = {"return_sequences": True, "go_backwards": backwards, "name": name}
        if variant == "own_gates":
            return layers.RNN(GateCell(weights.HID), **options)
        if fault == "hard_sigmoid":
            options["recurrent_activation"] = "hard_sigmoid"
        if fault == "relu_state" and not backwards:
            options["activation"] = "relu"
        return layers.LSTM(weights.HID, unroll=variant == "unrolled", **options)

    words = keras.Input((7,), dtype="int64", name="ids")
    x = layers.Embedding(weights.WORDS, weights.EMB, name="words", mask_zero=fault == "implicit_mask")(words)
    there = lstm("forwards", False)(x)
    back = lstm("backwards", True)(x)
    if fault != "not_turned":
        back = layers.Lambda(lambda z: ops.flip(z, axis=1), name="turn")(back)
    y = layers.Concatenate(name="both")([there, back])
    model = keras.Model(words, layers.Dense(weights.TAGS, name="tags")(y), name="tagger")
    weights.load_keras(model, weights.make(), variant, fault)
    return model


def inputs(seed):
    words = np.random.default_rng(seed).integers(0, weights.WORDS, (3, 7))
    words[:, -1] = 0
    return (words,)
