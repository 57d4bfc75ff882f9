"""Editing images into a directory."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffusion_core.backend.interface import Backend, Guidance, Network
from diffusion_core.common.registry import build
from diffusion_core.data import to_uint8
from diffusion_core.files.atomic import write_atomically
from diffusion_core.images import render
from diffusion_core.images.points import is_point, panels
from diffusion_core.model.generate import generate
from diffusion_core.runs.checkpoint import weights_hash
from diffusion_core.runs.run_directory import describe_environment, write_json, write_samples
from diffusion_core.sampling import edit
from experiments.editing.modes import MODES, EditPlan
from experiments.editing.setup import EditContext
from experiments.runtime.backends import sampling_calls
from experiments.runtime.progress import Counter

__all__ = ["draw_edit", "edit_images", "plan_edit"]


@dataclass(frozen=True, eq=False)
class _Sampler:
    """Draws the samples of an edit; see `experiments.editing.modes.Sample`."""

    context: EditContext
    backend: Backend
    network: Network
    guidance: Guidance
    shows_progress: bool

    def __call__(self, made: edit.Edit, labels: NDArray[np.int32], *, guided: bool = True) -> NDArray:
        setup, shape = self.context.setup, self.context.model.spec.image_shape
        with Counter(made.plan.name, len(labels)) if self.shows_progress else nullcontext() as progress:
            return generate(
                self.backend, self.network, made.plan, shape, labels, setup.seed, batch=setup.batch,
                progress=progress, guidance=self.guidance if guided else Guidance(), edit=made,
            )  # fmt: skip


def plan_edit(context: EditContext) -> EditPlan:
    """Return the checked edit of a request.

    Raises:
        DuetError: if an option of the mode does not fit; nothing has been computed then.
    """
    mode = dict(context.setup.mode)
    return build("mode", MODES, mode.pop("name", "none"), mode, context)


def draw_edit(
    context: EditContext, plan: EditPlan, backend: Backend, shows_progress: bool = True
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Return the edited images, with shape (N, H, W, C), and their labels."""
    network = backend.network(context.model.program, context.checkpoint.state.parts[context.weights])
    guidance = context.setup.guidance.build(backend)
    samples, labels = plan.run(_Sampler(context, backend, network, guidance, shows_progress))
    return to_uint8(samples, context.model.value_range), labels


def edit_images(context: EditContext, out: Path, config: str | None = None) -> NDArray[np.uint8]:
    """Edit the images and write them into the directory `out`; return them with shape (N, H, W, C).

    Args:
        context: what to edit, and how.
        out: gets edited.npz, environment.json and edited.png, which shows each image in front of its edited ones.
        config: the configuration as YAML, kept as config.yaml.

    Raises:
        DuetError: if an option of the mode does not fit; nothing has been computed or written then.
    """
    setup, plan = context.setup, plan_edit(context)
    backend = setup.backend.open(sampling_calls(plan.drawn, setup.batch))
    print("\n".join(context.notes), flush=True)
    if config is not None:
        write_atomically(out / "config.yaml", config.encode())
    write_json(out / "environment.json", describe_environment(backend.describe()))
    images, labels = draw_edit(context, plan, backend)
    facts = {"mode": setup.mode["name"], "seed": setup.seed, "images_seen": context.checkpoint.images_seen}
    facts |= {"weights_sha256": weights_hash(setup.checkpoint, context.weights), "backend": setup.backend.name}
    write_samples(out / "edited.npz", images, labels, **facts)
    render.save_png(out / "edited.png", _sheet(context, plan, images, labels))
    return images


def _sheet(
    context: EditContext, plan: EditPlan, images: NDArray[np.uint8], labels: NDArray[np.int32]
) -> NDArray[np.uint8]:
    """Return the figure: in each row the source images, then the edited ones, with the class they were drawn with."""
    model = context.model
    rows, each, null_label = [], len(images) // len(plan.shown), model.program.null_label
    names = context.label_names
    for k, (name, sources) in enumerate(plan.shown):
        label = labels[k * each]
        own = "no class" if label == null_label else names.get(int(label), f"class {label}")
        classes = [] if null_label is None else [own]
        shown = np.concatenate([sources, images[k * each : (k + 1) * each]])
        rows.append(("\n".join([name, *classes]), panels(shown) if is_point(shown.shape) else shown))
    heads = [*((head, 1) for head in plan.heads[:-1]), (plan.heads[-1], each)]
    return render.labelled_rows(rows, scale=max(1, 64 // rows[0][1].shape[1]), heads=heads)
