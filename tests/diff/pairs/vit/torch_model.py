"""Vision transformer in the style of timm."""

import numpy as np
import torch
import torch.nn.functional as F
import weights
from torch import nn


class PatchEmbed(nn.Module):
    def __init__(self, dim, patch, unfold):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch, patch)
        self.patch, self.unfold = patch, unfold

    def forward(self, x):
        if self.unfold:
            columns = F.unfold(x, self.patch, stride=self.patch).transpose(1, 2)
            return F.linear(columns, self.proj.weight.flatten(1), self.proj.bias)
        return self.proj(x).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    def __init__(self, dim, heads, variant=None, fault=None):
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.qkv = nn.Linear(dim, dim * 3)
        self.proj = nn.Linear(dim, dim)
        self.variant, self.fault = variant, fault

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fault == "qkv_order":
            k, q = q, k
        if self.variant == "sdpa":
            x = F.scaled_dot_product_attention(q, k, v)
        else:
            attn = (q * self.scale) @ k.transpose(-2, -1)
            x = attn.softmax(dim=-1) @ v
        x = x.reshape(b, n, c) if self.fault == "head_order" else x.transpose(1, 2).reshape(b, n, c)
        return self.proj(x)


class Mlp(nn.Module):
    def __init__(self, dim, hidden, tanh):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU(approximate="tanh" if tanh else "none")
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, dim, heads, variant, fault):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads, variant, fault)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, 48, fault == "gelu_tanh")

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    def __init__(self, variant=None, fault=None):
        super().__init__()
        dim = weights.DIM
        self.patch_embed = PatchEmbed(dim, weights.PATCH, variant == "unfold")
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 13, dim))
        self.blocks = nn.Sequential(*[Block(dim, weights.HEADS, variant, fault) for _ in range(weights.DEPTH)])
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, 7)
        self.fault = fault

    def forward(self, x):
        x = self.patch_embed(x)
        cls = self.cls_token.expand(x.shape[0], -1, -1)
        x = torch.cat((x, cls) if self.fault == "cls_last" else (cls, x), dim=1)
        x = x + self.pos_embed
        if self.fault == "dropout_left_on":
            x = F.dropout(x, 0.1)
        x = self.norm(self.blocks(x))
        return self.head(x[:, -1] if self.fault == "cls_last" else x[:, 0])


def build(fault=None, variant=None, dtype="float32"):
    model = VisionTransformer(variant, fault).to(getattr(torch, dtype))
    weights.load_torch(model, weights.make())
    return model.eval()


def inputs(seed):
    return (np.random.default_rng(seed).standard_normal((2, 3, 12, 16)).astype("float32"),)
