"""The modes of editing: what is done with the images, by name.

A mode is a function of an `EditContext` and its options. It checks everything that a user can get wrong and returns an
`EditPlan`, which then draws the edited images; nothing is computed by a network before that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.common.text import pluralize
from diffusion_core.sampling import edit
from experiments.editing.masks import known_mask
from experiments.editing.plan import Edited, EditPlan, Sample, sample_once
from experiments.editing.posterior import posterior
from experiments.editing.setup import EditContext

__all__ = ["MODES", "EditPlan", "Sample"]


def _image_to_image(context: EditContext, *, strength: float = 0.6) -> EditPlan:
    """Add noise to each image and sample from there; `strength` is the fraction of the rows that are run."""
    plan = edit.tail(context.plan, strength)
    made = edit.image_to_image(plan, context.pixels(), context.setup.seed)
    sources, labels = context.sources, np.repeat(context.sources.labels, context.setup.variants)
    shown = [(name, image[None]) for name, image in zip(sources.names, sources.images, strict=True)]
    return EditPlan(partial(sample_once, made, labels), [(plan, len(labels))], shown, ("image", "edited"))


ENCODINGS = ("noise", "inversion")


def _interpolate(
    context: EditContext,
    *,
    strength: float = 0.6,
    encode: str = "inversion",
    mix: str | None = None,
    count: int = 8,
    clip: float | None = None,
    use_clipped_model_output: bool = True,
) -> EditPlan:
    """Interpolate from the first to the second image of each pair.

    Args:
        context: the request.
        strength: the fraction of the rows that are run.
        encode: ``"inversion"``, the noise that DDIM inversion assigns to each image, or ``"noise"``, the same noise for
            both. Inversion is the default: it leads back to both images, up to the error of the steps and the effect
            of guidance on the way down. An unrelated noise ends at other images, which are nearly the same at a high
            strength; it needs half as many network evaluations.
        mix: one of `edit.MIXES`; None is lerp for noise and slerp for inversion.
        count: images from one end to the other.
        clip: bound of the estimates of the inversion, see `sampling.inversion`; None for no bound.
        use_clipped_model_output: whether eps follows from the bounded estimate, see there.
    """
    check_choice("mode.encode", encode, ENCODINGS)
    if context.setup.variants != 1:
        raise DuetError(f"variants: {context.setup.variants} was given; an interpolation has one, so use 1")
    images, labels, names = context.sources.images, context.sources.labels, context.sources.names
    if len(images) % 2:
        raise DuetError(
            f"images: {pluralize(len(images), 'image')} given; an interpolation needs pairs, from one to the other"
        )
    plan, pixels, seed = edit.tail(context.plan, strength), context.pixels(), context.setup.seed
    pairs = np.arange(len(images) // 2)
    mix = mix or ("lerp" if encode == "noise" else "slerp")
    edit.interpolate(plan, pixels[::2], pixels[1::2], count, mix)  # checks count and mix
    inverse = None
    if encode == "inversion":
        inverse = context.model.plan(
            "ddim_inversion", steps=None, spacing=edit.decreasing_timesteps(plan.t), clip=clip,
            use_clipped_model_output=use_clipped_model_output,
        )  # fmt: skip
    elif clip is not None:
        raise DuetError(f"mode.clip: {clip} was given, but mode.encode=noise has no inversion to clip; use inversion")
    # Between images of two classes, neither class is right.
    no_class, is_same = context.model.program.null_label or 0, labels[::2] == labels[1::2]
    shared = np.where(is_same, labels[::2], no_class).astype(np.int32)
    context.check_labels(shared, "a pair joins two classes, and is drawn without a class")
    if not np.all(is_same):
        several = f"{np.sum(~is_same)} of {pluralize(len(pairs), 'pair')}"
        context.notes.append(
            f"{several} join two classes and are drawn without a class; labels=CLASS draws all of them as one"
        )

    def run(sample: Sample) -> Edited:
        if inverse is None:
            ends = [edit.add_start_noise(plan, side, pairs, seed) for side in (pixels[::2], pixels[1::2])]
        else:
            # Guidance acts on the way down only; it has no part in the noise of an image.
            ends = [
                sample(edit.Edit(inverse, pairs, side), shared, guided=False) for side in (pixels[::2], pixels[1::2])
            ]
        repeated = np.repeat(shared, count)
        return sample(edit.interpolate(plan, *ends, count, mix), repeated), repeated

    shown = [("\n".join(names[2 * k : 2 * k + 2]), images[2 * k : 2 * k + 2]) for k in pairs]
    drawn = [(plan, len(pairs) * count)] + ([] if inverse is None else 2 * [(inverse, len(pairs))])
    return EditPlan(run, drawn, shown, ("first", "second", "between"))


def _inpaint(context: EditContext, *, known: str = "left", keep: bool = True) -> EditPlan:
    """Keep the known part of each image and sample the rest.

    Args:
        context: the request.
        known: one of `masks.PARTS`, or the path of a mask that is white where images are known and black elsewhere.
        keep: whether that part is the known one; otherwise everything else is.
    """
    mask = known_mask(context, known, keep, "mode.known")
    made = edit.inpaint(context.plan(), context.pixels(), mask[None])
    sources, labels = context.sources, np.repeat(context.sources.labels, context.setup.variants)
    hidden = np.where(mask == 1, sources.images, np.uint8(128))
    shown = [(name, np.stack(pair)) for name, *pair in zip(sources.names, sources.images, hidden, strict=True)]
    run = partial(sample_once, made, labels)
    return EditPlan(run, [(made.plan, len(labels))], shown, ("image", "known", "edited"))


MODES: Mapping[str, Callable[..., EditPlan]] = {
    "image_to_image": _image_to_image,
    "interpolate": _interpolate,
    "inpaint": _inpaint,
    "posterior": posterior,
}
