"""An image classifier in the functional style of Keras."""

import keras
import numpy as np
from keras import layers


def build():
    keras.utils.set_random_seed(0)
    images = keras.Input((24, 20, 3))
    x = layers.Rescaling(1 / 255)(images)
    x = layers.Conv2D(16, 3, strides=2, padding="same", activation="relu", name="conv1")(x)
    x = layers.BatchNormalization(name="norm1")(x)
    x = layers.Conv2D(32, 3, padding="same", activation="relu", name="conv2")(x)
    x = layers.MaxPooling2D()(x)
    x = layers.Dropout(0.2)(x)
    x = layers.Flatten()(x)
    x = layers.Dense(64, activation="relu", name="dense1")(x)
    return keras.Model(images, layers.Dense(5, name="logits")(x))


def inputs(seed):
    return np.random.default_rng(seed).integers(0, 256, (4, 24, 20, 3)).astype("float32")


# ruff: noqa: D103
