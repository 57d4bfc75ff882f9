"""Write the pictures of a page of docs/sources from two runs of its experiment.

    python3 -m duet run torch -- docs/sources/make_pictures.py NAME RUN RUN

NAME is an experiment, each RUN the run directory of a training with it, one per framework. Written beside this file:

    NAME-noising.png    the forward process on three images of the data, as the runs drew it
    NAME-samples.png    the samples of both runs, from the same noise
    NAME-loss.png       the loss of both runs, means of consecutive updates

The numbers of the pictures are printed too; the pages cite them.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from numpy.typing import NDArray

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from diffusion_core.images import render  # noqa: E402
from diffusion_core.runs.run_directory import read_metrics, read_samples  # noqa: E402
from experiments.config.backends import BackendInfo, read_backends  # noqa: E402
from experiments.report.plots import STYLE, encode  # noqa: E402

WIDTH = 7.4  # inches
DASHES = ("-", (0, (3, 2)))  # the second curve often covers the first
SHOWN = 15  # samples of each run
POINTS = 120  # of a loss curve, each the mean of as many updates


def pictures(name: str, runs: list[Path]) -> None:
    """Write the three pictures of an experiment from one run per framework; print their numbers."""
    backends = [backend_of(run) for run in runs]
    shutil.copyfile(runs[0] / "samples" / "noising.png", HERE / f"{name}-noising.png")
    images = [read_samples(run / "samples" / "samples.npz")[0][:SHOWN] for run in runs]
    with mpl.rc_context(STYLE):
        (HERE / f"{name}-samples.png").write_bytes(encode(samples_figure(images, backends), "png"))
        (HERE / f"{name}-loss.png").write_bytes(encode(loss_figure(runs, backends), "png"))
    apart = np.abs(images[0].astype(int) - images[1].astype(int))
    print(f"{name}, values of pixels: {np.mean(apart == 0):.1%} equal, {np.mean(apart <= 1):.1%} within 1 of 255")
    losses = [losses_of(run)[1] for run in runs]
    for each, backend in zip(losses, backends, strict=True):
        last = each[-len(each) // 10 :].mean()
        print(
            f"{name}, {backend.title}: {len(each):,} updates, loss {each[0]:.4f} at first, {last:.4f} in the last tenth"
        )
    apart = np.abs(losses[1] / losses[0] - 1)
    means = np.max(np.abs(binned(losses[1]) / binned(losses[0]) - 1))
    print(
        f"{name}, relative difference of the loss: {apart[0]:.1e} at the first update, at most {apart[:100].max():.1e} "
        f"in the first 100 and {apart.max():.1e} in all; of the means of the curve {means:.1e}"
    )


def backend_of(run: Path) -> BackendInfo:
    """Return the backend that trained a run."""
    return read_backends()[json.loads((run / "environment.json").read_text())["backend"]]


def losses_of(run: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the images seen and the loss of every update of a run."""
    logged = [entry for entry in read_metrics(run / "metrics.jsonl") if "loss" in entry]
    return np.array([entry["images_seen"] for entry in logged]), np.array([entry["loss"] for entry in logged])


def binned(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the means of consecutive updates, as many to each."""
    size = -(-len(values) // POINTS)
    whole = values[: len(values) // size * size]
    return whole.reshape(-1, size).mean(axis=1)


def samples_figure(images: list[NDArray[np.uint8]], backends: list[BackendInfo]) -> Figure:
    """Draw a grid of samples per framework, side by side."""
    grids = [render.grid(each, 5, scale=max(1, 96 // each.shape[1]), pad=3) for each in images]
    height, width = grids[0].shape[:2]
    figure = Figure((WIDTH, WIDTH / 2 * height / width + 0.3), layout="constrained")
    for axes, grid, backend in zip(figure.subplots(1, 2), grids, backends, strict=True):
        axes.imshow(grid.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_title(backend.title, fontsize=10)
        axes.set_axis_off()
    return figure


def loss_figure(runs: list[Path], backends: list[BackendInfo]) -> Figure:
    """Draw the loss of each framework by images seen."""
    figure = Figure((WIDTH, 2.5), layout="constrained")
    axes = figure.subplots()
    for run, backend, dashes in zip(runs, backends, DASHES, strict=True):
        axes.plot(*map(binned, losses_of(run)), color=backend.colour["light"], ls=dashes, lw=1.6, label=backend.title)
    axes.set(xlabel="images seen", ylabel="loss", yscale="log")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter("{x:.2g}")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    pictures(sys.argv[1], [Path(run) for run in sys.argv[2:]])
