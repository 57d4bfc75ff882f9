"""Run one network at full size in one framework, and compare it with another framework's record of it.

    python3 -m duet networks backend=torch model=simple out=DIR/torch
    python3 -m duet networks backend=tf model=simple out=DIR/tf other=DIR/torch

The second command prints the differences and exits with code 1 if one exceeds its tolerance.
`gradients=false` computes the forward pass only, for networks whose gradients would not fit into memory.
"""

from __future__ import annotations

import sys
from pathlib import Path

from experiments.config import build
from experiments.config.entry import Config, command
from experiments.parity.network import NetworkSetup, record_networks


@command("networks", result=("network.json", "a record"))
def main(cfg: Config) -> None:
    """Record a network in each precision, and compare it with another record if one is given."""
    spec, backend = build.network_spec(cfg), build.backend_setup(cfg, "float32")
    setup = NetworkSetup(spec, backend, list(cfg.precisions), cfg.gradients, cfg.batch, cfg.other)
    if not record_networks(setup, Path(cfg.out)):
        sys.exit(1)


if __name__ == "__main__":
    main()
