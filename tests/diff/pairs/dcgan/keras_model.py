"""Deep convolutional GAN: two Sequential models and the model that stacks them."""

import numpy as np
import weights
from keras import Input, Model, Sequential, backend, layers

LATENT_DIM = 10


def make_generator_model(fault, variant):
    model = Sequential(name="generator")
    model.add(Input((LATENT_DIM,)))
    model.add(layers.Dense(4 * 4 * 16, use_bias=False, name="project"))
    model.add(layers.BatchNormalization(momentum=0.8, name="bn0"))
    model.add(layers.LeakyReLU(negative_slope=0.2, name="act0"))
    model.add(layers.Reshape((4, 4, 16), name="reshape"))

    model.add(layers.Conv2DTranspose(12, 4, strides=2, padding="same", use_bias=False, name="up1"))
    norm, act = layers.BatchNormalization(momentum=0.8, name="bn1"), layers.LeakyReLU(negative_slope=0.2, name="act1")
    for layer in (act, norm) if fault == "norm_behind_activation" else (norm, act):
        model.add(layer)

    if variant == "cropped":
        model.add(layers.Conv2DTranspose(3, 4, strides=2, padding="valid", name="up2"))
        model.add(layers.Cropping2D(1, name="crop"))
        model.add(layers.Activation("tanh", name="picture"))
    else:
        model.add(layers.Conv2DTranspose(3, 4, strides=2, padding="same", activation="tanh", name="up2"))
    return model


def make_discriminator_model(fault, variant):
    model = Sequential(name="discriminator")
    model.add(Input((16, 16, 3)))
    model.add(layers.Conv2D(8, 4, strides=2, padding="same", name="conv1"))
    act, drop = layers.LeakyReLU(negative_slope=0.2, name="act1"), layers.Dropout(0.3, name="drop")
    if fault == "dropout_forgotten":
        model.add(act)
    else:
        for layer in (drop, act) if variant == "dropout_first" else (act, drop):
            model.add(layer)
    model.add(layers.Conv2D(12, 4, strides=2, padding="same", use_bias=False, name="conv2"))
    model.add(layers.BatchNormalization(momentum=0.8, name="bn2"))
    model.add(layers.LeakyReLU(negative_slope=0.2, name="act2"))
    model.add(layers.Flatten(name="flatten"))
    model.add(layers.Dense(1, name="logit"))
    return model


def build(fault=None, variant=None, dtype="float32"):
    backend.set_floatx(dtype)
    backend.clear_session()
    generator = make_generator_model(fault, variant)
    discriminator = make_discriminator_model(fault, variant)
    lists = weights.keras_lists(weights.numbers())
    for model, arrays in zip((generator, discriminator), lists, strict=True):
        for name, values in arrays.items():
            model.get_layer(name).set_weights(values)
    if fault == "discriminator_frozen":
        # For the combined model we will only train the generator
        discriminator.trainable = False
    z = Input((LATENT_DIM,), name="z")
    img = generator(z)
    return Model(z, [img, discriminator(img)], name="combined")


def inputs(seed):
    return (np.random.default_rng(70 + seed).standard_normal((6, LATENT_DIM)).astype("float32"),)
