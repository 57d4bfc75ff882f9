"""Right solutions of the exercises in NumPy, written from the statements alone."""

from __future__ import annotations

import math

import numpy as np

__all__ = ["SOLUTIONS"]


def linear_schedule(T, beta_start, beta_end):
    alpha_bar, product = [], 1.0
    for i in range(T):
        product *= 1 - (beta_start + (beta_end - beta_start) * i / (T - 1))
        alpha_bar.append(product)
    return alpha_bar


def cosine_schedule(T, s):
    def f(u):
        return math.cos((u + s) / (1 + s) * math.pi / 2) ** 2

    betas = np.array([min(1 - f((t + 1) / T) / f(t / T), 0.999) for t in range(T)])
    return np.cumprod(1 - betas)


def karras_sigmas(n, sigma_min, sigma_max, rho):
    roots = np.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), n)
    return np.concatenate([roots**rho, [0.0]])


def rows(column, like):
    return column.reshape(-1, *[1] * (like.ndim - 1))


def add_noise(x0, eps, t, alpha_bar):
    a = rows(alpha_bar[t], x0)
    return a**0.5 * x0 + (1 - a) ** 0.5 * eps


def x0_from_eps(x, eps, t, alpha_bar):
    a = rows(alpha_bar[t], x)
    return (x - (1 - a) ** 0.5 * eps) / a**0.5


def v_target(x0, eps, t, alpha_bar):
    a = rows(alpha_bar[t], x0)
    return a**0.5 * eps - (1 - a) ** 0.5 * x0


def eps_from_v(x, v, t, alpha_bar):
    a = rows(alpha_bar[t], x)
    return (1 - a) ** 0.5 * x + a**0.5 * v


def flow_target(x0, eps, t):
    t = rows(t, x0)
    return x0 + t * (eps - x0), eps - x0


def posterior_mean(x, x0, t, betas):
    alphas = 1 - betas
    before = np.prod(alphas[:t])
    now = np.prod(alphas[: t + 1])
    return (before**0.5 * betas[t] * x0 + alphas[t] ** 0.5 * (1 - before) * x) / (1 - now)


def posterior_variance(betas):
    alpha_bar = np.cumprod(1 - betas)
    before = np.concatenate([[1.0], alpha_bar[:-1]])
    return betas * (1 - before) / (1 - alpha_bar)


def ddpm_step(x, eps, z, t, betas):
    mean = (x - betas[t] / np.sqrt(1 - np.prod(1 - betas[: t + 1])) * eps) / np.sqrt(1 - betas[t])
    return mean if t == 0 else mean + np.sqrt(betas[t]) * z


def ddim_step(x, eps, t, s, alpha_bar):
    now, after = alpha_bar[t], alpha_bar[s] if s >= 0 else 1.0
    x0 = (x - np.sqrt(1 - now) * eps) / np.sqrt(now)
    return np.sqrt(after) * x0 + np.sqrt(1 - after) * eps


def ddim_eta_step(x, eps, z, t, s, alpha_bar, eta):
    now, after = alpha_bar[t], alpha_bar[s] if s >= 0 else 1.0
    std = eta * np.sqrt((1 - after) / (1 - now)) * np.sqrt(1 - now / after)
    x0 = (x - np.sqrt(1 - now) * eps) / np.sqrt(now)
    return np.sqrt(after) * x0 + np.sqrt(1 - after - std**2) * eps + std * z


def guidance(conditional, unconditional, w):
    return w * conditional + (1 - w) * unconditional


def label_dropout(labels, u, p, null_label):
    result = labels.copy()
    result[u < p] = null_label
    return result


def euler_step(x, denoised, sigma, sigma_next):
    return denoised + sigma_next / sigma * (x - denoised)


