"""Training steps of a TensorFlow model, as its author wrote them, for `duet diff --steps`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from diffusion_core.parity.diff.recording import Step

__all__ = ["record_steps"]


def record_steps(
    model: Any, batches: Sequence[Any], training: Callable | None, optimizer: Callable | None, loss: Callable | None
) -> tuple[tuple[Step, ...], dict[str, Any]]:
    """Return the steps that the author's code made, and the class and hyper-parameters of the optimiser."""
    raise ValueError("training steps of TensorFlow are not recorded yet")
