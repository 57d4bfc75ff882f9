"""How a backend computes, and what it says that it runs on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from diffusion_core.common.errors import DuetError, check_choice

__all__ = [
    "BackendConfig",
    "DEVICES",
    "Description",
    "PRECISIONS",
]


PRECISIONS = ("float64", "float32", "bf16")
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class BackendConfig:
    """How a backend computes. None of these options changes what is computed, except for rounding.

    Args:
        device: ``"cpu"``, ``"cuda"``, or ``"auto"`` for CUDA if it is available.
        precision: ``"float64"``, ``"float32"`` or ``"bf16"`` (weights and sums stay float32).
        compile: whether to compile, with `torch.compile` in PyTorch and XLA in TensorFlow.
        threads: number of CPU threads; None means the framework's default.
        deterministic: whether to use reproducible kernels only. TF32 is always off.

    Raises:
        DuetError: for an unknown device or precision, or fewer than one thread.

    Example:
        >>> BackendConfig(device="cpu", precision="float64").host_dtype
        <class 'numpy.float64'>
        >>> BackendConfig(precision="float16")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        diffusion_core.common.errors.DuetError: precision: 'float16' was given; it must be one of float64, ...
    """

    device: str = "auto"
    precision: str = "float32"
    compile: bool = False
    threads: int | None = None
    deterministic: bool = True

    def __post_init__(self) -> None:
        check_choice("backend.device", self.device, DEVICES)
        check_choice("precision", self.precision, PRECISIONS)
        if self.threads is not None and self.threads < 1:
            raise DuetError(f"backend.threads: {self.threads} was given; it must be at least 1, or null")

    @property
    def host_dtype(self) -> type[np.floating]:
        """The NumPy type of images and columns that are passed to a backend."""
        return np.float64 if self.precision == "float64" else np.float32


@dataclass(frozen=True)
class Description:
    """What a backend runs on, for the terminal and for the run directory."""

    backend: str
    device: str
    precision: str
    threads: int
    mode: str
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def on_cpu(self) -> bool:
        """Whether the device is a CPU."""
        return self.device.startswith("cpu")

    def line(self) -> str:
        """Return one line with the device, the precision, the mode and the versions."""
        framework = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return f"{self.backend}: {self.device}, {self.precision}, {self.mode} ({framework})"