def heun_step(x, denoise, sigma, sigma_next):
    slope = (x - denoise(x, sigma)) / sigma
    moved = x + (sigma_next - sigma) * slope
    if sigma_next > 0:
        slope = 0.5 * slope + 0.5 * (moved - denoise(moved, sigma_next)) / sigma_next
        moved = x + (sigma_next - sigma) * slope
    return moved


def dpmpp_2m_step(x, denoised, denoised_before, alpha, sigma):
    lam = np.log(alpha) - np.log(sigma)
    h, last = lam[2] - lam[1], lam[1] - lam[0]
    D = (1 + h / (2 * last)) * denoised - h / (2 * last) * denoised_before
    return sigma[2] / sigma[1] * x + alpha[2] * (1 - np.exp(-h)) * D


def edm_columns(sigma, sigma_data):
    total = sigma**2 + sigma_data**2
    return sigma_data**2 / total, sigma * sigma_data / total**0.5, total**-0.5, 0.25 * np.log(sigma)


def training_loss(predict, x0, eps, t, alpha_bar):
    return ((eps - predict(add_noise(x0, eps, t, alpha_bar), t)) ** 2).mean()


def min_snr_weight(t, alpha_bar, gamma):
    snr = alpha_bar[t] / (1 - alpha_bar[t])
    return np.where(snr > gamma, gamma / snr, 1.0)


def kl_bits(mean, log_variance, mean_hat, log_variance_hat):
    q, p = np.exp(log_variance), np.exp(log_variance_hat)
    nats = 0.5 * (np.log(p / q) + (q + (mean - mean_hat) ** 2) / p - 1)
    return np.array([image.mean() for image in nats]) / math.log(2)


def time_embedding(t, dim):
    result = np.empty((len(t), dim))
    for k in range(dim // 2):
        angle = t * 10000 ** (-k / (dim // 2 - 1))
        result[:, k], result[:, dim // 2 + k] = np.sin(angle), np.cos(angle)
    return result


def group_norm(x, weight, bias, groups, eps):
    result, size = np.empty_like(x), x.shape[-1] // groups
    for i in range(len(x)):
        for g in range(groups):
            part = x[i, :, :, g * size : (g + 1) * size]
            result[i, :, :, g * size : (g + 1) * size] = (part - part.mean()) / np.sqrt(part.var() + eps)
    return result * weight + bias


def self_attention(x, w_query, w_key, w_value, w_out, heads):
    d, joined = x.shape[2] // heads, []
    for i in range(heads):
        part = slice(i * d, (i + 1) * d)
        q, k, v = x @ w_query.T[:, part], x @ w_key.T[:, part], x @ w_value.T[:, part]
        a = np.exp(np.einsum("bid,bjd->bij", q, k) / math.sqrt(d))
        joined.append(a / a.sum(axis=2, keepdims=True) @ v)
    return np.concatenate(joined, axis=2) @ w_out.T


def residual_block(x, embedding, p, groups, eps):
    def silu(a):
        return a / (1 + np.exp(-a))

    def dense(name, a):
        return np.einsum("...i,oi->...o", a, p[f"{name}.weight"]) + p[f"{name}.bias"]

    h = dense("dense1", silu(group_norm(x, p["norm1.weight"], p["norm1.bias"], groups, eps)))
    h = h + dense("dense_t", silu(embedding)).reshape(len(x), 1, 1, -1)
    return x + dense("dense2", silu(group_norm(h, p["norm2.weight"], p["norm2.bias"], groups, eps)))


def ema_update(average, weights, decay):
    return average + (1 - decay) * (weights - average)


def adam_step(p, g, m, v, k, lr, beta1, beta2, eps, weight_decay):
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    m_hat, v_hat = m / (1 - beta1**k), v / (1 - beta2**k)
    return p - lr * weight_decay * p - lr * m_hat / (np.sqrt(v_hat) + eps), m, v


SOLUTIONS = {
    name: value
    for name, value in list(globals().items())
    if callable(value) and getattr(value, "__module__", "") == __name__
}
del SOLUTIONS["rows"]
