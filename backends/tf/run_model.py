"""The network of a run of Duet as a side of `duet diff`: a file like an author's, with `build` and `inputs`.

It is called with images b h w c and times, then labels and features if it has them; see `parity/diff/runs.py`.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from numpy.typing import NDArray

from backends.tf import device
from backends.tf.network import Network
from diffusion_core.backend.interface import BackendConfig
from diffusion_core.parity.diff.runs import name_inputs, open_run
from diffusion_core.runtime.distributed import ProcessGroup

__all__ = ["RunModel", "build", "inputs"]


class RunModel(tf.Module):
    """A network that is called with what it reads, in a fixed order."""

    def __init__(self, network: Network, names: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.names = network, names

    def __call__(self, *given: tf.Tensor) -> tf.Tensor:
        """Return the raw output F."""
        read = name_inputs(self.names, given)
        x = read["x"]
        c_noise = tf.cast(read["c_noise"], tf.float64) if "c_noise" in read else tf.zeros(len(x), tf.float64)
        label = tf.cast(read["label"], tf.int32) if "label" in read else tf.zeros(len(x), tf.int32)
        features = read.get("features", self.network.zero_features(len(x)))
        second_time = tf.cast(read["second_time"], tf.float64) if "second_time" in read else None
        return self.network.apply_program(x, c_noise, label, features, second_time=second_time)


def build(path: str, dtype: str = "float32", weights: str | None = None, **_: Any) -> RunModel:
    """Return the network of a run, in a precision, with its weights; see `open_run`."""
    run = open_run(path, weights)
    context = device.prepare(BackendConfig("cpu", dtype), ProcessGroup())
    return RunModel(Network(run.program, run.weights, context), run.inputs)


def inputs(seed: int, path: str, **_: Any) -> tuple[NDArray, ...]:
    """Return inputs for the network of a run."""
    return open_run(path).draw(seed, "channels_last")
