"""A small decoder with rotary positions, grouped queries and SwiGLU, written after the usual LLaMA classes."""

import numpy as np
import torch
import torch.nn.functional as F
import weights
from torch import nn


class RMSNorm(nn.Module):
    def __init__(self, dim, eps=1e-6, add_unit_offset=False):
        super().__init__()
        self.eps = eps
        self.add_unit_offset = add_unit_offset
        self.weight = nn.Parameter(torch.ones(dim))

    def _norm(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)

    def forward(self, x):
        scale = 1 + self.weight if self.add_unit_offset else self.weight
        return self._norm(x) * scale


def rotate_half(x):
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat((-x2, x1), dim=-1)


def apply_rotary(x, cos, sin):
    return x * cos + rotate_half(x) * sin


def apply_rotary_complex(x, cos, sin):
    """Pairs of neighbours as complex numbers; needs rows of q and k in that order."""
    half = cos.shape[-1] // 2
    turn = torch.complex(cos[:, :half], sin[:, :half])
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], half, 2))
    return torch.view_as_real(pairs * turn).flatten(-2)


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.fault, self.variant = config["fault"], config["variant"]
        self.n_rep = weights.HEADS // weights.KV_HEADS
        d = weights.HEAD_DIM
        self.q_proj = nn.Linear(weights.DIM, weights.HEADS * d, bias=False)
        self.k_proj = nn.Linear(weights.DIM, weights.KV_HEADS * d, bias=False)
        self.v_proj = nn.Linear(weights.DIM, weights.KV_HEADS * d, bias=False)
        self.o_proj = nn.Linear(weights.HEADS * d, weights.DIM, bias=False)
        self.scale = weights.DIM**-0.5 if self.fault == "attention_scale" else d**-0.5

    def forward(self, x, cos, sin):
        bsz, seq, _ = x.shape
        rotary = apply_rotary_complex if self.variant == "complex_rotary" else apply_rotary
        q = self.q_proj(x).view(bsz, seq, weights.HEADS, -1).transpose(1, 2)
        k = self.k_proj(x).view(bsz, seq, weights.KV_HEADS, -1).transpose(1, 2)
        v = self.v_proj(x).view(bsz, seq, weights.KV_HEADS, -1).transpose(1, 2)
        q, k = rotary(q, cos, sin), rotary(k, cos, sin)
        if self.fault == "kv_tiled":
            k, v = k.repeat(1, self.n_rep, 1, 1), v.repeat(1, self.n_rep, 1, 1)
        else:
            k, v = k.repeat_interleave(self.n_rep, dim=1), v.repeat_interleave(self.n_rep, dim=1)
        if self.variant == "sdpa":
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            scores = q @ k.transpose(2, 3) * self.scale
            mask = torch.full((seq, seq), float("-inf"), dtype=x.dtype).triu(1)
            out = F.softmax(scores + mask, dim=-1) @ v
        return self.o_proj(out.transpose(1, 2).reshape(bsz, seq, -1))


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_proj = nn.Linear(weights.DIM, weights.HIDDEN, bias=False)
        self.up_proj = nn.Linear(weights.DIM, weights.HIDDEN, bias=False)
        self.down_proj = nn.Linear(weights.HIDDEN, weights.DIM, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        offset = config["fault"] == "norm_plus_one"
        self.input_layernorm = RMSNorm(weights.DIM, add_unit_offset=offset)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(weights.DIM, add_unit_offset=offset)
        self.mlp = MLP()

    def forward(self, x, cos, sin):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        x = x + self.mlp(self.post_attention_layernorm(x))
        return x


class Decoder(nn.Module):
    def __init__(self, fault=None, variant=None):
        super().__init__()
        config = {"fault": fault, "variant": variant}
        self.embed_tokens = nn.Embedding(weights.VOCAB, weights.DIM)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(weights.LAYERS))
        self.norm = RMSNorm(weights.DIM, add_unit_offset=fault == "norm_plus_one")
        self.lm_head = nn.Linear(weights.DIM, weights.VOCAB, bias=False)
        if fault != "untied_head":
            self.lm_head.weight = self.embed_tokens.weight
        self.theta = 500000.0 if fault == "rotary_base" else 10000.0
        self.start = 1 if variant == "positions_from_one" else 0

    def rotary(self, length, dtype):
        d = weights.HEAD_DIM
        inv_freq = 1.0 / self.theta ** (torch.arange(0, d, 2, dtype=torch.float64) / d)
        angles = torch.outer(torch.arange(self.start, self.start + length, dtype=torch.float64), inv_freq)
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(dtype), angles.sin().to(dtype)

    def forward(self, input_ids):
        x = self.embed_tokens(input_ids)
        cos, sin = self.rotary(input_ids.shape[1], x.dtype)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.lm_head(self.norm(x))


def build(fault=None, variant=None, dtype="float32"):
    model = Decoder(fault, variant).to(getattr(torch, dtype))
    w = weights.make()
    state = {"embed_tokens.weight": w["embed"], "lm_head.weight": w["embed"], "norm.weight": w["norm"]}
    for n in range(weights.LAYERS):
        here = f"layers.{n}"
        state[f"{here}.input_layernorm.weight"] = w[f"{n}.norm1"]
        state[f"{here}.post_attention_layernorm.weight"] = w[f"{n}.norm2"]
        for p, heads in (("q", weights.HEADS), ("k", weights.KV_HEADS), ("v", 0), ("o", 0)):
            kernel = w[f"{n}.{p}"]
            if variant == "complex_rotary" and heads:
                kernel = weights.to_interleaved(kernel, heads)
            state[f"{here}.self_attn.{p}_proj.weight"] = kernel
        for p in ("gate", "up", "down"):
            state[f"{here}.mlp.{p}_proj.weight"] = w[f"{n}.{p}"]
    model.load_state_dict({k: torch.tensor(np.asarray(v)) for k, v in state.items()})
    return model.eval()


def inputs(seed):
    return (np.random.default_rng(300 + seed).integers(0, weights.VOCAB, (2, weights.LENGTH)),)
