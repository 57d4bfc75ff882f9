"""Runs from Python: a checkpoint that can sample, evaluate and give back its network."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.runs.checkpoint import Checkpoint, load_checkpoint
from duet.api.backends import backend_setup
from duet.api.evaluation import Scores, evaluate
from duet.api.options import check_types
from experiments.runtime import own_networks
from experiments.runtime.backends import BackendSetup
from experiments.runtime.own_networks import OwnNetwork

__all__ = ["Run", "load", "load_run", "run_setup"]


class Run(Checkpoint):
    """A checkpoint of a run, which `duet.train` and `duet.load` return.

    Its attributes are those of `Checkpoint`: `state`, `model`, `training`, `images_seen`, `seed` and `notes`.

    Example:
        Samples of a run, and what they score::

            run = duet.load("outputs/digits")
            images = run.sample(60, sampler="ddim", steps=25)
            print(run.evaluate(duet.load_dataset("digits"), features="digits"))
    """

    own: OwnNetwork | None = None

    def sample(self, count: int = 64, **options: Any) -> NDArray:
        """Return samples; see `duet.sample`.

        Example:
            Sixteen samples by Heun's method::

                images = duet.load("outputs/digits").sample(16, sampler="heun", steps=18)
        """
        from duet.api.sampling import sample

        return sample(self, count, **options)

    def evaluate(
        self,
        reference: Any,
        *,
        count: int = 1000,
        metrics: Any = ("frechet",),
        features: Any = None,
        sample: dict[str, Any] | None = None,
        **options: Any,
    ) -> Scores:
        """Sample and compare the samples with a data set; see `duet.evaluate`.

        Args:
            reference: the data set to compare with.
            count: number of samples.
            metrics: see `duet.evaluate`, like `features`.
            features: what the metrics read of images.
            sample: options of `duet.sample`, such as ``{"sampler": "heun", "steps": 18}``.
            options: of `duet.evaluate`.

        Raises:
            DuetError: as `duet.sample` and `duet.evaluate`.
        """
        return evaluate(self.sample(count, **(sample or {})), reference, metrics=metrics, features=features, **options)

    def network(self, weights: str | None = None) -> Any:
        """Return the own network with the weights of this run, as an object of its framework.

        Args:
            weights: ``"ema"``, a further average or ``"weights"``; None is what the run samples with.

        Raises:
            DuetError: for a network of Duet, whose weights are in `state`, or weights that do not exist.
        """
        from experiments.sampling.options import choose_weights

        if self.own is None:
            raise DuetError(
                "network: this run is of a network of Duet, not of an own one; its weights are in run.state.ema"
            )
        arrays = self.state.parts[choose_weights("weights", weights, self)]
        prefix = f"{self.model.program.nodes[0].name}."
        own = {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
        return self.own.backend.own.with_weights(self.own.network, own)


@check_types
def load(path: str | Path, network: Any = None, **call: Any) -> Run:
    """Load a run.

    Args:
        path: a run directory, or one of its checkpoints.
        network: the own network that the run trained: its weights are read from the run, its code is not kept there.
        call: how the network is called, see `duet.adapt`; the run knows the rest.

    Raises:
        DuetError: if the run does not exist, is damaged, or is of another network.

    Example:
        A run of a network of Duet, and one of your own::

            run = duet.load("outputs/digits")
            mine = duet.load("runs/mine", network=module)
    """
    return load_run(path, None if network is None else own_networks.adapt(network, **call))


def load_run(path: str | Path, own: OwnNetwork | None = None) -> Run:
    """Return the last checkpoint of a run, with its own network if it has one."""
    checkpoint = load_checkpoint(path)
    if own is not None:
        checkpoint = own_networks.with_network(checkpoint, own, path)
    run = Run(**{field.name: getattr(checkpoint, field.name) for field in fields(Checkpoint)})
    object.__setattr__(run, "own", own)
    return run


def run_setup(
    run: Checkpoint,
    backend: str | None,
    device: str,
    precision: str | None,
    compile: bool | str = "auto",
    threads: int | None = None,
) -> BackendSetup:
    """Return how the network of a run is computed; None takes the framework and the precision of an own network.

    Arguments are those of `backend_setup`.
    """
    if isinstance(run, Run) and run.own is not None:
        backend, precision = backend or run.own.framework, precision or run.own.manifest.precision
    return backend_setup(backend, device, precision or "float32", compile, threads)
