"""The network of a run of Duet as a side of `duet diff`: a file like an author's, with `build` and `inputs`.

It is called with images b c h w and times, then labels and features if it has them; see `parity/diff/runs.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray

from backends.torch import device
from backends.torch.network import Network
from diffusion_core.backend.interface import BackendConfig
from diffusion_core.parity.diff.runs import name_inputs, open_run
from diffusion_core.runtime.distributed import ProcessGroup

__all__ = ["RunModel", "build", "inputs"]


class RunModel(torch.nn.Module):
    """A network that is called with what it reads, in a fixed order."""

    def __init__(self, network: Network, names: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.names = network, names

    def forward(self, *given: torch.Tensor) -> torch.Tensor:
        """Return the raw output F."""
        read = name_inputs(self.names, given)
        x = read["x"]
        c_noise = read["c_noise"].to(torch.float64) if "c_noise" in read else x.new_zeros(len(x), dtype=torch.float64)
        label = read["label"] if "label" in read else x.new_zeros(len(x), dtype=torch.int64)
        features = read.get("features", self.network.zero_features(len(x)))
        second_time = read["second_time"].to(torch.float64) if "second_time" in read else None
        return self.network.apply_program(x, c_noise, label, features, second_time=second_time)


def build(path: str, dtype: str = "float32", weights: str | None = None, **_: Any) -> RunModel:
    """Return the network of a run, in a precision, with its weights; see `open_run`."""
    run = open_run(path, weights)
    context = device.prepare(BackendConfig("cpu", dtype), ProcessGroup())
    return RunModel(Network(run.program, run.weights, context), run.inputs)


def inputs(seed: int, path: str, **_: Any) -> tuple[NDArray, ...]:
    """Return inputs for the network of a run."""
    return open_run(path).draw(seed, "channels_first")
