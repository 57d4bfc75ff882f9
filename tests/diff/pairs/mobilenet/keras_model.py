import keras
import numpy as np
import weights
from keras import layers


def relu6(x):
    return layers.ReLU(6.0)(x)


def hard_sigmoid(x):
    return layers.ReLU(6.0)(x + 3.0) * (1.0 / 6.0)


def hard_sigmoid_of_keras_2(x):
    return keras.ops.clip(0.2 * x + 0.5, 0.0, 1.0)


def hard_swish(x):
    return layers.Multiply()([x, hard_sigmoid(x)])


def _bn(x, name):
    return layers.BatchNormalization(axis=-1, epsilon=1e-3, momentum=0.99, name=name)(x)


def _depthwise(x, size, stride, name, variant):
    padding = "same"
    if variant == "explicit_padding" and stride == 2:
        x = layers.ZeroPadding2D(((0, 1), (0, 1)), name=name + "_pad")(x)
        padding = "valid"
    return layers.DepthwiseConv2D(size, strides=stride, padding=padding, use_bias=False, name=name)(x)


def _se_block(inputs, filters, prefix, fault, variant):
    dense = (lambda n, name: layers.Conv2D(n, 1, name=name)) if variant == "se_conv" else None
    dense = dense or (lambda n, name: layers.Dense(n, name=name))
    x = layers.GlobalAveragePooling2D(keepdims=True, name=prefix + "squeeze")(inputs)
    x = dense(8, prefix + "se_down")(x)
    x = layers.ReLU(name=prefix + "se_relu")(x)
    x = dense(filters, prefix + "se_up")(x)
    gate = hard_sigmoid_of_keras_2 if fault == "old_hard_sigmoid" else hard_sigmoid
    return layers.Multiply(name=prefix + "se_mul")([inputs, gate(x)])


def _inverted_res_block(inputs, i, stride, activation, fault, variant):
    _, hidden, filters, size = weights.BLOCKS[f"b{i}"]
    prefix = f"block_{i}_"
    x = layers.Conv2D(hidden, 1, padding="same", use_bias=False, name=prefix + "expand")(inputs)
    x = activation(_bn(x, prefix + "expand_bn"))
    x = _depthwise(x, size, stride, prefix + "depthwise", variant)
    x = activation(_bn(x, prefix + "depthwise_bn"))
    x = _se_block(x, hidden, prefix, fault, variant)
    x = layers.Conv2D(filters, 1, padding="same", use_bias=False, name=prefix + "project")(x)
    x = _bn(x, prefix + "project_bn")
    if stride == 1 and inputs.shape[-1] == filters:
        return layers.Add(name=prefix + "add")([inputs, x])
    return x


def build(fault=None, variant=None, dtype="float32"):
    keras.config.set_floatx(dtype)
    keras.utils.clear_session()
    img_input = keras.Input(shape=(20, 20, 3))
    x = img_input / 255.0 if fault == "scaled_to_one" else img_input / 127.5 - 1.0
    x = layers.Conv2D(12, 3, strides=2, padding="same", use_bias=False, name="Conv1")(x)
    x = hard_swish(_bn(x, "Conv1_bn"))
    first = layers.ReLU() if fault == "relu_unbounded" else relu6
    x = _inverted_res_block(x, 1, 2, first, fault, variant)
    x = _inverted_res_block(x, 2, 1, hard_swish, fault, variant)
    if variant == "two_layers":
        x = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, use_bias=False, name="sep_dw")(x)
        x = layers.Conv2D(24, 1, name="sep_pw")(x)
    else:
        x = layers.SeparableConv2D(24, 3, padding="same", depth_multiplier=2, name="sep")(x)
    x = relu6(x)
    x = layers.GlobalAveragePooling2D(name="global_pool")(x)
    x = layers.Dropout(0.8 if fault == "keep_probability" else 0.2, name="dropout")(x)
    model = keras.Model(img_input, layers.Dense(10, name="Logits")(x), name="mobilenet_tiny")
    weights.load_keras(model, weights.make(0), variant, fault)
    if fault == "frozen_block":
        for layer in model.layers:
            if layer.name.startswith("block_1_") and layer.name.endswith("_bn"):
                layer.trainable = False
    return model


def inputs(seed):
    g = np.random.default_rng(300 + seed)
    return (g.integers(0, 256, size=(4, 3, 20, 20)).astype("float32").transpose(0, 2, 3, 1),)
