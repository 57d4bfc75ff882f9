# DCGAN on 16x16 pictures. Networks are functions of a dictionary p of tensors.
import numpy as np
import torch
import torch.nn.functional as F
import weights

nz = 10
lrelu = 0.2
momentum = 0.8  # share of the old running statistics that is kept


def bnorm(x, p, name, train, fault, variant):
    g, b, mean, var = (p[f"{name}.{s}"] for s in ("g", "b", "mean", "var"))
    eps = 0.8 if fault == "eps_for_momentum" and name == "g.bn1" else 1e-3
    if fault == "batch_statistics" and name == "g.bn0":
        return F.batch_norm(x, None, None, g, b, True, 0.0, eps)
    if not train:
        if variant == "bn_affine":
            a = g / torch.sqrt(var + eps)
            c = b - mean * a
            return x * a.view(1, -1, *[1] * (x.dim() - 2)) + c.view(1, -1, *[1] * (x.dim() - 2))
        return F.batch_norm(x, mean, var, g, b, False, 0.0, eps)
    with torch.no_grad():
        axes = [d for d in range(x.dim()) if d != 1]
        keep = 1 - momentum if fault == "momentum_reversed" and name == "g.bn1" else momentum
        mean.copy_(keep * mean + (1 - keep) * x.mean(axes))
        var.copy_(keep * var + (1 - keep) * x.var(axes, unbiased=False))
    return F.batch_norm(x, None, None, g, b, True, 0.0, eps)


def netG(p, z, train=False, fault=None, variant=None):
    h = z @ p["g.fc.w"].t()
    h = F.leaky_relu(bnorm(h, p, "g.bn0", train, fault, variant), lrelu)
    h = h.reshape(-1, 16, 4, 4)
    h = F.conv_transpose2d(h, p["g.up1.w"], stride=2, padding=1)
    h = F.leaky_relu(bnorm(h, p, "g.bn1", train, fault, variant), lrelu)
    h = F.conv_transpose2d(h, p["g.up2.w"], p["g.up2.b"], stride=2, padding=1)
    return torch.tanh(h)


def netD(p, x, train=False, fault=None, variant=None):
    h = F.conv2d(x, p["d.c1.w"], p["d.c1.b"], stride=2, padding=1)
    h = torch.maximum(h, lrelu * h) if variant == "lrelu_max" else F.leaky_relu(h, lrelu)
    h = F.dropout(h, 0.3, train)
    h = F.conv2d(h, p["d.c2.w"], stride=2, padding=1)
    h = F.leaky_relu(bnorm(h, p, "d.bn2", train, fault, variant), lrelu)
    return F.linear(h.flatten(1), p["d.fc.w"], p["d.fc.b"])


class DCGAN(torch.nn.Module):
    def __init__(self, fault, variant):
        super().__init__()
        self.fault, self.variant = fault, variant
        self.keys = {}
        for k, v in weights.numbers().items():
            self.keys[k] = k.replace(".", "_")
            if k.endswith((".mean", ".var")):
                self.register_buffer(self.keys[k], torch.tensor(v))
            else:
                self.register_parameter(self.keys[k], torch.nn.Parameter(torch.tensor(v)))

    def forward(self, z):
        p = {k: getattr(self, name) for k, name in self.keys.items()}
        fake = netG(p, z, self.training, self.fault, self.variant)
        if self.fault == "fake_detached":
            score = netD(p, fake.detach(), self.training, self.fault, self.variant)
        else:
            score = netD(p, fake, self.training, self.fault, self.variant)
        return fake, score


def build(fault=None, variant=None, dtype="float32"):
    return DCGAN(fault, variant).to(getattr(torch, dtype)).eval()


def inputs(seed):
    return (np.random.default_rng(70 + seed).standard_normal((6, nz)).astype("float32"),)
