import keras
import tensorflow as tf
import weights as cfg


class WarmUp(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up; the step is counted from `first`."""

    def __init__(self, peak, steps, first=1):
        self.peak, self.steps, self.first = peak, steps, first

    def __call__(self, step):
        share = (tf.cast(step, keras.config.floatx()) + self.first) / self.steps
        return self.peak * tf.minimum(share, 1.0)


class TorchAdamW(keras.optimizers.AdamW):
    """AdamW whose epsilon is added to the corrected root, as PyTorch does."""

    correct_bias = True

    def update_step(self, gradient, variable, learning_rate):
        n = self._get_variable_index(variable)
        m, v = self._momentums[n], self._velocities[n]
        t = tf.cast(self.iterations + 1, variable.dtype)
        m.assign(self.beta_1 * m + (1 - self.beta_1) * gradient)
        v.assign(self.beta_2 * v + (1 - self.beta_2) * gradient * gradient)
        m_hat, v_hat = m, v
        if self.correct_bias:
            m_hat = m / (1 - tf.constant(self.beta_1, variable.dtype) ** t)
            v_hat = v / (1 - tf.constant(self.beta_2, variable.dtype) ** t)
        variable.assign_sub(tf.cast(learning_rate, variable.dtype) * m_hat / (tf.sqrt(v_hat) + self.epsilon))


class HandWritten:
    """The same update without an optimiser of Keras."""

    def __init__(self, variables, schedule):
        self.schedule, self.count = schedule, 0
        self.first = {v.path: tf.Variable(tf.zeros_like(v)) for v in variables}
        self.second = {v.path: tf.Variable(tf.zeros_like(v)) for v in variables}

    def apply(self, gradients, variables):
        lr = self.schedule(self.count)
        self.count += 1
        (b1, b2), t = cfg.BETAS, self.count
        for g, p in zip(gradients, variables, strict=True):
            if "kernel" in p.path:
                p.assign_sub(p * lr * cfg.DECAY)
            m, v = self.first[p.path], self.second[p.path]
            m.assign(m * b1 + g * (1 - b1))
            v.assign(v * b2 + tf.square(g) * (1 - b2))
            p.assign_sub(lr * (m / (1 - b1**t)) / (tf.sqrt(v / (1 - b2**t)) + cfg.EPS))


def build(fault=None, variant=None, dtype="float32"):
    keras.config.set_floatx(dtype)
    keras.utils.clear_session()
    model = keras.Sequential(
        [
            keras.Input((10,)),
            keras.layers.Dense(24, activation="tanh", name="hidden_a"),
            keras.layers.Dense(16, activation="silu", name="hidden_b"),
            keras.layers.Dense(5, name="logits"),
        ],
        name="mlp",
    )
    for layer, (kernel, bias) in zip(model.layers, cfg.make().values(), strict=True):
        layer.set_weights([kernel, bias])
    model.planted = fault, variant
    return model


def clip(gradients, per_variable):
    if per_variable:
        return [tf.clip_by_norm(g, cfg.CLIP) for g in gradients]
    norm = tf.sqrt(tf.add_n([tf.reduce_sum(g * g) for g in gradients]))
    factor = tf.minimum(cfg.CLIP / (norm + 1e-6), 1.0)
    return [g * factor for g in gradients]


def training(model):
    fault, variant = model.planted
    variables = model.trainable_variables
    schedule = WarmUp(cfg.LR, cfg.WARMUP, 0 if fault == "warmup_from_zero" else 1)
    b1, b2 = cfg.BETAS
    if variant == "hand_written":
        optimizer = HandWritten(variables, schedule)
    else:
        kind = keras.optimizers.AdamW if fault == "adam_epsilon" else TorchAdamW
        optimizer = kind(
            schedule,
            beta_1=b1,
            beta_2=0.999 if fault == "beta2_default" else b2,
            epsilon=1e-7 if fault == "epsilon_default" else cfg.EPS,
            weight_decay=cfg.DECAY,
        )
        if fault != "decay_on_biases":
            optimizer.exclude_from_weight_decay(var_names=["bias"])
        optimizer.build(variables)
        optimizer.correct_bias = fault != "no_bias_correction"
    averages = [tf.Variable(v) for v in variables]
    done = []

    def step(x):
        classes = cfg.labels(x.numpy())
        with tf.GradientTape() as tape:
            logits = model(x, training=True)
            wanted = tf.one_hot(classes, 5, dtype=logits.dtype) * (1 - cfg.SMOOTHING) + cfg.SMOOTHING / 5
            losses = tf.nn.softmax_cross_entropy_with_logits(wanted, logits)
            loss = tf.reduce_mean(losses)
        gradients = clip(tape.gradient(loss, variables), fault == "clip_per_variable")
        lr = float(schedule(len(done)))
        optimizer.apply(gradients, variables)
        for average, v in zip(averages, variables, strict=True):
            if fault == "ema_starts_at_first" and not done:
                average.assign(v)
            else:
                average.assign(cfg.EMA * average + (1 - cfg.EMA) * v)
        done.append(1)
        named = {v.path: a.numpy() for v, a in zip(variables, averages, strict=True)}
        return {"loss": float(loss), "learning_rate": lr, "averages": named}

    return step


def inputs(seed):
    return (cfg.batch(seed),)
