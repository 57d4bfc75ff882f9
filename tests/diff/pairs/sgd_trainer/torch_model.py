import torch
import weights
from torch import nn


def net(fault=None, variant=None):
    drop = nn.Dropout2d(weights.RATE) if fault == "channel_dropout" else nn.Dropout(weights.RATE)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.ReLU(inplace=variant == "inplace"),
        drop,
        nn.Conv2d(6, 8, 3, stride=1),
        nn.ReLU(inplace=variant == "inplace"),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 2),
    )


def build(fault=None, variant=None, dtype="float32"):
    model = net(fault, variant).to(getattr(torch, dtype))
    layers = [m for m in model if isinstance(m, (nn.Conv2d, nn.Linear))]
    for layer, (kernel, bias) in zip(layers, weights.make().values(), strict=True):
        layer.weight.data.copy_(torch.from_numpy(kernel))
        layer.bias.data.copy_(torch.from_numpy(bias))
    model.eval()
    model.fault, model.variant = fault, variant
    return model


class StepTimesCosine(torch.optim.lr_scheduler.LRScheduler):
    def __init__(self, optimizer, shift=0):
        self.shift = shift
        super().__init__(optimizer)

    def get_lr(self):
        return [weights.learning_rate(self.last_epoch + self.shift) for _ in self.optimizer.param_groups]


def training(model):
    """Two half batches make a step; dropout stays off so that runs can be repeated."""
    fault = model.fault
    model.eval()
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=weights.BASE_LR,
        momentum=weights.MOMENTUM,
        dampening=0.9 if fault == "dampening" else 0,
        weight_decay=0 if fault == "no_weight_decay" else weights.DECAY,
        nesterov=fault == "nesterov",
        foreach=False if model.variant == "single_tensor" else None,
    )
    schedule = StepTimesCosine(optimizer, 1 if fault == "schedule_ahead" else 0)

    def step(x):
        y = torch.from_numpy(weights.goals(x.numpy())).to(x.dtype)
        halves = [(x, y)] if model.variant == "whole_batch" else list(zip(x.chunk(2), y.chunk(2), strict=True))
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for part, goal in halves:
            error = model(part) - goal
            loss = error.square().mean()
            share = 1 if fault == "accumulated_sum" else len(halves)
            (loss / share).backward()
            total += loss.item() / len(halves)
        rate = schedule.get_last_lr()[0]
        optimizer.step()
        schedule.step()
        return {"loss": total, "learning_rate": rate}

    return step


def inputs(seed):
    return (weights.images(seed),)
