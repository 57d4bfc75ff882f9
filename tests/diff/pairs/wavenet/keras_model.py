import keras
import numpy as np
import tensorflow as tf
import weights

C = weights.C


class WNConv1D(keras.layers.Layer):
    def __init__(self, filters, size, dilation=1, fault=None, variant=None, **kwargs):
        super().__init__(**kwargs)
        self.filters, self.size, self.dilation, self.fault, self.variant = filters, size, dilation, fault, variant

    def build(self, shape):
        self.v = self.add_weight(shape=(self.size, shape[-1], self.filters), name="v")
        self.g = self.add_weight(shape=(self.filters,), name="g")
        self.b = self.add_weight(shape=(self.filters,), name="b")

    def call(self, x):
        axes = (0,) if self.fault == "norm_axes" else (0, 1)
        kernel = self.g * self.v / tf.sqrt(tf.reduce_sum(self.v**2, axes, keepdims=True))
        if self.fault == "kernel_reversed":
            kernel = tf.reverse(kernel, [0])
        total = self.dilation * (self.size - 1)
        left = total // 2 if self.fault == "not_causal" else total
        if self.variant == "shifts":  # a sum of shifted matrix products
            x = tf.pad(x, [[0, 0], [total, 0], [0, 0]])
            steps = x.shape[1] - total
            parts = [
                tf.matmul(x[:, k * self.dilation : k * self.dilation + steps], kernel[k]) for k in range(self.size)
            ]
            return tf.add_n(parts) + self.b
        x = tf.pad(x, [[0, 0], [left, total - left], [0, 0]])
        return tf.nn.convolution(x, kernel, padding="VALID", dilations=[self.dilation]) + self.b


class Gated(keras.layers.Layer):
    def __init__(self, dilation, fault=None, variant=None, **kwargs):
        super().__init__(**kwargs)
        self.variant = variant
        self.fault = fault
        self.conv = WNConv1D(2 * C, 3, dilation, fault, variant, name="conv")
        self.res = keras.layers.Conv1D(C, 1, name="res")
        self.skip = keras.layers.Dense(C, name="skip") if variant == "dense" else keras.layers.Conv1D(C, 1, name="skip")

    def call(self, x):
        a, b = tf.split(self.conv(x), 2, axis=-1)
        if self.fault == "softsign_gate":
            b = tf.nn.softsign(b)
        h = tf.nn.sigmoid(b) * tf.nn.tanh(a)
        return (self.res(h) + x) * np.sqrt(0.5), self.skip(h)


class Model(keras.Model):
    def __init__(self, fault=None, variant=None):
        super().__init__(name="wavenet")
        self.first = WNConv1D(C, 1, name="first")
        rates = [2 if fault == "dilation" and d == 4 else d for d in weights.DILATIONS]
        self.blocks = [Gated(d, fault, variant, name=f"block{i}") for i, d in enumerate(rates)]
        self.act = keras.layers.PReLU(shared_axes=[1], name="act")
        self.end = keras.layers.Conv1D(2, 1, name="end")

    def call(self, x):
        x = self.first(x)
        skips = []
        for block in self.blocks:
            x, skip = block(x)
            skips.append(skip)
        return self.end(self.act(tf.add_n(skips)))


def build(fault=None, variant=None, dtype="float32"):
    keras.config.set_floatx(dtype)
    keras.utils.clear_session()
    net = Model(fault, variant)
    net(tf.zeros((1, 20, 2), dtype))
    w = weights.make()
    for variable in net.weights:
        _, *path, end = variable.path.split("/")
        if path == ["act"]:
            variable.assign(w["end.a"][None])
            continue
        key = {"first": "in", "end": "end"}.get(path[0], path[0].removeprefix("block"))
        if path[-1] in ("res", "skip"):
            key += "." + path[-1]
        array = w[f"{key}.{ {'kernel': 'w', 'bias': 'b'}.get(end, end) }"]
        if array.ndim == 3:
            array = array.transpose(2, 1, 0)
        variable.assign(array.reshape(variable.shape))
    return net


def inputs(seed):
    x = np.random.default_rng(7 + seed).standard_normal((2, 2, 20)).astype("float32")
    return (x.transpose(0, 2, 1),)
