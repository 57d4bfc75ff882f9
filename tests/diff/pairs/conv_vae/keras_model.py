import numpy as np
import tensorflow as tf
import weights
from tensorflow import keras
from tensorflow.keras import layers


class Sampling(layers.Layer):
    """Uses (z_mean, z_log_var) and a given noise to sample z, the vector encoding an image."""

    def __init__(self, fault=None, **kwargs):
        super().__init__(**kwargs)
        self.fault = fault

    def call(self, inputs):
        z_mean, z_log_var, epsilon = inputs
        if self.fault == "variance_as_std":
            return z_mean + tf.exp(z_log_var) * epsilon
        return z_mean + tf.exp(0.5 * z_log_var) * epsilon


class Encoder(layers.Layer):
    """Maps images to their mean and log variance."""

    def __init__(self, variant=None, name="encoder", **kwargs):
        super().__init__(name=name, **kwargs)
        self.pad = layers.ZeroPadding2D(1)
        self.conv_1 = layers.Conv2D(8, 3, activation="relu", strides=2, name="conv_1")
        self.conv_2 = layers.Conv2D(16, 3, activation="relu", strides=2, name="conv_2")
        self.channels_first = layers.Permute((3, 1, 2)) if variant != "rows_permuted" else None
        self.flatten = layers.Flatten()
        self.z_mean = layers.Dense(weights.LATENT, name="z_mean")
        self.z_log_var = layers.Dense(weights.LATENT, name="z_log_var")

    def call(self, x):
        x = self.conv_1(self.pad(x))
        x = self.conv_2(self.pad(x))
        if self.channels_first is not None:
            x = self.channels_first(x)
        x = self.flatten(x)
        return self.z_mean(x), self.z_log_var(x)


class Decoder(layers.Layer):
    """Converts z, the encoded vector, back into an image."""

    def __init__(self, fault=None, variant=None, name="decoder", **kwargs):
        super().__init__(name=name, **kwargs)
        self.fault, self.variant = fault, variant
        self.dense = layers.Dense(256, name="dense")
        same = fault == "transposed_same"
        self.up1 = layers.Conv2DTranspose(12, 3, strides=2, padding="same" if same else "valid", name="up1")
        self.crop1 = layers.Cropping2D(0 if same else ((1, 0), (1, 0)), name="crop1")
        valid = variant == "valid_and_crop"
        self.up2 = layers.Conv2DTranspose(8, 4, strides=2, padding="valid" if valid else "same", name="up2")
        self.crop2 = layers.Cropping2D(1 if valid else 0, name="crop2")
        self.act = layers.LeakyReLU(negative_slope=0.2, name="act")
        self.to_image = layers.Conv2D(12, 3, padding="same", name="to_image")
        self.crop = layers.Cropping2D(2, name="crop")

    def call(self, z):
        x = self.dense(z)
        if self.fault == "unflatten_nhwc":
            x = tf.reshape(x, (-1, 4, 4, 16))
        else:
            x = tf.transpose(tf.reshape(x, (-1, 16, 4, 4)), (0, 2, 3, 1))
        x = self.act(self.crop1(self.up1(x)))
        x = self.act(self.crop2(self.up2(x)))
        x = self.to_image(x)
        x = self.crop(tf.nn.depth_to_space(x, 2))
        return tf.nn.sigmoid(x)


class VariationalAutoEncoder(keras.Model):
    def __init__(self, fault=None, variant=None, name="vae", **kwargs):
        super().__init__(name=name, **kwargs)
        self.encoder = Encoder(variant)
        self.sampling = Sampling(fault, name="sampling")
        self.decoder = Decoder(fault, variant)

    def call(self, images, noise):
        z_mean, z_log_var = self.encoder(images)
        z = self.sampling((z_mean, z_log_var, noise))
        return {"reconstruction": self.decoder(z), "mean": z_mean, "log_var": z_log_var}


def build(fault=None, variant=None, dtype="float32"):
    keras.backend.set_floatx(dtype)
    keras.backend.clear_session()
    vae = VariationalAutoEncoder(fault, variant)
    vae(tf.zeros((1, 28, 28, 3), dtype), tf.zeros((1, weights.LATENT), dtype))
    weights.load_keras(vae, weights.make(), variant, fault)
    if fault == "frozen_dense":
        vae.decoder.dense.trainable = False
    return vae


def inputs(seed):
    g = np.random.default_rng(seed)
    images = g.random((3, 3, 28, 28), dtype="float32").transpose(0, 2, 3, 1)
    return images, g.standard_normal((3, weights.LATENT)).astype("float32")
