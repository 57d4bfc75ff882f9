"""The flow as a tf.Module of variables and functions; no Keras at all."""

import numpy as np
import tensorflow as tf
import weights


class Dense(tf.Module):
    def __init__(self, w, b, dtype, name):
        super().__init__(name=name)
        self.kernel, self.bias = tf.Variable(w.T, dtype=dtype, name="kernel"), tf.Variable(b, dtype=dtype, name="bias")

    def __call__(self, x):
        return tf.linalg.matmul(x, self.kernel) + self.bias


class Coupling(tf.Module):
    def __init__(self, w, i, dtype, fault, variant):
        super().__init__(name=f"coupling_{i}")
        self.first = Dense(w[f"w{i}a"], w[f"b{i}a"], dtype, "first")
        self.second = Dense(w[f"w{i}b"], w[f"b{i}b"], dtype, "second")
        self.fault, self.variant = fault, variant

    def __call__(self, x):
        half = weights.D // 2
        a, b = x[:, :half], x[:, half:]
        if self.fault == "halves_swapped":
            a, b = b, a
        h = self.first(a)
        h = tf.nn.elu(h) if self.fault == "elu" else tf.nn.softplus(h)
        shift, scale = tf.split(self.second(h), 2, axis=1)
        if self.variant == "fused_scale":
            scale = 2.0 * (2.0 * tf.nn.sigmoid(scale) - 1.0)
        elif self.fault == "scale_unhalved":
            scale = 2.0 * tf.tanh(scale)
        else:
            scale = 2.0 * tf.tanh(scale / 2.0)
        y = b * scale if self.fault == "no_exp" else b * tf.exp(scale)
        return tf.concat([a, y + shift], axis=1), tf.reduce_sum(scale, axis=1)


class Flow(tf.Module):
    def __init__(self, dtype, fault, variant):
        super().__init__(name="flow")
        w = weights.make()
        self.fault, self.variant = fault, variant
        self.log_scale = tf.Variable(w["log_scale"], dtype=dtype, name="log_scale")
        self.shift = tf.Variable(w["shift"], dtype=dtype, name="shift")
        self.couplings = [Coupling(w, i, dtype, fault, variant) for i in range(weights.LAYERS)]

    def __call__(self, x):
        z = (x + self.shift) * tf.exp(self.log_scale)
        if self.fault == "shift_after":
            z = x * tf.exp(self.log_scale) + self.shift
        total = tf.reduce_sum(self.log_scale)
        order = np.argsort(weights.PERM) if self.fault == "inverse_permutation" else np.array(weights.PERM)
        for coupling in self.couplings:
            if self.variant == "one_hot":
                z = tf.linalg.matmul(z, tf.constant(np.eye(weights.D)[:, order], z.dtype))
            else:
                z = tf.gather(z, order, axis=1)
            z, change = coupling(z)
            total = total + change
        logp = -0.5 * tf.reduce_sum(z**2 + np.log(2 * np.pi), axis=-1)
        if self.fault == "mean_logp":
            logp = -0.5 * tf.reduce_mean(z**2 + np.log(2 * np.pi), axis=-1)
        return {"logp": logp + total, "z": z}


def build(fault=None, variant=None, dtype="float32"):
    return Flow(dtype, fault, variant)


def inputs(seed):
    return (np.random.default_rng(900 + seed).normal(size=(5, weights.D)),)
