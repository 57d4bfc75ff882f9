"""One network at full size in one framework, and its differences from another framework's record of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffusion_core.common.errors import DuetError
from diffusion_core.networks import NetworkSpec, lower
from diffusion_core.networks.weights import parameter_count
from diffusion_core.parity.compare import load_arrays
from diffusion_core.parity.network import compare_network, record_network
from diffusion_core.runs.run_directory import describe_environment, write_json
from diffusion_core.runtime.heartbeat import heartbeat
from experiments.parity.ladder import check_precisions
from experiments.runtime.backends import BackendSetup

__all__ = ["NetworkSetup", "record_networks"]


@dataclass(frozen=True)
class NetworkSetup:
    """A request for the record of a network.

    Args:
        spec: the network.
        backend: what computes it.
        precisions: one record is written for each.
        gradients: whether to record the gradients too.
        batch: number of images.
        other: the directory of another record to compare with.
    """

    spec: NetworkSpec
    backend: BackendSetup
    precisions: Sequence[str] = ("float64", "float32")
    gradients: bool = True
    batch: int = 1
    other: str | None = None

    def __post_init__(self) -> None:
        check_precisions(self.precisions)
        if self.batch < 1:
            raise DuetError(f"batch: {self.batch} was given; it must be at least 1")


def record_networks(setup: NetworkSetup, out: Path) -> bool:
    """Write the record in each precision into the directory `out`; return whether it agrees with the other record."""
    other = Path(setup.other) if setup.other else None
    others = {p: load_arrays(other / f"{p}.npz") for p in setup.precisions} if other else {}
    parameters = parameter_count(lower(setup.spec))
    print(f"{parameters:,} parameters, images {setup.spec.image_shape}", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    checks: list[dict] = []
    for precision in setup.precisions:
        backend = setup.backend.with_precision(precision).load()
        print(backend.describe().line(), flush=True)
        with heartbeat(f"{precision}: the network, forward" + ", and its gradients" * setup.gradients):
            arrays = record_network(backend, setup.spec, setup.batch, setup.gradients)
        np.savez(out / f"{precision}.npz", **arrays)
        if precision in others:
            found, worst = compare_network(arrays, others[precision], precision, "this–other")
            for check in found:
                verdict = "agrees" if check.passed else "DIFFERS"
                where = f" ({worst})" if check.name == "gradient, worst tensor" else ""
                print(f"{precision} {check.name}: {check.error:.1e}, at most {check.tolerance:.0e}: {verdict}{where}")
            checks += [check.to_dict() for check in found]
    facts = {"parameters": parameters, "checks": checks, "backend": setup.backend.name}
    write_json(out / "network.json", facts | {"environment": describe_environment(backend.describe())})
    return all(check["passed"] for check in checks)
