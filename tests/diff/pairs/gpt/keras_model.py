import keras
import numpy as np
import weights
from keras import ops


class RootMeanSquareNorm(keras.layers.Layer):
    def __init__(self, epsilon=1e-6, **kwargs):
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def build(self, input_shape):
        self.scale = self.add_weight(name="scale", shape=(input_shape[-1],), initializer="ones")
        self.built = True

    def call(self, x):
        power = ops.mean(ops.square(x), axis=-1, keepdims=True)
        return x / ops.sqrt(power + self.epsilon) * self.scale


class RotaryEmbedding(keras.layers.Layer):
    """Turn pairs of features by an angle that grows with the position; tensors are (batch, time, heads, features)."""

    def __init__(self, interleaved=False, **kwargs):
        super().__init__(**kwargs)
        self.interleaved = interleaved

    def call(self, x):
        _, time, _, width = x.shape
        rates = 10000.0 ** (-np.arange(width // 2) / (width // 2))
        angles = np.arange(time)[:, None, None] * rates
        cos, sin = (ops.convert_to_tensor(f(angles), dtype=x.dtype) for f in (np.cos, np.sin))
        if self.interleaved:
            even, odd = x[..., 0::2], x[..., 1::2]
            turned = ops.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1)
            return ops.reshape(turned, ops.shape(x))
        first, second = ops.split(x, 2, axis=-1)
        return ops.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class GroupedQueryAttention(keras.layers.Layer):
    def __init__(self, interleaved=False, leak=False, **kwargs):
        super().__init__(**kwargs)
        self.leak = leak
        self.query_dense = keras.layers.EinsumDense(
            "btm,mhk->bthk", (None, weights.HEADS, weights.HEAD_DIM), name="query"
        )
        self.key_dense = keras.layers.EinsumDense(
            "btm,mhk->bthk", (None, weights.KV_HEADS, weights.HEAD_DIM), name="key"
        )
        self.value_dense = keras.layers.EinsumDense(
            "btm,mhk->bthk", (None, weights.KV_HEADS, weights.HEAD_DIM), name="value"
        )
        self.output_dense = keras.layers.EinsumDense("bthk,hkm->btm", (None, weights.DIM), name="output")
        self.rotary = RotaryEmbedding(interleaved, name="rotary")

    def build(self, shape):
        for dense in (self.query_dense, self.key_dense, self.value_dense):
            dense.build(shape)
        self.output_dense.build((*shape[:2], weights.HEADS, weights.HEAD_DIM))
        self.built = True

    def call(self, x):
        time = x.shape[1]
        groups = weights.HEADS // weights.KV_HEADS
        query = self.rotary(self.query_dense(x))
        key, value = self.rotary(self.key_dense(x)), self.value_dense(x)
        # (batch, time, kv heads, queries of a group, features)
        query = ops.reshape(query, (-1, time, weights.KV_HEADS, groups, weights.HEAD_DIM))
        scores = ops.einsum("btkgd,bskd->bkgts", query, key) / np.sqrt(weights.HEAD_DIM)
        seen = np.tril(np.ones((time, time), bool), 1 if self.leak else 0)
        scores = ops.where(seen, scores, -1e30)
        mixed = ops.einsum("bkgts,bskd->btkgd", ops.softmax(scores), value)
        return self.output_dense(ops.reshape(mixed, (-1, time, weights.HEADS, weights.HEAD_DIM)))


class GatedFeedForward(keras.layers.Layer):
    def __init__(self, swapped=False, fused=False, **kwargs):
        super().__init__(**kwargs)
        self.swapped, self.fused = swapped, fused
        if fused:
            self.gate_up = keras.layers.Dense(2 * weights.HIDDEN, use_bias=False, name="gate_up")
        else:
            self.gate = keras.layers.Dense(weights.HIDDEN, use_bias=False, name="gate")
            self.up = keras.layers.Dense(weights.HIDDEN, use_bias=False, name="up")
        self.down = keras.layers.Dense(weights.DIM, use_bias=False, name="down")

    def build(self, shape):
        for dense in (self.gate_up,) if self.fused else (self.gate, self.up):
            dense.build(shape)
        self.down.build((*shape[:-1], weights.HIDDEN))
        self.built = True

    def call(self, x):
        gate, up = ops.split(self.gate_up(x), 2, axis=-1) if self.fused else (self.gate(x), self.up(x))
        if self.swapped:
            return self.down(gate * ops.silu(up))
        return self.down(ops.silu(gate) * up)


class Backbone(keras.Model):
    def __init__(self, fault=None, variant=None, **kwargs):
        super().__init__(**kwargs)
        self.fault = fault
        epsilon = 1e-5 if fault == "rms_eps" else 1e-6
        interleaved = fault == "rotary_pairs" or variant == "interleaved_rotary"
        self.token_embedding = keras.layers.Embedding(weights.VOCAB, weights.DIM, name="token_embedding")
        self.attention_norms, self.attentions, self.mlp_norms, self.mlps = [], [], [], []
        for n in range(weights.LAYERS):
            self.attention_norms.append(RootMeanSquareNorm(epsilon, name=f"attention_norm_{n}"))
            self.attentions.append(GroupedQueryAttention(interleaved, fault == "mask_leak", name=f"attention_{n}"))
            self.mlp_norms.append(RootMeanSquareNorm(epsilon, name=f"mlp_norm_{n}"))
            self.mlps.append(GatedFeedForward(fault == "gate_swapped", variant == "fused_gate_up", name=f"mlp_{n}"))
        self.final_norm = RootMeanSquareNorm(epsilon, name="final_norm")

    def call(self, tokens):
        x = self.token_embedding(tokens)
        if self.fault == "scaled_embedding":
            x = x * float(np.sqrt(weights.DIM))
        for n in range(weights.LAYERS):
            x = x + self.attentions[n](self.attention_norms[n](x))
            x = x + self.mlps[n](self.mlp_norms[n](x))
        x = self.final_norm(x)
        return ops.matmul(x, ops.transpose(self.token_embedding.embeddings))


def build(fault=None, variant=None, dtype="float32"):
    keras.config.set_floatx(dtype)
    keras.utils.clear_session()
    model = Backbone(fault, variant, name="backbone")
    model(np.zeros((1, weights.LENGTH), "int32"))
    w = weights.make()
    model.token_embedding.set_weights([w["embed"]])
    model.final_norm.set_weights([w["norm"]])
    for n in range(weights.LAYERS):
        model.attention_norms[n].set_weights([w[f"{n}.norm1"]])
        model.mlp_norms[n].set_weights([w[f"{n}.norm2"]])
        q, k = w[f"{n}.q"], w[f"{n}.k"]
        if variant == "interleaved_rotary":
            q, k = weights.to_interleaved(q, weights.HEADS), weights.to_interleaved(k, weights.KV_HEADS)
        kernels = [m.T.reshape(weights.DIM, -1, weights.HEAD_DIM) for m in (q, k, w[f"{n}.v"])]
        out = w[f"{n}.o"].T.reshape(weights.HEADS, weights.HEAD_DIM, weights.DIM)
        attention = model.attentions[n]
        for dense, kernel in zip(
            (attention.query_dense, attention.key_dense, attention.value_dense, attention.output_dense),
            (*kernels, out),
            strict=True,
        ):
            dense.set_weights([kernel])
        gate, up, down = (w[f"{n}.{p}"].T for p in ("gate", "up", "down"))
        mlp = model.mlps[n]
        if mlp.fused:
            mlp.gate_up.set_weights([np.concatenate([gate, up], axis=1)])
        else:
            mlp.gate.set_weights([gate])
            mlp.up.set_weights([up])
        mlp.down.set_weights([down])
    return model


def inputs(seed):
    return (np.random.default_rng(300 + seed).integers(0, weights.VOCAB, (2, weights.LENGTH)).astype("int32"),)
