import keras
import numpy as np
import tensorflow as tf
import weights


class Attention(keras.layers.Layer):
    def __init__(self, fault=None, variant=None, **kw):
        super().__init__(**kw)
        self.fault, self.variant = fault, variant
        self.q, self.k, self.v, self.o = (keras.layers.Dense(weights.D, name=n) for n in "qkvo")

    def heads(self, x):
        x = tf.reshape(x, (tf.shape(x)[0], -1, weights.H, weights.D // weights.H))
        return tf.transpose(x, (0, 2, 1, 3))

    def call(self, x, mask):
        q, k, v = self.heads(self.q(x)), self.heads(self.k(x)), self.heads(self.v(x))
        scores = tf.einsum("bhqd,bhkd->bhqk", q, k) * (weights.D // weights.H) ** -0.5
        if self.fault == "mask_inverted":
            scores += mask[:, None, None, :] * -10000.0
        elif self.fault == "mask_queries":
            scores += (1.0 - mask[:, None, :, None]) * -10000.0
        elif self.variant == "where":
            scores = tf.where(mask[:, None, None, :] > 0, scores, tf.constant(-1e9, scores.dtype))
        else:
            scores += (1.0 - mask[:, None, None, :]) * -10000.0
        out = tf.einsum("bhqk,bhkd->bqhd", tf.nn.softmax(scores, axis=-1), v)
        return self.o(tf.reshape(out, tf.shape(x)))


class Block(keras.layers.Layer):
    def __init__(self, fault=None, variant=None, **kw):
        super().__init__(**kw)
        self.attention = Attention(fault, variant, name="attention")
        self.norm1 = keras.layers.LayerNormalization(epsilon=1e-12, name="norm1")
        self.norm2 = keras.layers.LayerNormalization(epsilon=1e-12, name="norm2")
        self.up = keras.layers.Dense(24, name="up")
        self.down = keras.layers.Dense(weights.D, name="down")

    def call(self, x, mask):
        x = self.norm1(x + self.attention(x, mask))
        h = self.up(x)
        h = self.down(h * 0.5 * (1.0 + tf.math.erf(h * 0.5**0.5)))
        return self.norm2(h + x)


class Head(keras.layers.Layer):
    def __init__(self, untied=False, **kw):
        super().__init__(**kw)
        self.untied = untied

    def build(self, shape):
        self.bias = self.add_weight(shape=(weights.VOCAB,), name="bias")
        if self.untied:
            self.table = self.add_weight(shape=(weights.VOCAB, weights.D), name="table")

    def call(self, x, table):
        return tf.matmul(x, self.table if self.untied else table, transpose_b=True) + self.bias


class Model(keras.Model):
    def __init__(self, fault=None, variant=None):
        super().__init__(name="bert")
        self.fault, self.variant = fault, variant
        self.word = keras.layers.Embedding(weights.VOCAB, weights.D, name="word")
        self.position = keras.layers.Embedding(weights.LENGTH + 4, weights.D, name="position")
        self.token_kind = keras.layers.Embedding(2, weights.D, name="kind")
        self.embed_norm = keras.layers.LayerNormalization(epsilon=1e-12, name="embed_norm")
        self.blocks = [Block(fault, variant, name=f"layer{i}") for i in range(weights.LAYERS)]
        self.pool = keras.layers.Dense(weights.D, activation="tanh", name="pool")
        self.head = Head(fault == "untied", name="head")

    def call(self, ids, mask):
        start = 2 if self.fault == "position_start" else 0
        place = self.position(tf.range(start, ids.shape[1] + start))
        kinds = self.token_kind(tf.zeros_like(ids))
        x = self.word(ids)
        if self.fault == "scaled_embedding":
            x = x * weights.D**0.5
        if self.variant == "kinds_first":
            x = kinds + place + x
        elif self.fault == "no_token_type":
            x = x + place
        else:
            x = x + place + kinds
        x = self.embed_norm(x)
        mask = tf.cast(mask, x.dtype)
        for block in self.blocks:
            x = block(x, mask)
        return self.head(x, self.word.embeddings), self.pool(x[:, 0])


def build(fault=None, variant=None, dtype="float32"):
    keras.config.set_floatx(dtype)
    keras.utils.clear_session()
    model = Model(fault, variant)
    model(*map(tf.constant, inputs(0)))
    weights.load_keras(model, weights.make(), fault == "untied")
    return model


def inputs(seed):
    rng = np.random.default_rng(50 + seed)
    ids = rng.integers(1, weights.VOCAB, (3, weights.LENGTH))
    lengths = np.array([weights.LENGTH, 6, 4])
    mask = (np.arange(weights.LENGTH)[None] < lengths[:, None]).astype("int64")
    return ids * mask, mask
