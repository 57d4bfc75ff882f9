"""Opening the backend that this Python has."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

import yaml

from diffusion_core.backend.interface import BackendConfig
from diffusion_core.common.errors import DuetError
from duet.layout import INSTALLED, check_packages
from experiments.runtime.backends import BackendSetup
from experiments.runtime.options import CONFIGS

__all__ = ["backend_setup", "default_backend"]


def default_backend() -> str:
    """Return the name of the backend that `duet.train` and `duet.sample` use when none is named.

    It is the first installed backend, by name, whose framework this Python can import. Further backends are not tried,
    since that would import a second framework into the process.

    Raises:
        DuetError: if no backend can be imported here.
        ImportError: if a file or a folder called backends hides that of Duet; the message names it.

    Example:
        In PyTorch's environment::

            duet.default_backend()  # "torch"
    """
    for entry in sorted(entry_points(group="duet.backends"), key=lambda entry: entry.name):
        try:
            entry.load()
        except ImportError:
            continue
        return entry.name
    check_packages()
    advice = "install PyTorch or TensorFlow" if INSTALLED else "build an environment with: python3 -m duet setup"
    raise DuetError(f"backend: this Python can import no backend; {advice}")


def backend_setup(
    name: str | None = None,
    device: str = "auto",
    precision: str = "float32",
    compile: bool | str = "auto",
    threads: int | None = None,
) -> BackendSetup:
    """Return how a backend computes, with the defaults of ``configs/backend``.

    Args:
        name: of an installed backend; None takes the one that this Python can import.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        precision: ``"float64"``, ``"float32"`` or ``"bf16"``.
        compile: True, False or ``"auto"``, which decides by the length of the work.
        threads: CPU threads; None leaves the framework's choice.

    Raises:
        DuetError: if no backend can be imported here, or an argument is not one of the values above.
    """
    name = default_backend() if name is None else name
    options: dict[str, Any] = {}
    if (path := CONFIGS / "backend" / f"{name}.yaml").exists():
        options = yaml.safe_load(path.read_text(encoding="utf-8"))
    config = BackendConfig(device=device, precision=precision, threads=threads)
    return BackendSetup(name, config, compile, options.get("compile_after") or {})
