"""Services that a training reports to in addition to its own files: the group `tracker`, none by default.

A tracker receives what TensorBoard's event file receives, with images seen as the step: the metrics of each step, the
speed, and the samples. Its package is imported only when it is selected, and a run's own files never depend on it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.common.registry import build
from diffusion_core.runs.run_directory import Tracker

__all__ = ["TRACKERS", "StartTracker", "make_tracker"]

# Starts a tracker, from the run directory and the configuration as plain data.
StartTracker = Callable[[Path, Mapping[str, Any]], Tracker]


def make_tracker(options: Mapping[str, Any]) -> StartTracker | None:
    """Return a function that starts a tracker; None for the name "none".

    Args:
        options: name and options of the tracker.

    Raises:
        DuetError: if there is no such tracker, an option does not fit, or its package is not installed.
    """
    options = dict(options)
    name = options.pop("name", "none")
    return None if name == "none" else build("tracker", TRACKERS, name, options)


def _package(tracker: str, name: str, install: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DuetError(
            f"tracker: {tracker} was given, and its package is not installed here ({error}); "
            f"`pip install {install}` into this environment, or leave tracker=none"
        ) from error


def wandb(
    project: str = "duet", entity: str | None = None, group: str | None = None, mode: str = "online", run: str = ""
) -> StartTracker:
    """Weights & Biases; `mode` is online, offline or disabled, and an empty `run` means the name of the directory."""
    if mode not in ("online", "offline", "disabled"):
        raise DuetError(f"tracker.mode: {mode!r} was given; it must be online, offline or disabled")
    package = _package("wandb", "wandb", "wandb")

    def start(directory: Path, config: Mapping[str, Any]) -> Tracker:
        started = package.init(
            project=project, entity=entity, group=group, mode=mode, name=run or directory.name, dir=str(directory),
            config=dict(config),
        )  # fmt: skip
        started.define_metric("*", step_metric="images_seen")
        return _Wandb(package, started)

    return start


class _Wandb:
    def __init__(self, package: ModuleType, run: Any) -> None:
        self._package, self._run = package, run

    def log_scalars(self, values: Mapping[str, float], images_seen: int) -> None:
        self._run.log({**values, "images_seen": images_seen})

    def log_image(self, name: str, image: NDArray[np.uint8], images_seen: int) -> None:
        self._run.log({name: self._package.Image(image.squeeze()), "images_seen": images_seen})

    def close(self, failed: bool = False) -> None:
        self._run.finish(exit_code=int(failed))


def mlflow(tracking_uri: str = "sqlite:///mlruns.db", experiment: str = "duet", run: str = "") -> StartTracker:
    """MLflow; by default in a database file in the working directory. An empty `run` means as for wandb."""
    package = _package("mlflow", "mlflow", "mlflow")

    def start(directory: Path, config: Mapping[str, Any]) -> Tracker:
        client = package.MlflowClient(tracking_uri)
        known = client.get_experiment_by_name(experiment)
        number = client.create_experiment(experiment) if known is None else known.experiment_id
        run_id = client.create_run(number, run_name=run or directory.name).info.run_id
        for key, value in _flat(config).items():
            client.log_param(run_id, key, str(value)[:500])
        return _Mlflow(client, run_id)

    return start


class _Mlflow:
    def __init__(self, client: Any, run: str) -> None:
        self._client, self._run = client, run

    def log_scalars(self, values: Mapping[str, float], images_seen: int) -> None:
        for name, value in values.items():
            self._client.log_metric(self._run, name, value, step=images_seen)

    def log_image(self, name: str, image: NDArray[np.uint8], images_seen: int) -> None:
        self._client.log_image(self._run, image.squeeze(), f"{name}-{images_seen:012d}.png")

    def close(self, failed: bool = False) -> None:
        self._client.set_terminated(self._run, "FAILED" if failed else "FINISHED")


def _flat(config: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Return nested options by their dotted paths."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{path}{key}.") if isinstance(value, Mapping) else {f"{path}{key}": value}
    return flat


TRACKERS: Mapping[str, Callable[..., StartTracker]] = {"wandb": wandb, "mlflow": mlflow}
