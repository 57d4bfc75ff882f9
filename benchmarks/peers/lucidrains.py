"""denoising-diffusion-pytorch: Unet and GaussianDiffusion, with the optimiser and the moving average of its Trainer.

Its network has linear attention at the levels without full attention, and no classes, so the same number of parameters
is not the same amount of computation: on 32 x 32 images it computes about a fifth less.
"""

from __future__ import annotations

from importlib.metadata import version

import torch
from denoising_diffusion_pytorch import GaussianDiffusion, Unet
from ema_pytorch import EMA

from benchmarks.peers import BuiltContestant, Task
from benchmarks.peers.pytorch import build_nearest, configure, count_parameters, make_images, peak_memory_mib

__all__ = ["build"]


def _network(task: Task, width: int) -> Unet:
    attends = tuple(task.size >> level in task.attention for level in range(len(task.multipliers)))
    return Unet(width, dim_mults=task.multipliers, channels=task.channels, full_attn=attends)


def build(task: Task) -> BuiltContestant:
    """Build the network and its workloads."""
    device = configure(task)
    network = build_nearest(_network, task, 8, 2).to(device)
    if task.compile:
        network.compile()

    def process(steps: int) -> GaussianDiffusion:
        return GaussianDiffusion(
            network, image_size=task.size, timesteps=task.T, sampling_timesteps=steps, objective="pred_noise",
            beta_schedule="linear",
        ).to(device)  # fmt: skip

    diffusion = process(task.ddim_steps)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-4, betas=(0.9, 0.99))
    average = EMA(diffusion, beta=0.999, update_every=1, update_after_step=0)
    images, _ = make_images(task, device)
    mixed = torch.autocast(device, torch.bfloat16, enabled=task.bf16)

    def train() -> int:
        for _ in range(task.steps):
            with mixed:
                loss = diffusion(images.float().div(255))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()
            average.update()
        loss.item()
        return task.steps * task.batch

    def draw(one: GaussianDiffusion) -> int:
        with mixed:
            one.sample(batch_size=task.images).mul(255).clamp(0, 255).to(torch.uint8).cpu()
        return task.images

    names = ("denoising-diffusion-pytorch", "torch")
    facts = {
        "versions": {name: version(name) for name in names},
        "parameters": count_parameters(network),
    }
    work = {"train": train, "ddim": lambda: draw(diffusion), "ddpm": lambda: draw(process(task.T))}
    return BuiltContestant(facts, work, peak_memory_mib)
