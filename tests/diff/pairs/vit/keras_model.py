import keras
import numpy as np
import weights
from keras import layers, ops


class Patches(layers.Layer):
    """Cut the image into patches and project each."""

    def __init__(self, size, dim, transposed=False, **kwargs):
        super().__init__(**kwargs)
        self.size, self.dim, self.transposed = size, dim, transposed

    def build(self, shape):
        self.kernel = self.add_weight(shape=(self.size**2 * shape[-1], self.dim), name="kernel")
        self.bias = self.add_weight(shape=(self.dim,), name="bias")

    def call(self, images):
        _, h, w, c = images.shape
        p = self.size
        x = ops.reshape(images, (-1, h // p, p, w // p, p, c))
        x = ops.transpose(x, (0, 1, 3, 4, 2, 5) if self.transposed else (0, 1, 3, 2, 4, 5))
        x = ops.reshape(x, (-1, h * w // p**2, p * p * c))
        return ops.matmul(x, self.kernel) + self.bias


class Tokens(layers.Layer):
    def __init__(self, shifted=False, **kwargs):
        super().__init__(**kwargs)
        self.shifted = shifted

    def build(self, shape):
        self.class_token = self.add_weight(shape=(shape[-1],), name="class_token")
        self.position_table = self.add_weight(shape=(shape[1] + 1, shape[-1]), name="position_table")

    def call(self, x):
        token = ops.broadcast_to(self.class_token, (ops.shape(x)[0], 1, x.shape[-1]))
        table = ops.roll(self.position_table, -1, axis=0) if self.shifted else self.position_table
        return ops.concatenate([token, x], axis=1) + table


class DenseAttention(layers.Layer):
    def __init__(self, heads, dim, **kwargs):
        super().__init__(**kwargs)
        self.heads, self.dim = heads, dim
        self.query, self.key = layers.Dense(dim, name="query"), layers.Dense(dim, name="key")
        self.value, self.attention_output = layers.Dense(dim, name="value"), layers.Dense(dim, name="attention_output")

    def build(self, shape):
        for layer in (self.query, self.key, self.value, self.attention_output):
            layer.build(shape)

    def call(self, x):
        def heads(z):
            return ops.reshape(z, (-1, z.shape[1], self.heads, self.dim // self.heads))

        q, k, v = heads(self.query(x)), heads(self.key(x)), heads(self.value(x))
        scores = ops.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(self.dim // self.heads)
        out = ops.einsum("bhqk,bkhd->bqhd", ops.softmax(scores, axis=-1), v)
        return self.attention_output(ops.reshape(out, (-1, x.shape[1], self.dim)))


def gelu(x):
    return 0.5 * x * (1.0 + ops.erf(x / np.sqrt(2.0)))


def build(fault=None, variant=None, dtype="float32"):
    keras.config.set_floatx(dtype)
    keras.utils.clear_session()
    dim = weights.DIM
    eps = 1e-3 if fault == "ln_eps" else 1e-6
    image = keras.Input((12, 16, 3), name="image")
    if variant == "conv_patches":
        x = layers.Conv2D(dim, weights.PATCH, strides=weights.PATCH, name="patches")(image)
        x = layers.Reshape((12, dim), name="patch_rows")(x)
    else:
        x = Patches(weights.PATCH, dim, fault == "patch_order", name="patches")(image)
    x = Tokens(fault == "position_shift", name="tokens")(x)
    for i in range(weights.DEPTH):
        h = layers.LayerNormalization(epsilon=eps, name=f"enc{i}_norm_a")(x)
        if variant == "dense_attention":
            h = DenseAttention(weights.HEADS, dim, name=f"enc{i}_attention")(h)
        else:
            h = layers.MultiHeadAttention(weights.HEADS, dim // weights.HEADS, name=f"enc{i}_attention")(h, h)
        x = layers.Add(name=f"enc{i}_add_a")([h, x])
        if fault == "post_norm" and i == 1:
            h = layers.Activation(gelu, name=f"enc{i}_gelu")(layers.Dense(48, name=f"enc{i}_mlp1")(x))
            h = layers.Dense(dim, name=f"enc{i}_mlp2")(h)
            x = layers.LayerNormalization(epsilon=eps, name=f"enc{i}_norm_b")(layers.Add(name=f"enc{i}_add_b")([h, x]))
            continue
        h = layers.LayerNormalization(epsilon=eps, name=f"enc{i}_norm_b")(x)
        h = layers.Dense(48, name=f"enc{i}_mlp1")(h)
        h = layers.Activation(gelu, name=f"enc{i}_gelu")(h)
        h = layers.Dense(dim, name=f"enc{i}_mlp2")(h)
        x = layers.Add(name=f"enc{i}_add_b")([x, h])
    x = layers.LayerNormalization(epsilon=eps, name="final_norm")(x)
    x = layers.Lambda(lambda z: ops.mean(z, axis=1) if fault == "mean_pool" else z[:, 0], name="pool")(x)
    model = keras.Model(image, layers.Dense(7, name="logits")(x), name="vit")
    weights.load_keras(model, weights.make(), variant)
    return model


def inputs(seed):
    x = np.random.default_rng(seed).standard_normal((2, 3, 12, 16)).astype("float32")
    return (x.transpose(0, 2, 3, 1),)
