"""Repeat a training step whose loss or gradient was not finite, in either framework, and find where that begins.

    python3 -m duet replay backend=torch bundle=outputs/RUN/non_finite/000000012800
    python3 -m duet replay backend=tf precision=float64 bundle=outputs/RUN/non_finite/000000012800

A training leaves the bundle behind (`diffusion_core.runs.failure_bundle`). The step is computed as it was, in
micro-batches that are no larger, and with `backend.compile=auto` in the mode of that training if the backend is the
same. Then its first non-finite images are computed block by block, next to the NumPy reference in float64 if the
network is small. An own network is one block, without a reference, and is named again: network=FILE:NAME. The findings
are printed and written to replay-BACKEND-PRECISION.json in the bundle.
"""

from __future__ import annotations

from experiments.config import build
from experiments.config.entry import Config, command
from experiments.training.replay import replay_step


@command("replay")
def main(cfg: Config) -> None:
    """Read the bundle, compute its step, and print where the first number appears that is not finite."""
    backend = build.backend_setup(cfg, "float32")
    replay = replay_step(
        cfg.bundle, backend, cfg.precision, cfg.images, lambda precision: build.own_network(cfg, precision)
    )
    print("\n".join(replay.lines()))


if __name__ == "__main__":
    main()
