import copy

import torch
import weights as cfg
from torch import nn
from torch.nn import functional as F


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(10, 24)
        self.fc2 = nn.Linear(24, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = torch.tanh(self.fc1(x))
        x = F.silu(self.fc2(x))
        return self.head(x)


def build(fault=None, variant=None, dtype="float32"):
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        model = Mlp()
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for name, (kernel, bias) in cfg.make().items():
            layer = model.get_submodule(name)
            layer.weight.copy_(torch.as_tensor(kernel.T.copy()))
            layer.bias.copy_(torch.as_tensor(bias))
    model.options = fault, variant
    return model


def smoothed_cross_entropy(logits, target):
    """The smoothing of fairseq: epsilon is shared by the other classes only."""
    logp = logits.log_softmax(-1)
    nll = -logp.gather(-1, target[:, None])[:, 0]
    other = -logp.sum(-1) - nll
    share = cfg.SMOOTHING / (logits.shape[-1] - 1)
    return ((1 - cfg.SMOOTHING) * nll + share * other).mean()


def make_optimizer(model, fault, variant):
    named = list(model.named_parameters())
    decay = [p for n, p in named if p.ndim > 1]
    rest = [p for n, p in named if p.ndim < 2]
    groups = [{"params": decay, "weight_decay": cfg.DECAY}, {"params": rest, "weight_decay": 0.0}]
    if variant == "groups_swapped":
        groups = groups[::-1]
    maker = torch.optim.Adam if fault == "coupled_decay" else torch.optim.AdamW
    options = {"foreach": False} if variant == "single_tensor" else {}
    return maker(groups, lr=cfg.LR, betas=cfg.BETAS, eps=cfg.EPS, **options)


def training(model):
    fault, variant = model.options
    optimizer = make_optimizer(model, fault, variant)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: min(1.0, (k + 1) / cfg.WARMUP))
    ema = copy.deepcopy(model)

    @torch.no_grad()
    def update_ema():
        for old, new in zip(ema.parameters(), model.parameters(), strict=True):
            old.mul_(cfg.EMA).add_(new, alpha=1 - cfg.EMA)

    def step(x):
        target = torch.as_tensor(cfg.labels(x.numpy()))
        optimizer.zero_grad()
        logits = model(x)
        if fault == "smoothing_others":
            loss = smoothed_cross_entropy(logits, target)
        else:
            reduction = "sum" if fault == "summed_loss" else "mean"
            loss = F.cross_entropy(logits, target, label_smoothing=cfg.SMOOTHING, reduction=reduction)
        loss.backward()
        if fault == "clip_by_value":
            nn.utils.clip_grad_value_(model.parameters(), cfg.CLIP)
        else:
            nn.utils.clip_grad_norm_(model.parameters(), cfg.CLIP)
        lr = optimizer.param_groups[0]["lr"]
        if fault == "ema_before_step":
            update_ema()
        optimizer.step()
        scheduler.step()
        if fault != "ema_before_step":
            update_ema()
        averages = {name: p.detach().numpy().copy() for name, p in ema.named_parameters()}
        return {"loss": loss.item(), "learning_rate": lr, "averages": averages}

    return step


def inputs(seed):
    return (cfg.batch(seed),)
