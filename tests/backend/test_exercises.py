"""`duet.check` with functions of PyTorch tensors and of TensorFlow tensors: right ones, and the usual mistakes."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest

from duet.exercises import EXERCISES, check
from duet.exercises.frameworks import find_frameworks

pytestmark = pytest.mark.backend
torch_only = pytest.mark.skipif(not find_spec("torch"), reason="it is about PyTorch")
tf_only = pytest.mark.skipif(not find_spec("tensorflow"), reason="it is about TensorFlow")


def torch_solutions():
    """Return right solutions as one writes them in PyTorch."""
    import torch
    from torch.nn import functional

    def add_noise(x0, eps, t, alpha_bar):
        a = alpha_bar[t].view(-1, *[1] * (x0.dim() - 1))
        return a.sqrt() * x0 + (1 - a).sqrt() * eps

    def ddim_step(x, eps, t, s, alpha_bar):
        after = alpha_bar[s] if s >= 0 else torch.ones_like(alpha_bar[0])
        x0 = (x - torch.sqrt(1 - alpha_bar[t]) * eps) / torch.sqrt(alpha_bar[t])
        return torch.sqrt(after) * x0 + torch.sqrt(1 - after) * eps

    def ddpm_step(x, eps, z, t, betas):
        alphas = 1 - betas
        alpha_bar = torch.cumprod(alphas, dim=0)
        mean = (x - betas[t] / (1 - alpha_bar[t]).sqrt() * eps) / alphas[t].sqrt()
        return mean + (betas[t].sqrt() * z if t > 0 else 0)

    def training_loss(predict, x0, eps, t, alpha_bar):
        return functional.mse_loss(predict(add_noise(x0, eps, t, alpha_bar), t), eps)

    def heun_step(x, denoise, sigma, sigma_next):
        levels = torch.full((len(x),), sigma, dtype=x.dtype)
        d = (x - denoise(x, levels)) / sigma
        moved = x + (sigma_next - sigma) * d
        if sigma_next > 0:
            d = (d + (moved - denoise(moved, sigma_next)) / sigma_next) / 2
        return x + (sigma_next - sigma) * d

    def time_embedding(t, dim):
        frequencies = torch.exp(-np.log(10000) * torch.arange(dim // 2) / (dim // 2 - 1))
        angle = t[:, None] * frequencies[None]
        return torch.cat([angle.sin(), angle.cos()], dim=-1)

    def group_norm(x, weight, bias, groups, eps):
        return functional.group_norm(x, groups, weight, bias, eps)

    def self_attention(x, w_query, w_key, w_value, w_out, heads):
        q, k, v = (
            functional.linear(x, w).unflatten(-1, (heads, -1)).transpose(1, 2) for w in (w_query, w_key, w_value)
        )
        return functional.linear(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2), w_out)

    def residual_block(x, embedding, p, groups, eps):
        def conv(name, x):
            return functional.conv2d(x, p[f"{name}.weight"][:, :, None, None], p[f"{name}.bias"])

        def norm(name, x):
            return functional.group_norm(x, groups, p[f"{name}.weight"], p[f"{name}.bias"], eps)

        h = conv("dense1", functional.silu(norm("norm1", x)))
        time = functional.linear(functional.silu(embedding), p["dense_t.weight"], p["dense_t.bias"])
        return x + conv("dense2", functional.silu(norm("norm2", h + time[:, :, None, None])))

    def label_dropout(labels, u, p, null_label):
        return torch.where(u < p, torch.full_like(labels, null_label), labels)

    def adam_step(p, g, m, v, k, lr, beta1, beta2, eps, weight_decay):
        weight = torch.nn.Parameter(p.clone())
        adam = torch.optim.AdamW([weight], lr, (beta1, beta2), eps, weight_decay)
        adam.state[weight] = {"step": torch.tensor(float(k - 1)), "exp_avg": m.clone(), "exp_avg_sq": v.clone()}
        weight.grad = g
        adam.step()
        return weight, adam.state[weight]["exp_avg"], adam.state[weight]["exp_avg_sq"]

    return {name: value for name, value in locals().items() if name in EXERCISES}


def tf_solutions():
    """Return right solutions as one writes them in TensorFlow."""
    import tensorflow as tf

    def add_noise(x0, eps, t, alpha_bar):
        a = tf.reshape(tf.gather(alpha_bar, t), [-1] + [1] * (len(x0.shape) - 1))
        return tf.sqrt(a) * x0 + tf.sqrt(1 - a) * eps

    def ddim_step(x, eps, t, s, alpha_bar):
        after = alpha_bar[s] if s >= 0 else tf.ones_like(alpha_bar[0])
        x0 = (x - tf.sqrt(1 - alpha_bar[t]) * eps) / tf.sqrt(alpha_bar[t])
        return tf.sqrt(after) * x0 + tf.sqrt(1 - after) * eps

    def ddpm_step(x, eps, z, t, betas):
        alphas = 1 - betas
        alpha_bar = tf.math.cumprod(alphas)
        mean = (x - betas[t] / tf.sqrt(1 - alpha_bar[t]) * eps) / tf.sqrt(alphas[t])
        return mean + tf.sqrt(betas[t]) * z if t > 0 else mean

    @tf.function
    def training_loss(predict, x0, eps, t, alpha_bar):
        return tf.reduce_mean(tf.square(predict(add_noise(x0, eps, t, alpha_bar), t) - eps))

    def heun_step(x, denoise, sigma, sigma_next):
        d = (x - denoise(x, tf.fill([x.shape[0]], tf.cast(sigma, x.dtype)))) / sigma
        moved = x + (sigma_next - sigma) * d
        if sigma_next > 0:
            d = (d + (moved - denoise(moved, sigma_next)) / sigma_next) / 2
        return x + (sigma_next - sigma) * d

    def time_embedding(t, dim):
        k = tf.range(dim // 2, dtype=tf.float32)  # float32, as Keras code has it
        angle = t[:, None] * tf.exp(-tf.math.log(10000.0) * k / (dim // 2 - 1))[None]
        return tf.concat([tf.sin(angle), tf.cos(angle)], axis=-1)

    def group_norm(x, weight, bias, groups, eps):
        b, h, w, c = x.shape
        y = tf.reshape(x, [b, h, w, groups, c // groups])
        mean, variance = tf.nn.moments(y, [1, 2, 4], keepdims=True)
        return tf.reshape((y - mean) / tf.sqrt(variance + eps), x.shape) * weight + bias

    def self_attention(x, w_query, w_key, w_value, w_out, heads):
        b, n, c = x.shape
        q, k, v = (
            tf.transpose(tf.reshape(tf.einsum("bni,oi->bno", x, w), [b, n, heads, c // heads]), [0, 2, 1, 3])
            for w in (w_query, w_key, w_value)
        )
        a = tf.nn.softmax(tf.matmul(q, k, transpose_b=True) / np.sqrt(c // heads))
        y = tf.reshape(tf.transpose(a @ v, [0, 2, 1, 3]), [b, n, c])
        return tf.matmul(y, w_out, transpose_b=True)

    def residual_block(x, embedding, p, groups, eps):
        def dense(name, x):
            return tf.tensordot(x, p[f"{name}.weight"], [[-1], [1]]) + p[f"{name}.bias"]

        def norm(name, x):
            return group_norm(x, p[f"{name}.weight"], p[f"{name}.bias"], groups, eps)

        h = dense("dense1", tf.nn.silu(norm("norm1", x))) + dense("dense_t", tf.nn.silu(embedding))[:, None, None]
        return x + dense("dense2", tf.nn.silu(norm("norm2", h)))

    def label_dropout(labels, u, p, null_label):
        return tf.where(u < p, tf.cast(null_label, labels.dtype), labels)

    return {name: value for name, value in locals().items() if name in EXERCISES}


@torch_only
def test_right_solutions_in_pytorch_are_right():
    for name, function in torch_solutions().items():
        result = check(name, function)
        assert result and "called with PyTorch tensors in float64" in repr(result), result


@tf_only
def test_right_solutions_in_tensorflow_are_right(open_backend):
    open_backend("float64")  # it sets the threads before TensorFlow starts
    for name, function in tf_solutions().items():
        result = check(name, function)
        precision = "float32" if name == "time_embedding" else "float64"  # it fails in float64, and is tried again
        assert result and f"called with TensorFlow tensors in {precision}" in repr(result), result


@tf_only
def test_float32_is_tried_if_a_later_case_fails_in_float64(open_backend):
    open_backend("float64")
    from keras import ops

    def ddim_step(x, eps, t, s, alpha_bar):
        after = alpha_bar[s] if s >= 0 else 1.0  # ops.sqrt makes float32 of it
        x0 = (x - ops.sqrt(1 - alpha_bar[t]) * eps) / ops.sqrt(alpha_bar[t])
        return ops.sqrt(after) * x0 + ops.sqrt(1 - after) * eps

    result = check("ddim_step", ddim_step)
    assert result and "TensorFlow tensors in float32" in repr(result), result


@torch_only
def test_the_framework_is_that_of_the_code_of_its_helpers_and_of_its_class():
    import torch

    def root(x):
        return torch.sqrt(x)

    def by_helper(x):
        return root(x)

    class Module(torch.nn.Module):
        def forward(self, average, weights, decay):
            return decay * average + (1 - decay) * weights

    def by_import(x):
        import torch

        return torch.exp(x)

    for function in (root, by_helper, Module(), by_import, lambda x: [root(v) for v in x]):
        assert find_frameworks(function)[0].module == "torch"
    assert check("ema_update", Module()) and find_frameworks(lambda x: x)[0].module == "numpy"


@torch_only
def test_mistakes_in_pytorch_are_named():
    import torch

    def ddim_step(x, eps, t, s, alpha_bar):
        x0 = (x - torch.sqrt(1 - alpha_bar[t]) * eps) / torch.sqrt(alpha_bar[t])
        return torch.sqrt(alpha_bar[s]) * x0 + torch.sqrt(1 - alpha_bar[s]) * eps

    def group_norm(x, weight, bias, groups, eps):
        y = x.unflatten(-1, (groups, -1))  # takes the last axis for the channels
        mean, variance = y.mean((1, 2, 4), keepdim=True), y.var((1, 2, 4), unbiased=False, keepdim=True)
        return ((y - mean) / torch.sqrt(variance + eps)).flatten(-2) * weight + bias

    def unbiased(x, weight, bias, groups, eps):
        y = x.unflatten(1, (groups, -1))
        y = (y - y.mean((2, 3, 4), keepdim=True)) / torch.sqrt(y.var((2, 3, 4), keepdim=True) + eps)
        return y.flatten(1, 2) * weight[:, None, None] + bias[:, None, None]

    def in_place(average, weights, decay):
        return average.mul_(decay).add_(weights, alpha=1 - decay) + torch.zeros(())

    def no_grad_forgotten(average, weights, decay):
        return torch.nn.Parameter(decay * average + (1 - decay) * weights)

    assert check("ddim_step", ddim_step).mistakes == ("last_entry_for_clean_data",)
    assert check("group_norm", group_norm).mistakes == ("channels_last",)
    assert check("group_norm", unbiased).mistakes == ("unbiased_variance",)
    assert check("ema_update", in_place).problem == "changed"
    assert check("ema_update", no_grad_forgotten)
    assert check("ema_update", lambda a, w, d: (d * a + (1 - d) * w).to(torch.bfloat16)).problem == "dtype"


@tf_only
def test_mistakes_in_tensorflow_are_named(open_backend):
    open_backend("float64")
    import tensorflow as tf

    def ddpm_step(x, eps, z, t, betas):
        alpha_bar = tf.math.cumprod(1 - betas)
        mean = (x - betas[t] / tf.sqrt(1 - alpha_bar[t]) * eps) / tf.sqrt(1 - betas[t])
        return mean + tf.sqrt(betas[t]) * z

    def self_attention(x, w_query, w_key, w_value, w_out, heads):
        b, n, c = x.shape
        q, k, v = (
            tf.transpose(tf.reshape(x @ w, [b, n, heads, c // heads]), [0, 2, 1, 3]) for w in (w_query, w_key, w_value)
        )
        a = tf.nn.softmax(tf.matmul(q, k, transpose_b=True) / np.sqrt(c // heads))
        return tf.reshape(tf.transpose(a @ v, [0, 2, 1, 3]), [b, n, c]) @ w_out

    class Module(tf.Module):
        def __call__(self, average, weights, decay):
            return (1 - decay) * average + decay * weights

    assert check("ddpm_step", ddpm_step).mistakes == ("noise_at_last_step",)
    assert check("self_attention", self_attention).mistakes == ("weights_transposed",)
    assert check("ema_update", Module()).mistakes == ("decay_exchanged",)
    assert find_frameworks(Module())[0].module == "tensorflow"


def test_a_framework_can_be_asked_for(backend_name, open_backend):
    open_backend("float64")
    title = {"torch": "PyTorch", "tf": "TensorFlow"}[backend_name]
    result = check("ema_update", lambda e, w, d: d * e + (1 - d) * w, framework=backend_name, dtype="float32")
    assert result and f"{title} tensors in float32" in repr(result)
