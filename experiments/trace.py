"""Write the parity record of one backend: its checks against the reference, and what the other must match.

    python3 -m duet trace backend=torch out=outputs/trace/torch
    python3 -m duet trace backend=tf out=outputs/trace/tf
    python3 -m duet trace backend=tf out=outputs/trace/tf handover=outputs/trace/torch

The last command takes over the training state and the weights that the other framework recorded, and records what this
one computes from them. `whole=false` checks a few networks and plans instead of all. `experiments.compare` reads two
such records.
"""

from __future__ import annotations

from pathlib import Path

from experiments.config import build
from experiments.config.entry import Config, command
from experiments.parity.ladder import LadderSetup, record_ladder


@command("trace")
def main(cfg: Config) -> None:
    """Record the backend in each precision, or continue from another framework's record."""
    backend = build.backend_setup(cfg, "float32")
    record_ladder(LadderSetup(backend, list(cfg.precisions), cfg.handover, cfg.whole), Path(cfg.out))


if __name__ == "__main__":
    main()
