import keras
import numpy as np
import weights
from keras import layers, ops


class StochasticDepth(layers.Layer):
    """Drop whole samples of a branch while training.

    Args:
        drop_path_rate: Float, the probability of dropping a sample.
        at_inference: Scale by the keep probability at inference, instead of dividing by it in training.
    """

    def __init__(self, drop_path_rate, at_inference=False, **kwargs):
        super().__init__(**kwargs)
        self.drop_path_rate, self.at_inference = drop_path_rate, at_inference
        self.seed_generator = keras.random.SeedGenerator(7)

    def call(self, x, training=None):
        keep_prob = 1 - self.drop_path_rate
        if training:
            shape = (ops.shape(x)[0],) + (1,) * (x.ndim - 1)
            mask = ops.floor(keep_prob + keras.random.uniform(shape, dtype=x.dtype, seed=self.seed_generator))
            return x * mask if self.at_inference else (x / keep_prob) * mask
        return x * keep_prob if self.at_inference else x


class LayerScale(layers.Layer):
    def __init__(self, init_values, **kwargs):
        super().__init__(**kwargs)
        self.init_values = init_values

    def build(self, input_shape):
        self.gamma = self.add_weight(
            name="gamma", shape=(input_shape[-1],), initializer=keras.initializers.Constant(self.init_values)
        )

    def call(self, x):
        return x * self.gamma


class GlobalResponseNorm(layers.Layer):
    def __init__(self, mean_axis=-1, **kwargs):
        super().__init__(**kwargs)
        self.mean_axis = mean_axis

    def build(self, input_shape):
        self.gamma = self.add_weight(name="gamma", shape=(input_shape[-1],), initializer="zeros")
        self.beta = self.add_weight(name="beta", shape=(input_shape[-1],), initializer="zeros")

    def call(self, x):
        norms = ops.sqrt(ops.sum(ops.square(x), axis=(1, 2), keepdims=True))
        ratio = norms / (ops.mean(norms, axis=self.mean_axis, keepdims=True) + 1e-6)
        return self.gamma * (x * ratio) + self.beta + x


class NormByHand(layers.LayerNormalization):
    def call(self, x):
        mean, variance = ops.moments(x, axes=-1, keepdims=True)
        return (x - mean) * ops.rsqrt(variance + self.epsilon) * self.gamma + self.beta


class ConvNeXtBlock(layers.Layer):
    def __init__(self, filters, drop_path_rate, fault=None, variant=None, **kwargs):
        super().__init__(**kwargs)
        norm = NormByHand if variant == "norm_by_hand" else layers.LayerNormalization
        self.depthwise = layers.DepthwiseConv2D(7, padding="same", name="depthwise")
        self.norm = norm(epsilon=1e-6, name="norm")
        self.pointwise_1 = layers.Dense(3 * filters, activation="gelu", name="pointwise_1")
        axis = (1, 2) if fault == "grn_axis" else -1
        self.grn = GlobalResponseNorm(axis, name="grn")
        self.pointwise_2 = layers.Dense(filters, name="pointwise_2")
        self.layer_scale = LayerScale(1e-6, name="layer_scale")
        self.drop_path = StochasticDepth(drop_path_rate, fault == "depth_scaled", name="stochastic_depth")
        self.fault = fault

    def build(self, shape):
        wide = (*shape[:-1], self.pointwise_1.units)
        for layer in (self.depthwise, self.norm, self.pointwise_1, self.layer_scale):
            layer.build(shape)
        self.grn.build(wide)
        self.pointwise_2.build(wide)

    def call(self, inputs, training=None):
        x = self.depthwise(inputs)
        x = self.pointwise_1(self.norm(x))
        x = self.pointwise_2(self.grn(x))
        if self.fault == "scale_behind_sum":
            return self.layer_scale(inputs + self.drop_path(x, training=training))
        x = self.layer_scale(x)
        return inputs + self.drop_path(x, training=training)


class MixerBlock(layers.Layer):
    def __init__(self, tokens, channels, fault=None, variant=None, **kwargs):
        super().__init__(**kwargs)
        self.tokens, self.channels, self.fault, self.variant = tokens, channels, fault, variant
        folded = variant == "affine_folded"
        self.norm_tokens = layers.LayerNormalization(epsilon=1e-6, name="norm_tokens")
        self.norm_channels = layers.LayerNormalization(
            epsilon=1e-6, center=not folded, scale=not folded, name="norm_channels"
        )
        self.token_dense_1 = layers.Dense(20, name="token_dense_1")
        self.token_dense_2 = layers.Dense(tokens, name="token_dense_2")
        self.channel_dense_1 = layers.Dense(48, name="channel_dense_1")
        self.channel_dense_2 = layers.Dense(channels, name="channel_dense_2")

    def build(self, shape):
        n = shape[0]
        self.norm_tokens.build(shape)
        self.norm_channels.build(shape)
        self.token_dense_1.build((n, self.channels, self.tokens))
        self.token_dense_2.build((n, self.channels, 20))
        self.channel_dense_1.build(shape)
        self.channel_dense_2.build((n, self.tokens, 48))

    def mix_tokens(self, x):
        if self.variant == "einsum":
            first, second = self.token_dense_1, self.token_dense_2
            x = ops.gelu(ops.einsum("btc,th->bhc", x, first.kernel) + first.bias[:, None], approximate=False)
            return ops.einsum("bhc,ht->btc", x, second.kernel) + second.bias[:, None]
        if self.fault == "tokens_reshaped":
            x = ops.reshape(x, (-1, self.channels, self.tokens))
        else:
            x = ops.transpose(x, (0, 2, 1))
        x = self.token_dense_2(ops.gelu(self.token_dense_1(x), approximate=False))
        return ops.transpose(x, (0, 2, 1))

    def call(self, x):
        x = x + self.mix_tokens(self.norm_tokens(x))
        y = self.channel_dense_1(self.norm_channels(x))
        return x + self.channel_dense_2(ops.gelu(y, approximate=False))


def build(fault=None, variant=None, dtype="float32"):
    keras.config.set_floatx(dtype)
    keras.utils.clear_session()
    small, large = weights.DIMS
    blocks = [
        ConvNeXtBlock(small, rate, fault, variant, name=f"stage_0_block_{i}") for i, rate in enumerate((0.05, 0.1))
    ]
    head = [layers.GlobalAveragePooling1D(name="pool"), layers.LayerNormalization(epsilon=1e-6, name="head_norm")]
    if fault == "norm_before_pool":
        head.reverse()
    model = keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            layers.Conv2D(small, 2, strides=2, name="stem_conv"),
            layers.LayerNormalization(epsilon=1e-6, name="stem_norm"),
            *blocks,
            layers.LayerNormalization(epsilon=1e-6, name="downsampling_norm"),
            layers.Conv2D(large, 2, strides=2, name="downsampling_conv"),
            layers.Reshape((weights.TOKENS, large), name="to_tokens"),
            MixerBlock(weights.TOKENS, large, fault, variant, name="mixer"),
            *head,
            layers.Dense(weights.CLASSES, name="predictions"),
        ],
        name="convnext_mixer",
    )
    weights.load_keras(model, weights.make(), variant)
    return model


def inputs(seed):
    x = np.random.default_rng(40 + seed).standard_normal((2, 3, 16, 16), dtype=np.float32)
    return (x.transpose(0, 2, 3, 1),)
