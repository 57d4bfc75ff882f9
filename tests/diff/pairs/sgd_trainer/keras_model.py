import keras
import numpy as np
import tensorflow as tf
import weights


class Momentum(keras.optimizers.SGD):
    """SGD whose learning rate multiplies the velocity when it is used, and with decay in the gradient."""

    def __init__(self, *args, l2=0.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.l2 = l2

    def update_step(self, gradient, variable, learning_rate):
        velocity = self.momentums[self._get_variable_index(variable)]
        gradient = gradient + self.l2 * variable
        velocity.assign(velocity * self.momentum + gradient)
        variable.assign_sub(velocity * tf.cast(learning_rate, variable.dtype))


class Regression(keras.Model):
    def __init__(self, fault=None):
        super().__init__(name="regression")
        self.a = keras.layers.Conv2D(6, 3, padding="same", activation="relu", name="a")
        # The rate of Keras is the share that is dropped.
        rate = 1 - weights.RATE if fault == "keep_probability" else weights.RATE
        self.drop = keras.layers.Dropout(rate, name="drop")
        self.b = keras.layers.Conv2D(8, 3, activation="relu", name="b")
        self.pool = keras.layers.GlobalAveragePooling2D(name="pool")
        self.out = keras.layers.Dense(2, name="out")
        self.late = fault == "dropout_at_end"

    def call(self, x, training=False):
        x = self.a(x)
        if not self.late:
            x = self.drop(x, training=training)
        x = self.pool(self.b(x))
        if self.late:
            x = self.drop(x, training=training)
        return self.out(x)


class Trainer:
    def __init__(self, model, fault, variant):
        self.model, self.fault, self.variant, self.count = model, fault, variant, 0
        if fault == "keras_momentum":
            self.optimizer = keras.optimizers.SGD(weights.BASE_LR, momentum=weights.MOMENTUM)
        elif fault == "decoupled_decay":
            self.optimizer = Momentum(weights.BASE_LR, momentum=weights.MOMENTUM, weight_decay=weights.DECAY)
        else:
            self.optimizer = Momentum(weights.BASE_LR, momentum=weights.MOMENTUM, l2=weights.DECAY)
        self.optimizer.build(model.trainable_variables)

    def rate(self):
        k = self.count
        if self.fault == "cosine_ends_early":  # the last of TOTAL steps reaches zero
            return (
                weights.learning_rate(k)
                * (1 + np.cos(np.pi * k / (weights.TOTAL - 1)))
                / (1 + np.cos(np.pi * k / weights.TOTAL))
            )
        if self.fault == "drop_late" and k == weights.DROP_AT:
            return weights.learning_rate(k) * 10
        return weights.learning_rate(k)

    def gradients(self, x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.math.squared_difference(self.model(x), y))
            shown = loss
            if self.fault == "keras_momentum":
                loss += weights.DECAY / 2 * tf.add_n([tf.reduce_sum(v**2) for v in self.model.trainable_variables])
        return shown, tape.gradient(loss, self.model.trainable_variables)

    def __call__(self, x):
        y = tf.constant(weights.goals(x.numpy().transpose(0, 3, 1, 2)), x.dtype)
        if self.variant == "whole_batch":
            parts = [self.gradients(x, y)]
        else:
            parts = [self.gradients(x[:3], y[:3]), self.gradients(x[3:], y[3:])]
        share = 1 if self.fault == "accumulated_sum" else len(parts)
        summed = [tf.add_n(list(each)) / share for each in zip(*(g for _, g in parts), strict=True)]
        rate = self.rate()
        self.optimizer.learning_rate = rate
        self.optimizer.apply_gradients(zip(summed, self.model.trainable_variables, strict=True))
        self.count += 1
        return {"loss": float(sum(loss for loss, _ in parts)) / len(parts), "learning_rate": rate}


def build(fault=None, variant=None, dtype="float32"):
    keras.config.set_floatx(dtype)
    keras.utils.clear_session()
    model = Regression(fault)
    model(np.zeros((1, 8, 8, 2), dtype))
    for layer, (kernel, bias) in zip((model.a, model.b, model.out), weights.make().values(), strict=True):
        layer.set_weights([kernel.transpose(2, 3, 1, 0) if kernel.ndim == 4 else kernel.T, bias])
    model.setup = fault, variant
    return model


def training(model):
    return Trainer(model, *model.setup)


def inputs(seed):
    return (np.moveaxis(weights.images(seed), 1, 3),)
