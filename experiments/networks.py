"""One network at full size in one framework, and its agreement with the other's record of it.

    python3 -m duet networks backend=torch model=simple out=DIR/torch
    python3 -m duet networks backend=tf model=simple out=DIR/tf other=DIR/torch

The second command prints the differences and leaves with exit code 1 if one is over its tolerance.
`gradients=false` keeps to the forward pass, for networks whose gradients would not fit into memory.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from diffusion_core.backend.interface import load_backend
from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.networks import lower
from diffusion_core.networks.weights import count
from diffusion_core.parity.compare import PRECISIONS, load_arrays
from diffusion_core.parity.network import compare_network, record_network
from diffusion_core.runs.run_directory import describe_environment, write_json
from experiments.common import settings_of, spec_of
from experiments.config.entry import command


@command("networks", result=("network.json", "a record"))
def main(cfg: DictConfig) -> None:
    """Record a network in each precision, and compare it if another record is given."""
    spec, out = spec_of(cfg), Path(cfg.out)
    unknown = [p for p in cfg.precisions if p not in PRECISIONS]
    if unknown or not cfg.precisions:
        raise one_of("precisions", unknown[0] if unknown else "nothing", PRECISIONS)
    if cfg.batch < 1:
        raise DuetError(f"batch: {cfg.batch} was given; it must be at least 1")
    others = {p: load_arrays(Path(cfg.other) / f"{p}.npz") for p in cfg.precisions} if cfg.other else {}
    parameters = count(lower(spec))
    print(f"{parameters:,} parameters, images {spec.image_shape}", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    agreed: list[dict] = []
    for precision in cfg.precisions:
        backend = load_backend(cfg.backend.name, settings_of(cfg, precision))
        print(backend.describe().line(), flush=True)
        arrays = record_network(backend, spec, cfg.batch, cfg.gradients)
        np.savez(out / f"{precision}.npz", **arrays)
        if precision in others:
            checks, where = compare_network(arrays, others[precision], precision, "this–other")
            for check in checks:
                verdict = "agrees" if check.passed else "DIFFERS"
                place = f" ({where})" if check.name == "gradient, worst tensor" else ""
                print(f"{precision} {check.name}: {check.error:.1e}, at most {check.tolerance:.0e}: {verdict}{place}")
            agreed += [check.to_dict() for check in checks]
    facts = {"parameters": parameters, "checks": agreed, "backend": cfg.backend.name}
    write_json(out / "network.json", facts | {"environment": describe_environment(backend.describe())})
    if not all(check["passed"] for check in agreed):
        sys.exit(1)


if __name__ == "__main__":
    main()
