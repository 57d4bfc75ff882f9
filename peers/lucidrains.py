"""denoising-diffusion-pytorch: Unet and GaussianDiffusion, with the optimiser and the average of its Trainer.

Its network has linear attention at the levels without full attention and knows no classes, so equal numbers of
parameters are not equal work: on 32 x 32 pictures it does about a fifth less.
"""

from __future__ import annotations

from importlib.metadata import version

import torch
from denoising_diffusion_pytorch import GaussianDiffusion, Unet
from ema_pytorch import EMA

from peers import Contest, Task
from peers.pytorch import built, parameters, peak_memory_mib, pictures, start

__all__ = ["contest"]


def _network(task: Task, width: int) -> Unet:
    attends = tuple(task.size >> level in task.attention for level in range(len(task.multipliers)))
    return Unet(width, dim_mults=task.multipliers, channels=task.channels, full_attn=attends)


def contest(task: Task) -> Contest:
    """Build it."""
    device = start(task)
    network = built(_network, task, 8, 2).to(device)
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
    images, _ = pictures(task, device)
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
        "parameters": parameters(network),
    }
    work = {"train": train, "ddim": lambda: draw(diffusion), "ddpm": lambda: draw(process(task.T))}
    return Contest(facts, work, peak_memory_mib)
