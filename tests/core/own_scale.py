"""A small own network as files of PyTorch and of TensorFlow, and the words of a short run."""

from __future__ import annotations

from pathlib import Path

# A network that scales each channel, in both frameworks.
FILES = {
    "torch": """
import torch

class Scale(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.full((1, 1, 1), 0.5))

    def forward(self, x, t):
        return self.factor * x
""",
    "tf": """
import tensorflow as tf

class Scale(tf.Module):
    def __init__(self):
        self.factor = tf.Variable(tf.fill((1, 1, 1), 0.5), name="factor")

    def __call__(self, x, t):
        return self.factor * x
""",
}
WORDS = (
    "data=digits", "process=v_cosine", "trainer.images=32", "trainer.batch=16", "trainer.log_images=16",
    "sample.count=4", "sampler.steps=2", "validation.part=none", "features=none", "backend.threads=1",
    "backend.device=cpu",
)  # fmt: skip


def write(folder: Path) -> Path:
    for name, text in FILES.items():
        (folder / f"scale_{name}.py").write_text(text)
    return folder
