# Eager TensorFlow: variables, slices and matmul. One object per group of variables.
import numpy as np
import tensorflow as tf
import weights as hp


class Norm(tf.Module):
    def __init__(self, scale, shift, dtype, variant, name):
        super().__init__(name)
        with self.name_scope:
            self.scale = tf.Variable(scale, dtype=dtype, name="scale")
            self.shift = tf.Variable(shift, dtype=dtype, name="shift")
        self.by_hand = variant == "norm_by_hand"

    def __call__(self, x):
        if self.by_hand:
            x = x - tf.reduce_mean(x, -1, keepdims=True)
            return self.scale * x * tf.math.rsqrt(tf.reduce_mean(x * x, -1, keepdims=True) + 1e-5) + self.shift
        mean, var = tf.nn.moments(x, axes=[-1], keepdims=True)
        return tf.nn.batch_normalization(x, mean, var, self.shift, self.scale, 1e-5)


class Tower(tf.Module):
    def __init__(self, w, dtype, variant):
        super().__init__("tower")
        with self.name_scope:
            self.norm_in = Norm(w["norm_in.scale"], w["norm_in.shift"], dtype, variant, "norm_in")
            self.w1 = tf.Variable(w["hidden.w"], dtype=dtype, name="w1")
            self.b1 = tf.Variable(w["hidden.b"], dtype=dtype, name="b1")
            self.norm_out = Norm(w["norm_out.scale"], w["norm_out.shift"], dtype, variant, "norm_out")
            self.w2 = tf.Variable(w["out.w"], dtype=dtype, name="w2")

    def __call__(self, x):
        h = tf.nn.relu(self.norm_in(x) @ self.w1 + self.b1)
        return self.norm_out(h) @ self.w2


class Recommender(tf.Module):
    def __init__(self, dtype, fault, variant):
        super().__init__("recommender")
        w = hp.make()
        self.fault, self.variant = fault, variant
        with self.name_scope:
            self.users = tf.Variable(w["users"], dtype=dtype, name="users", trainable=fault != "users_not_trainable")
            self.items = tf.Variable(w["items"], dtype=dtype, name="items")
            self.wide = tf.Variable(w["wide"][:, 0], dtype=dtype, name="wide")
            self.bias = tf.Variable(w["bias"], dtype=dtype, name="bias")
            self.tower = Tower(w, dtype, variant)

    def lookup(self, table, ids):
        if self.variant == "one_hot":
            return tf.one_hot(ids, table.shape[0], dtype=table.dtype) @ table
        return tf.gather(table, ids)

    def __call__(self, users, fields):
        row = tf.math.floormod(users * 73 - 40000, hp.BUCKETS)
        ids = fields + tf.constant(hp.OFFSETS, fields.dtype)
        if self.fault != "unknown_row_forgotten":
            ids = ids + 1
        u, e = self.lookup(self.users, row), self.lookup(self.items, ids)
        linear = tf.reduce_sum(tf.gather(self.wide, ids), axis=1)

        gram = tf.einsum("bfd,bgd->bfg", e, e) if self.variant == "einsum" else tf.matmul(e, e, transpose_b=True)
        total = tf.reduce_sum(gram, axis=[1, 2])
        cross = total / 2.0 if self.fault == "squares_left_in" else (total - tf.linalg.trace(gram)) / 2.0

        f = len(hp.FIELDS)
        upper = [gram[:, i, i + 1 :] for i in range(f - 1)]
        x = tf.concat([u, *upper], axis=1)
        score = linear + cross + self.tower(x)[:, 0] + self.bias

        if self.fault == "penalty_of_mean":
            reg = hp.L2 * (tf.reduce_mean(u**2) + tf.reduce_mean(e**2))
        else:
            reg = 2 * hp.L2 * (tf.nn.l2_loss(u) + tf.nn.l2_loss(e))
        return score, reg


def build(fault=None, variant=None, dtype="float32"):
    return Recommender(tf.as_dtype(dtype), fault, variant)


def inputs(seed):
    rng = np.random.default_rng(seed)
    fields = np.stack([rng.integers(0, size, 9) for size in hp.FIELDS], axis=1)
    return rng.integers(0, 1000, 9), fields
