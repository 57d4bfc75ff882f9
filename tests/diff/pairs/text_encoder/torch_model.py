"""BERT-like encoder: ids and a padding mask to token logits (tied to the embeddings) and a pooled vector."""

import math

import numpy as np
import torch
import weights
from torch import nn
from torch.nn import functional as F


class Embeddings(nn.Module):
    def __init__(self, fault=None):
        super().__init__()
        self.word_embeddings = nn.Embedding(weights.VOCAB, weights.D)
        self.position_embeddings = nn.Embedding(weights.LENGTH + 4, weights.D)
        self.token_type_embeddings = nn.Embedding(2, weights.D)
        self.LayerNorm = nn.LayerNorm(weights.D, eps=1e-5 if fault == "embedding_norm_eps" else 1e-12)

    def forward(self, ids):
        position = torch.arange(ids.shape[1], device=ids.device)
        x = self.word_embeddings(ids) + self.position_embeddings(position)
        return self.LayerNorm(x + self.token_type_embeddings(torch.zeros_like(ids)))


class SelfAttention(nn.Module):
    def __init__(self, variant=None, fault=None):
        super().__init__()
        d = weights.D
        self.query, self.key, self.value, self.dense = (nn.Linear(d, d) for _ in range(4))
        self.LayerNorm = nn.LayerNorm(d, eps=1e-12)
        self.variant, self.fault = variant, fault

    def split(self, x):
        return x.view(x.shape[0], x.shape[1], weights.H, -1).permute(0, 2, 1, 3)

    def forward(self, x, bias):
        q, k, v = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        if self.variant == "sdpa":
            context = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        else:
            scores = torch.matmul(q, k.transpose(-1, -2))
            if self.fault == "scale_twice":
                scores = scores / math.sqrt(q.shape[-1])
            scores = scores / math.sqrt(q.shape[-1]) + bias
            context = torch.matmul(nn.functional.softmax(scores, dim=-1), v)
        context = context.permute(0, 2, 1, 3).contiguous().view(x.shape)
        return self.LayerNorm(self.dense(context) + x)


class Layer(nn.Module):
    def __init__(self, variant=None, fault=None):
        super().__init__()
        self.attention = SelfAttention(variant, fault)
        self.intermediate = nn.Linear(weights.D, 24)
        self.output = nn.Linear(24, weights.D)
        self.LayerNorm = nn.LayerNorm(weights.D, eps=1e-12)

    def forward(self, x, bias):
        x = self.attention(x, bias)
        return self.LayerNorm(x + self.output(F.gelu(self.intermediate(x))))


class Encoder(nn.Module):
    def __init__(self, variant=None, fault=None):
        super().__init__()
        self.layer = nn.ModuleList([Layer(variant, fault) for _ in range(weights.LAYERS)])

    def forward(self, x, bias):
        for layer in self.layer:
            x = layer(x, bias)
        return x


class TextEncoder(nn.Module):
    def __init__(self, variant=None, fault=None):
        super().__init__()
        self.embeddings = Embeddings(fault)
        self.encoder = Encoder(variant, fault)
        self.pooler = nn.Linear(weights.D, weights.D)
        self.decoder_bias = nn.Parameter(torch.zeros(weights.VOCAB))
        self.fault = fault

    def forward(self, input_ids, attention_mask):
        x = self.embeddings(input_ids)
        mask = attention_mask[:, None, None, :].to(x.dtype)
        if self.fault == "small_mask":
            bias = (1.0 - mask) * -10.0
        elif self.fault == "no_mask":
            bias = torch.zeros_like(mask)
        else:
            bias = (1.0 - mask) * -10000.0
        x = self.encoder(x, bias)
        pooled = self.pooler(x[:, 0])
        if self.fault != "pooler_linear":
            pooled = torch.tanh(pooled)
        logits = x @ self.embeddings.word_embeddings.weight.t() + self.decoder_bias
        return logits, pooled


def build(fault=None, variant=None, dtype="float32"):
    model = TextEncoder(variant, fault).to(getattr(torch, dtype))
    weights.load_torch(model, weights.make())
    return model.eval()


def inputs(seed):
    rng = np.random.default_rng(50 + seed)
    ids = rng.integers(1, weights.VOCAB, (3, weights.LENGTH))
    lengths = np.array([weights.LENGTH, 6, 4])
    mask = (np.arange(weights.LENGTH)[None] < lengths[:, None]).astype("int64")
    return ids * mask, mask
