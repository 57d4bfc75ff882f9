"""Measure samples in few steps, and draw the pictures of docs/few_steps.md.

    python3 -m duet run torch -- docs/few_steps.py measure outputs/few mean_flow=outputs/few/mean_flow ...
    python3 -m duet run torch -- docs/few_steps.py draw outputs/few

`measure` samples each run with each number of steps of `METHODS`, compares the digits with the training images and
writes docs/few_steps.json, in which other runs keep their results, and the first digits of each into the folder. `draw`
reads both:

    few_steps.png           the distance against the number of network evaluations
    few_steps-samples.png   ten digits of each method in 1, 2, 4 and 25 steps, from the same noise

docs/update_tables.py writes the table of the page from the results.

An evaluation is one image through the network once: guidance doubles them. A run's cost is that of its training in
forward passes per image, where a backward pass counts as two and a derivative along a direction as one.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import duet  # noqa: E402
from diffusion_core.data import to_uint8  # noqa: E402
from diffusion_core.images import render  # noqa: E402
from diffusion_core.runs.checkpoint import load_checkpoint  # noqa: E402
from experiments.report.plots import INK, STYLE, encode  # noqa: E402

COUNT, SETS, SEED, SHOWN = 2000, 5, 7, 10
RESULTS = HERE / "few_steps.json"
METRICS = ("frechet", "spread", "manifold", "agreement")


@dataclass(frozen=True)
class FewSteps:
    """A method of the page.

    Args:
        title: its name in the pictures.
        sampler: the options of its sampler.
        steps: the numbers of steps that are measured.
        passes: forward passes of one image in training, see above.
        before: the runs that it needs, by name, whose cost is a part of its own.
        sigmas: for each number of steps, the levels at which they start, in place of `steps`.
        teacher: whether it learns from another network.
        extra: further forward passes before the training, such as the sampling of stored pairs.
    """

    title: str
    sampler: Mapping[str, Any]
    steps: tuple[int, ...]
    passes: float
    before: tuple[str, ...] = ()
    sigmas: Mapping[int, tuple[float, ...]] | None = None
    teacher: bool = False
    extra: int = 0

    def options(self, steps: int) -> dict[str, Any]:
        """Return the sampler with a number of steps."""
        return {**self.sampler, **({"sigmas": list(self.sigmas[steps])} if self.sigmas else {"steps": steps})}


EULER = {"name": "flow_euler", "spacing": "trailing"}
DDIM = {"name": "ddim", "spacing": "trailing"}
LEVELS = {1: (80.0,), 2: (80.0, 0.8), 4: (80.0, 5.0, 1.5, 0.5)}
CONSISTENCY = {"name": "consistency"}
PAIRS = 4000 * 20 * 2 * 2  # images, steps, evaluations of Heun, guidance

METHODS: dict[str, FewSteps] = {
    "flow": FewSteps("flow, Euler", EULER, (1, 2, 4, 8, 25), 3),
    "flow_guided": FewSteps("flow, Euler, guidance 1.5", {**EULER, "guidance_scale": 1.5}, (1, 2, 4, 8, 25), 3),
    "edm": FewSteps("EDM, DPM-Solver++", {"name": "dpm_solver", "spacing": "karras"}, (4, 8, 25), 3),
    "cosine": FewSteps("v, cosine, DDIM", DDIM, (1, 2, 4, 8, 25), 3),
    "mean_flow": FewSteps("MeanFlow", {"name": "mean_flow"}, (1, 2, 4), 4),
    "mean_flow_guided": FewSteps("MeanFlow, guided targets", {"name": "mean_flow"}, (1, 2, 4), 6),
    "shortcut": FewSteps("shortcut", {"name": "shortcut"}, (1, 2, 4, 8), 3.5),  # two more for one image in four
    "consistency_training": FewSteps("consistency training", CONSISTENCY, (1, 2, 4), 4, sigmas=LEVELS),
    "improved_consistency": FewSteps("iCT", CONSISTENCY, (1, 2, 4), 4, sigmas=LEVELS),
    "easy_consistency": FewSteps("ECT", CONSISTENCY, (1, 2, 4), 4, ("edm",), LEVELS, True),
    "consistency_distillation": FewSteps("consistency distillation", CONSISTENCY, (1, 2, 4), 6, ("edm",), LEVELS, True),
    "trigflow": FewSteps("TrigFlow, DPM-Solver++", {"name": "dpm_solver", "spacing": "karras"}, (25,), 3),
    "continuous_consistency": FewSteps("sCM distillation", CONSISTENCY, (1, 2, 4), 5, ("trigflow",), LEVELS, True),
    "progressive_8": FewSteps("progressive distillation", DDIM, (8,), 5, ("cosine",), None, True),
    "progressive_4": FewSteps("progressive distillation", DDIM, (4,), 5, ("progressive_8",), None, True),
    "progressive_2": FewSteps("progressive distillation", DDIM, (2,), 5, ("progressive_4",), None, True),
    "progressive_1": FewSteps("progressive distillation", DDIM, (1,), 5, ("progressive_2",), None, True),
    "reflow": FewSteps("reflow", EULER, (1, 2, 4), 3, ("flow",), None, True, PAIRS),
    "pairs_distillation": FewSteps("distillation from pairs", EULER, (1,), 3, ("flow",), None, True, PAIRS),
}


def measure(folder: Path, runs: Mapping[str, str]) -> None:
    """Sample and evaluate runs, and add them to the results."""
    digits, labels = duet.load_dataset("digits", part="train"), np.arange(COUNT) % 10
    held_out = duet.load_dataset("digits", part="held_out")
    real = numbers(held_out.images, digits, held_out.labels)
    drawn = np.resize(digits.images, (COUNT, *digits.images.shape[1:]))  # only their number matters for the floor
    floor = duet.evaluate(drawn, digits, features="digits", floors=20)["digits Fréchet distance"].floor
    for name, run in runs.items():
        checkpoint, rows = load_checkpoint(run), []
        for steps in METHODS[name].steps:
            images, evaluations = sample(run, METHODS[name].options(steps))
            np.save(folder / f"{name}-{steps}.npy", images[:SHOWN])
            rows.append({"steps": steps, "evaluations": evaluations, **numbers(images, digits, labels)})
            print(name, rows[-1], flush=True)
        backend = json.loads((Path(run) / "environment.json").read_text())["backend"]
        found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"runs": {}}
        found["held_out"], found["floor"] = real, round(floor, 3)
        found["runs"][name] = {"images": checkpoint.images_seen, "backend": backend, "results": rows}
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")


def sample(run: str, sampler: Mapping[str, Any]) -> tuple[NDArray[np.uint8], int]:
    """Return digits, every class in turn, and the network evaluations of each."""
    rows: list[int] = []

    def count(row: int, x: NDArray, estimate: NDArray) -> None:
        rows.append(row)

    options = {"guidance_scale": 1.0, **sampler}
    images = duet.sample(run, COUNT, seed=SEED, batch=COUNT // 4, sampler=options, callback=count)
    if images.dtype != np.uint8:  # of a student, whose data were stored pairs of floats
        images = to_uint8(images, (-1.0, 1.0))
    return images, len(rows) * (1 if options["guidance_scale"] == 1 else 2)


def numbers(images: NDArray[np.uint8], digits: Any, labels: NDArray) -> dict[str, Any]:
    """Return the distance with its interval, and what it does not show."""
    scores = duet.evaluate(images, digits, features="digits", metrics=METRICS, labels=labels, sets=SETS)
    distance = scores["digits Fréchet distance"]
    return {
        "distance": round(distance.value, 3),
        "interval": [round(distance.interval.low, 3), round(distance.interval.high, 3)],
        "spread": round(scores["spread within a class, relative to the reference"].value, 3),
        "recall": round(scores["digits recall"].value, 3),
        "recognised": round(scores["digits recognised as the requested class"].value, 4),
    }


def cost(name: str, runs: Mapping[str, Any]) -> float:
    """Return the forward passes of an image that led to a run, with those of the runs before it."""
    method = METHODS[name]
    before = sum(cost(earlier, runs) for earlier in method.before)
    return before + method.extra + method.passes * runs[name]["images"]


def points(runs: Mapping[str, Any]) -> dict[str, list[tuple[FewSteps, Mapping[str, Any]]]]:
    """Return the results of each title, by number of evaluations."""
    lines: dict[str, list[tuple[FewSteps, Mapping[str, Any]]]] = {}
    for name, method in METHODS.items():
        if name in runs:
            lines.setdefault(method.title, []).extend((method, row) for row in runs[name]["results"])
    return {title: sorted(rows, key=lambda row: row[1]["evaluations"]) for title, rows in lines.items()}


def figure(found: Mapping[str, Any]) -> bytes:
    """Draw the distance against evaluations: methods from data alone and from a teacher, and diffusion models."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    lines = points(found["runs"])
    with mpl.rc_context(STYLE):
        drawn = Figure(figsize=(9.6, 5.0), layout="constrained")
        for axes, teacher in zip(drawn.subplots(1, 2, sharey=True), (False, True), strict=True):
            panel(axes, {t: rows for t, rows in lines.items() if rows[0][0].teacher == teacher or is_diffusion(t)})
            axes.set_title("from a teacher" if teacher else "from data alone", loc="left", fontweight="bold")
            real = found["held_out"]["distance"]
            for value, dots, title in ((real, 3, "360 held-out digits"), (found["floor"], 1, "training images, drawn")):
                axes.axhline(value, color=INK, linewidth=0.8, linestyle=(0, (1, dots)), label=title)
            axes.set_xlabel("network evaluations per image")
            axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
        drawn.axes[0].set_ylabel("digits Fréchet distance to the training images")
        return encode(drawn, "png")


