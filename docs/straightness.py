"""Draw how straight the paths of flows of the plane are, from a run of each.

    python3 -m duet run torch -- docs/straightness.py docs/straightness.png "NAME=RUN" ...

With the steps of Euler z_0 .. z_N of samples from noise z_0, and v_i their velocity (Liu et al., 2022, section 2.2),

    S = mean_i E |(z_N - z_0) - v_i|^2                 0 for straight paths, which one step follows exactly

The figure has the paths, S, and the root mean square distance of one step from N steps.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import duet

STEPS, COUNT, SHOWN = 50, 2048, 120


def path_of(run: str, steps: int) -> NDArray[np.float64]:
    """Return the points of samples at each step, with shape (steps + 1, COUNT, 2); the noise is that of every run."""
    states: list[NDArray] = []
    sampler = {"name": "flow_euler", "steps": steps, "spacing": "trailing"}

    def keep(row: int, x: NDArray, estimate: NDArray) -> None:
        states.append(np.array(x))

    pairs = duet.sample(run, COUNT, seed=3, batch=COUNT, sampler=sampler, pairs=True, callback=keep)
    return np.stack([pairs.noise, *states]).reshape(steps + 1, COUNT, -1)[..., :2].astype(np.float64)


def main(out: str, *runs: str) -> None:
    """Write the figure, and print its numbers."""
    figure = Figure(figsize=(2.3 * len(runs), 2.6), dpi=96, layout="constrained")
    for place, (name, run) in enumerate((one.split("=", 1) for one in runs), 1):
        path = path_of(run, STEPS)
        whole = path[-1] - path[0]
        s = np.mean(np.sum(np.square(np.diff(path, axis=0) * STEPS - whole), axis=-1))
        off = np.sqrt(np.mean(np.sum(np.square(path_of(run, 1)[-1] - path[-1]), axis=-1)))
        print(f"{name}: S = {s:.4f}, one step is off by {off:.3f}")
        axes = figure.add_subplot(1, len(runs), place, aspect="equal", xlim=(-1.5, 1.5), ylim=(-1.5, 1.5))
        axes.set(xticks=[], yticks=[])
        axes.plot(*path[:, :SHOWN].transpose(2, 0, 1), color="#4878a8", linewidth=0.5)
        axes.scatter(*path[0, :SHOWN].T, s=2, color="#909090", zorder=2)
        axes.scatter(*path[-1, : 4 * SHOWN].T, s=2, color="#c04040", zorder=3)
        axes.set_title(f"{name}\nS = {s:.3f}, 1 step off by {off:.2f}", fontsize=8)
    figure.savefig(out, bbox_inches="tight")
    Image.open(out).convert("RGB").quantize(48).save(out, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
