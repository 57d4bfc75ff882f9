"""Editing images from Python."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.runs.checkpoint import Checkpoint
from duet.api.options import check_types, unknown_option
from duet.api.runs import run_setup
from duet.api.sampling import load_guidance, open_backend, read_checkpoint
from experiments.editing.modes import MODES
from experiments.editing.run import draw_edit, plan_edit
from experiments.editing.setup import EditContext, EditSetup
from experiments.runtime.backends import sampling_calls

__all__ = ["edit"]


@check_types
def edit(
    checkpoint: Checkpoint | str | Path,
    images: Any = None,
    mode: str = "image_to_image",
    *,
    labels: int | str | Sequence[int | str] | None = None,
    variants: int = 1,
    sampler: str | Mapping[str, Any] | None = None,
    seed: int = 0,
    batch: int = 64,
    weights: str | None = None,
    guide: Checkpoint | str | Path | None = None,
    classifier: Checkpoint | str | Path | None = None,
    backend: str | None = None,
    device: str = "auto",
    precision: str | None = None,
    compile: bool | str = "auto",
    threads: int | None = None,
    **options: Any,
) -> NDArray[np.uint8]:
    """Edit images with a checkpoint: image to image, inpainting, interpolation, posterior sampling.

    Args:
        checkpoint: what `duet.train` or `duet.load` returns, or the path of a run or a checkpoint.
        images: uint8 with shape (N, H, W, C), or the path of an image, a folder or an ``.npz`` file; None where
            ``mode="posterior"`` has a `measurement` from a file.
        mode: ``"image_to_image"``, ``"interpolate"``, ``"inpaint"`` or ``"posterior"``.
        labels: one class for all, or a list of classes that repeats; None draws without a class.
        variants: edited images per image.
        sampler: a name or a name with options; None is the sampler of the run.
        seed: of the noise.
        batch: images per network call.
        weights: which weights; None is what the run samples with.
        guide: a weaker network for autoguidance.
        classifier: a classifier of noisy images.
        backend: see `duet.sample`, like device, precision, compile and threads.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        precision: the number type.
        compile: True, False or ``"auto"``.
        threads: CPU threads.
        options: of the mode, as ``strength=0.5``, ``known="left"`` or ``operator="blur"``; docs/methods.md lists them.

    Raises:
        DuetError: for options that do not exist or do not fit.

    Example:
        Sharpen what a blur and noise have left of four images, in four variants each::

            blur = duet.operators.blur(shape, width=1.5)
            duet.edit("outputs/digits", images[:4], "posterior", operator=blur, noise=0.1, variants=4)
    """
    check_choice("mode", mode, MODES)
    allowed = _options(mode)
    for name in options:
        if name not in allowed:
            raise unknown_option(edit, name, allowed)
    if images is None and options.get("measurement") is None:
        raise DuetError("images: none were given; give uint8 images with shape (N, H, W, C), or a path")
    loaded, models = read_checkpoint(checkpoint), load_guidance(guide=guide, classifier=classifier)
    given: dict[str, Any] = {}
    if isinstance(images, str | Path):
        given |= {"path": str(images), "images": None}
    elif images is not None:
        array = np.asarray(images)
        if array.dtype != np.uint8 or array.ndim != 4:
            raise DuetError(
                f"images: {array.dtype} {array.shape} was given; they must be uint8 (N, H, W, C), or a path"
            )
        given["arrays"] = array
    setup = EditSetup(
        loaded, labels=labels, variants=variants, batch=batch, seed=seed, weights=weights,
        sampler={"name": sampler} if isinstance(sampler, str) else dict(sampler or {}),
        mode={"name": mode, **options}, guidance=models,
        backend=run_setup(loaded, backend, device, precision, compile, threads), **given,
    )  # fmt: skip
    context = EditContext(setup)
    plan = plan_edit(context)
    for note in context.notes[1:]:  # the first says which sampler it is
        warnings.warn(note, stacklevel=3)
    opened = open_backend(setup.backend, sampling_calls(plan.drawn, batch))
    return draw_edit(context, plan, opened, shows_progress=False)[0]


def _options(mode: str) -> list[str]:
    return [name for name in inspect.signature(MODES[mode]).parameters if name != "context"]
