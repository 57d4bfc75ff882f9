import math

import torch
import weights as hp
from torch import nn


def modulate(x, shift, scale, plain=False):
    if plain:
        return x * scale.unsqueeze(1) + shift.unsqueeze(1)
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class TimestepEmbedder(nn.Module):
    def __init__(self, fault=None):
        super().__init__()
        self.fault = fault
        self.mlp = nn.Sequential(nn.Linear(hp.FREQUENCIES, hp.DIM), nn.SiLU(), nn.Linear(hp.DIM, hp.DIM))

    def timestep_embedding(self, t, dim, max_period=10000):
        half = dim // 2
        last = half - 1 if self.fault == "frequency_divisor" else half
        freqs = torch.exp(-math.log(max_period) * torch.arange(half, dtype=torch.float64) / last)
        args = t[:, None].double() * freqs[None]
        return torch.cat([torch.cos(args), torch.sin(args)], dim=-1)

    def forward(self, t):
        t_freq = self.timestep_embedding(t, hp.FREQUENCIES).to(self.mlp[0].weight.dtype)
        return self.mlp(t_freq)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(hp.DIM, 3 * hp.DIM)
        self.proj = nn.Linear(hp.DIM, hp.DIM)

    def forward(self, x):
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, hp.HEADS, C // hp.HEADS).permute(2, 0, 3, 1, 4)
        x = nn.functional.scaled_dot_product_attention(*qkv.unbind(0))
        return self.proj(x.transpose(1, 2).reshape(B, N, C))


class DiTBlock(nn.Module):
    def __init__(self, fault=None, variant=None):
        super().__init__()
        self.norm1 = nn.LayerNorm(hp.DIM, elementwise_affine=False, eps=1e-6)
        self.attn = Attention()
        self.norm2 = nn.LayerNorm(hp.DIM, elementwise_affine=False, eps=1e-6)
        act = nn.GELU() if fault == "gelu_exact" else nn.GELU(approximate="tanh")
        self.mlp = nn.Sequential(nn.Linear(hp.DIM, hp.MLP), act, nn.Linear(hp.MLP, hp.DIM))
        silu = nn.Identity() if fault == "no_silu" else nn.SiLU()
        self.adaLN_modulation = nn.Sequential(silu, nn.Linear(hp.DIM, 6 * hp.DIM))
        self.plain = fault == "scale_without_one"
        self.variant = variant

    def forward(self, x, c):
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = self.adaLN_modulation(c).chunk(6, dim=1)
        if self.variant == "addcmul":
            h = torch.addcmul(shift_msa[:, None], self.norm1(x), 1 + scale_msa[:, None])
            x = torch.addcmul(x, gate_msa[:, None], self.attn(h))
        else:
            x = x + gate_msa.unsqueeze(1) * self.attn(modulate(self.norm1(x), shift_msa, scale_msa, self.plain))
        x = x + gate_mlp.unsqueeze(1) * self.mlp(modulate(self.norm2(x), shift_mlp, scale_mlp, self.plain))
        return x


class FinalLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm_final = nn.LayerNorm(hp.DIM, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(hp.DIM, hp.PATCH**2 * hp.CHANNELS)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hp.DIM, 2 * hp.DIM))

    def forward(self, x, c):
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class DiT(nn.Module):
    def __init__(self, fault=None, variant=None):
        super().__init__()
        self.fault, self.variant = fault, variant
        self.x_embedder = nn.Conv2d(hp.CHANNELS, hp.DIM, hp.PATCH, stride=hp.PATCH)
        self.pos_embed = nn.Parameter(torch.zeros(1, hp.TOKENS, hp.DIM), requires_grad=False)
        self.t_embedder = TimestepEmbedder(fault)
        self.y_embedder = nn.Embedding(hp.CLASSES, hp.DIM)
        self.blocks = nn.ModuleList(DiTBlock(fault, variant) for _ in range(hp.DEPTH))
        self.final_layer = FinalLayer()

    def unpatchify(self, x):
        n, _, _ = x.shape
        p, c, side = hp.PATCH, hp.CHANNELS, hp.SIZE // hp.PATCH
        if self.fault == "unpatchify_channels_first":
            x = x.reshape(n, side, side, c, p, p)
            return torch.einsum("nhwcpq->nchpwq", x).reshape(n, c, hp.SIZE, hp.SIZE)
        if self.variant == "pixel_shuffle":
            x = x.transpose(1, 2).reshape(n, p * p, c, side, side).transpose(1, 2)
            return nn.functional.pixel_shuffle(x.reshape(n, c * p * p, side, side), p)
        x = x.reshape(n, side, side, p, p, c)
        return torch.einsum("nhwpqc->nchpwq", x).reshape(n, c, hp.SIZE, hp.SIZE)

    def forward(self, x, t, y):
        x = self.x_embedder(x).flatten(2).transpose(1, 2)
        x = x + self.pos_embed
        c = self.t_embedder(t) + self.y_embedder(y)
        for block in self.blocks:
            x = block(x, c)
        return self.unpatchify(self.final_layer(x, c))


NAMES = {
    "patch": "x_embedder",
    "t0": "t_embedder.mlp.0",
    "t2": "t_embedder.mlp.2",
    "end.ada": "final_layer.adaLN_modulation.1",
    "end": "final_layer.linear",
}
IN_BLOCK = {"ada": "adaLN_modulation.1", "qkv": "attn.qkv", "o": "attn.proj", "m0": "mlp.0", "m2": "mlp.2"}


def build(fault=None, variant=None, dtype="float32"):
    w = hp.make()
    model = DiT(fault, variant).to(getattr(torch, dtype)).eval()
    names = dict(NAMES)
    for i in range(hp.DEPTH):
        names |= {f"b{i}.{short}": f"blocks.{i}.{name}" for short, name in IN_BLOCK.items()}
    state = {"pos_embed": w["position"][None], "y_embedder.weight": w["label"]}
    for short, name in names.items():
        state[f"{name}.weight"], state[f"{name}.bias"] = w[short], w[f"{short}.b"]
    state["x_embedder.weight"] = w["patch"].reshape(hp.DIM, hp.CHANNELS, hp.PATCH, hp.PATCH)
    model.load_state_dict({name: torch.tensor(array) for name, array in state.items()})
    return model


def inputs(seed):
    return hp.batch(seed)
