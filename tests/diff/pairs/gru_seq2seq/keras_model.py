"""Training model of a translator in the functional style of the Keras tutorials."""

import keras
import numpy as np
import weights
from keras import layers, ops

UNITS = weights.UNITS


def shift_right(target, start):
    """Feed the decoder with the sentence behind a start word (teacher forcing)."""
    first = ops.full_like(target[:, :1], start)
    return ops.concatenate([first, target[:, :-1]], axis=1)


class Turn(layers.Layer):
    def call(self, x):
        return ops.flip(x, axis=1)


def build(fault=None, variant=None, dtype="float32"):
    keras.config.set_floatx(dtype)
    keras.utils.clear_session()
    reset_after = fault != "reset_before"
    activation = "relu" if fault == "relu_state" else "tanh"

    source = keras.Input((weights.SOURCE_LENGTH,), dtype="int64", name="source")
    target = keras.Input((weights.TARGET_LENGTH,), dtype="int64", name="target")

    x = layers.Embedding(weights.SOURCE_WORDS, weights.EMBED, name="source_words")(source)
    backwards = variant != "turned_input"
    if not backwards:
        x = Turn(name="turn")(x)
    memory, state = layers.GRU(
        UNITS,
        return_sequences=True,
        return_state=True,
        go_backwards=backwards,
        reset_after=reset_after,
        activation=activation,
        name="encoder",
    )(x)
    if variant == "memory_turned":  # attention does not mind the order of what it reads
        memory = Turn(name="turn")(memory)
    if fault == "first_state":
        state = layers.Lambda(lambda m: m[:, 0], name="state")(memory)

    if fault == "no_shift":
        fed = target
    else:
        start = 0 if fault == "start_zero" else weights.START
        fed = layers.Lambda(shift_right, arguments={"start": start}, name="teacher_forcing")(target)
    y = layers.Embedding(weights.TARGET_WORDS, weights.EMBED, name="target_words")(fed)
    y = layers.GRU(UNITS, return_sequences=True, reset_after=reset_after, unroll=variant == "unrolled", name="decoder")(
        y, initial_state=state
    )

    keys = layers.Dense(UNITS, use_bias=False, name="score")(memory)
    scores = layers.Dot(axes=2, name="energies")([y, keys])
    if fault == "softmax_over_target":
        share = layers.Softmax(axis=1, name="shares")(scores)
    else:
        share = layers.Softmax(name="shares")(scores)
    context = layers.Dot(axes=(2, 1), name="context")([share, memory])
    z = layers.Concatenate(name="both")([context, y])
    z = layers.Dense(UNITS, activation="tanh", name="mix")(z)
    logits = layers.Dense(weights.TARGET_WORDS, name="words")(z)

    model = keras.Model([source, target], logits, name="translator")
    load(model, fault)
    return model


def gates(array, order):
    """Cut the rows r, z, n of PyTorch and put them together in another order."""
    parts = dict(zip("rzn", np.split(array, 3, axis=0), strict=True))
    return np.concatenate([parts[gate] for gate in order], axis=0)


def load(model, fault):
    w = weights.make()
    model.get_layer("source_words").set_weights([w["source"]])
    model.get_layer("target_words").set_weights([w["target"]])
    order = "rzn" if fault == "gate_order" else "zrn"
    for side in ("encoder", "decoder"):
        kernel, recurrent, bih, bhh = (gates(w[f"{side}.{part}"], order) for part in ("ih", "hh", "bih", "bhh"))
        if fault == "reset_before":
            bias = bih + bhh
        elif fault == "one_bias":
            bias = np.stack([bih, np.zeros_like(bhh)])
        else:
            bias = np.stack([bih, bhh])
        model.get_layer(side).set_weights([kernel.T, recurrent.T, bias])
    model.get_layer("score").set_weights([w["score"].T])
    model.get_layer("mix").set_weights([w["mix"].T, w["mix.b"]])
    model.get_layer("words").set_weights([w["words"].T, w["words.b"]])


def inputs(seed):
    return weights.sentences(seed)