# Colours of Okabe and Ito, which differ for colour-blind readers too; each line also has its mark.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKS = "osD^vP"
GREYS = {
    "flow, Euler": ("#404040", "--"), "flow, Euler, guidance 1.5": ("#404040", ":"),
    "EDM, DPM-Solver++": ("#8a8a8a", "--"), "v, cosine, DDIM": ("#b4b4b4", "--"),
    "TrigFlow, DPM-Solver++": ("#8a8a8a", ":"),
}  # fmt: skip


def is_diffusion(title: str) -> bool:
    """Whether a line is that of a diffusion model, which both panels show."""
    return title in GREYS


def panel(axes: Any, lines: Mapping[str, list[tuple[FewSteps, Mapping[str, Any]]]]) -> None:
    """Draw lines with their intervals, a little apart where they have the same number of evaluations."""
    from matplotlib.ticker import NullLocator, StrMethodFormatter

    own = [title for title in lines if not is_diffusion(title)]
    for title in (*GREYS, *own):
        if title not in lines:
            continue
        grey, place = is_diffusion(title), 0 if is_diffusion(title) else own.index(title)
        shift = 1.0 if grey else 1.035 ** (place - (len(own) - 1) / 2)
        x = [row["evaluations"] * shift for _, row in lines[title]]
        y = [row["distance"] for _, row in lines[title]]
        low, high = np.transpose([row["interval"] for _, row in lines[title]])
        colour, line = GREYS[title] if grey else (COLOURS[place], "-")
        axes.errorbar(
            x, y, [np.subtract(y, np.maximum(low, 0.05)), np.subtract(high, y)], color=colour, elinewidth=0.9,
            linewidth=1.1 if grey else 1.6, marker="." if grey else MARKS[place], markersize=5, capsize=0,
            linestyle=line, label=title, zorder=2 if grey else 3,
        )  # fmt: skip
    axes.set(xscale="log", yscale="log")
    axes.grid(alpha=0.12, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xticks([1, 2, 4, 8, 16, 25, 50])
    axes.set_yticks([0.25, 0.5, 1, 2, 4, 8, 16])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_locator(NullLocator())


def sheet(folder: Path, runs: Mapping[str, Any]) -> bytes:
    """Draw the first digits of each method without guidance, in 1, 2, 4 and 25 steps."""
    columns, rows = (1, 2, 4, 25), {}
    for name, method in METHODS.items():
        if name in runs and method.sampler.get("guidance_scale", 1) == 1:
            for result in runs[name]["results"]:
                images = np.load(folder / f"{name}-{result['steps']}.npy")
                cell = images, f"distance {result['distance']:.2f}"
                rows.setdefault(method.title, {})[result["steps"]] = cell
    cells = [[row.get(steps) for steps in columns] for row in rows.values()]
    heads = ["1 step", *(f"{steps} steps" for steps in columns[1:])]
    return render.png_bytes(render.table(cells, list(rows), heads, scale=3, pad=3))


def table() -> str:
    """Return the table of the page."""
    runs = json.loads(RESULTS.read_text())["runs"]
    lines = [
        "| method | evaluations | distance | spread | recall | recognised | cost |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for name, method in METHODS.items():
        for row in runs[name]["results"] if name in runs else ():
            low, high = row["interval"]
            lines.append(
                f"| {method.title} | {row['evaluations']} | {row['distance']:.2f} [{low:.2f} .. {high:.2f}] | "
                f"{row['spread']:.2f} | {row['recall']:.2f} | {row['recognised']:.1%} | "
                f"{cost(name, runs) / 1e6:.2f} |"
            )
    return "\n".join(lines)


def main(action: str, folder: str, *runs: str) -> None:
    """Measure runs, or draw what was measured."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    if action == "measure":
        measure(Path(folder), dict(run.split("=", 1) for run in runs))
        return
    found = json.loads(RESULTS.read_text())
    Image.open(io.BytesIO(figure(found))).convert("RGB").quantize(64).save(HERE / "few_steps.png", optimize=True)
    (HERE / "few_steps-samples.png").write_bytes(sheet(Path(folder), found["runs"]))


if __name__ == "__main__":
    main(*sys.argv[1:])
