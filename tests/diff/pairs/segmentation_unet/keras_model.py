import keras
import numpy as np
import weights
from keras import layers, ops


def source_positions(size, new, half_pixel):
    """Positions in the source of the pixels of the result, and their two neighbours."""
    centre = 0.5 if half_pixel else 0.0
    at = np.clip((np.arange(new) + centre) * (size / new) - centre, 0, None)
    low = np.minimum(np.floor(at).astype(int), size - 1)
    return low, np.minimum(low + 1, size - 1), at - low


class BilinearResize(layers.Layer):
    """keras.ops.image.resize would round to float32."""

    def __init__(self, height, width, half_pixel=True, matrices=False, **kwargs):
        super().__init__(**kwargs)
        self.height, self.width, self.half_pixel, self.matrices = height, width, half_pixel, matrices

    def along(self, x, axis, new):
        low, high, share = source_positions(x.shape[axis], new, self.half_pixel)
        if self.matrices:
            matrix = np.zeros((new, x.shape[axis]))
            np.add.at(matrix, (np.arange(new), low), 1 - share)
            np.add.at(matrix, (np.arange(new), high), share)
            matrix = ops.convert_to_tensor(matrix, dtype=x.dtype)
            return ops.einsum("bhwc,ih->biwc" if axis == 1 else "bhwc,iw->bhic", x, matrix)
        share = ops.convert_to_tensor(share.reshape((-1, 1, 1) if axis == 1 else (-1, 1)), dtype=x.dtype)
        first, second = ops.take(x, low, axis=axis), ops.take(x, high, axis=axis)
        return first + (second - first) * share

    def call(self, x):
        return self.along(self.along(x, 1, self.height), 2, self.width)


def double_conv(x, filters, act_first=False, early=None):
    for _ in range(2):
        x = layers.Conv2D(filters, 3, padding="same")(x)
        if act_first:
            x = layers.Activation("silu")(x)
        x = layers.GroupNormalization(groups=weights.GROUPS, epsilon=1e-5)(x)
        if not act_first:
            x = layers.Activation("silu")(x)
        if early is not None:
            early.append(x)
    return x


def build(fault=None, variant=None, dtype="float32"):
    keras.config.set_floatx(dtype)
    keras.utils.clear_session()
    inputs = keras.Input((18, 22, 3))
    steps = []
    x = double_conv(inputs, 8, early=steps)
    skips = [steps[0] if fault == "skip_too_early" else x]
    if fault == "average_same":
        x = layers.AveragePooling2D(3, strides=2, padding="same")(x)
    else:
        x = layers.ZeroPadding2D(1)(x)
        x = layers.AveragePooling2D(3, strides=2)(x)
    x = double_conv(x, 16)
    skips.append(x)
    x = layers.MaxPooling2D(2, padding="same")(x)
    x = double_conv(x, 24, act_first=fault == "activation_before_norm")
    for filters in (16, 8):
        skip = skips.pop()
        _, height, width, _ = skip.shape
        if variant == "upsampling_layer" and not skips:
            x = layers.UpSampling2D(2, interpolation="bilinear")(x)
        else:
            x = BilinearResize(height, width, fault != "corner_pixels", variant == "matrices")(x)
        x = layers.Concatenate()([skip, x])
        x = double_conv(x, filters)
    head = "softmax" if fault == "softmax_head" else None
    outputs = layers.Conv2D(weights.CLASSES, 1, activation=head)(x)
    model = keras.Model(inputs, outputs)
    weights.load_keras(model, weights.make())
    return model


def inputs(seed):
    x = np.random.default_rng([7, seed]).normal(size=(2, 3, 18, 22)).astype(np.float32)
    return (np.moveaxis(x, 1, -1),)
