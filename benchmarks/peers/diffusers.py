"""diffusers (PyTorch): UNet2DModel, DDPMScheduler.add_noise, AdamW and EMAModel, as in its training example."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
import torch.nn.functional as F
from diffusers.training_utils import EMAModel

from benchmarks.peers import BuiltContestant, Task
from benchmarks.peers.pytorch import build_nearest, configure, count_parameters, make_images, peak_memory_mib

__all__ = ["build"]


def _network(task: Task, width: int) -> diffusers.UNet2DModel:
    attends = [task.size >> level in task.attention for level in range(len(task.multipliers))]
    return diffusers.UNet2DModel(
        sample_size=task.size,
        in_channels=task.channels,
        out_channels=task.channels,
        block_out_channels=[width * multiplier for multiplier in task.multipliers],
        layers_per_block=task.blocks,
        down_block_types=["AttnDownBlock2D" if attend else "DownBlock2D" for attend in attends],
        up_block_types=["AttnUpBlock2D" if attend else "UpBlock2D" for attend in attends[::-1]],
        norm_num_groups=task.groups,
        num_class_embeds=task.classes + 1 if task.classes else None,
        dropout=0.0,
    )


def build(task: Task) -> BuiltContestant:
    """Build the network and its workloads."""
    device = configure(task)
    network = build_nearest(_network, task, task.groups, task.groups).to(device)
    forward = torch.compile(network) if task.compile else network
    noising = diffusers.DDPMScheduler(task.T, beta_schedule="linear")
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4)
    average = EMAModel(network.parameters(), decay=0.999)
    images, labels = make_images(task, device)
    mixed = torch.autocast(device, torch.bfloat16, enabled=task.bf16)

    def train() -> int:
        for _ in range(task.steps):
            clean = images.float().div(127.5).sub(1)
            noise = torch.randn_like(clean)
            t = torch.randint(0, task.T, (task.batch,), device=device)
            with mixed:
                out = forward(noising.add_noise(clean, noise, t), t, class_labels=labels).sample
                loss = F.mse_loss(out.float(), noise)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()
            average.step(network.parameters())
        loss.item()
        return task.steps * task.batch

    def draw(scheduler: Any, steps: int) -> int:
        scheduler.set_timesteps(steps)
        x = torch.randn(task.images, task.channels, task.size, task.size, device=device)
        classes = None if labels is None else torch.arange(task.images, device=device) % task.classes
        with torch.no_grad(), mixed:
            for t in scheduler.timesteps:
                out = forward(x, t, class_labels=classes).sample
                x = scheduler.step(out.float(), t, x).prev_sample
        x.add(1).mul(127.5).clamp(0, 255).to(torch.uint8).cpu()
        return task.images

    facts = {
        "versions": {"diffusers": diffusers.__version__, "torch": torch.__version__},
        "parameters": count_parameters(network),
    }
    work = {
        "train": train,
        "ddim": lambda: draw(diffusers.DDIMScheduler(task.T, beta_schedule="linear"), task.ddim_steps),
        "ddpm": lambda: draw(diffusers.DDPMScheduler(task.T, beta_schedule="linear"), task.T),
    }
    return BuiltContestant(facts, work, peak_memory_mib)
