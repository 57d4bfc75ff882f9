"""Edit pictures with a checkpoint, whichever framework wrote it.

    python3 -m duet edit checkpoint=RUN out=DIR data=digits mode=image_to_image mode.strength=0.5
    python3 -m duet edit checkpoint=RUN out=DIR data=digits images=[3,8] mode=interpolate mode.count=12
    python3 -m duet edit checkpoint=RUN out=DIR data=digits mode=inpaint sampler=repaint backend=tf
    python3 -m duet edit checkpoint=RUN out=DIR path=picture.png labels=7 mode=inpaint mode.known=mask.png

The pictures are those of a data set by number, or of a file: a `.npz` with uint8 images (N, H, W, C) and, if it has
them, labels, as `experiments.sample` writes it; or one picture. `sampler` and what leads it are those of
`experiments.sample`. Written are `edited.npz`, and `edited.png` with each picture in front of what was made of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig, ListConfig, OmegaConf

from diffusion_core.backend.interface import Guidance
from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.common.registry import build
from diffusion_core.common.text import pluralize
from diffusion_core.data import from_uint8, to_uint8
from diffusion_core.data.square import SUFFIXES, fit_image, open_image
from diffusion_core.files.atomic import write_atomically
from diffusion_core.files.safe_read import open_npz
from diffusion_core.images import render
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.model.generate import generate
from diffusion_core.runs.checkpoint import load_checkpoint, weights_hash
from diffusion_core.runs.run_directory import describe_environment, write_json, write_samples
from diffusion_core.sampling import SamplerPlan, edit
from diffusion_core.training.objective import network_labels
from experiments import common
from experiments.config.convert import plain
from experiments.config.entry import command
from experiments.runtime.progress import Counter

__all__ = ["MODES"]


@dataclass(frozen=True, eq=False)
class Sources:
    """The pictures of a configuration: uint8 with shape (N, H, W, C), the network's label of each, and their names."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int32]
    names: list[str]


class EditContext:
    """The parts of a configuration of `experiments.edit`, as objects of the core."""

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg, self.seed = cfg, int(cfg.seed)
        for name in ("variants", "batch"):
            if cfg[name] < 1:
                raise DuetError(f"{name}: {cfg[name]} was given; it must be at least 1")
        self.checkpoint = load_checkpoint(cfg.checkpoint)
        cfg.weights = common.which_of("weights", cfg.weights, self.checkpoint)
        self.leaders = common.GuidanceModels.from_config(cfg)
        cfg.sampler, sampler = common.sampler_of(cfg.sampler, self.checkpoint)
        self.said = [sampler]  # what a person is told when all is known to fit

    @property
    def model(self) -> DiffusionModel:
        """What the network is."""
        return self.checkpoint.model

    def plan(self, **options: Any) -> SamplerPlan:
        """The plan of the sampler, which its leaders fit; with other options of these names, a part of that."""
        sampler, guide = plain(self.cfg.sampler), self.leaders.guide
        if not options:
            return self.leaders.plan(self.model, sampler)
        # What leads the whole leads its parts, though a part may have another guidance, or none.
        return common.plan_of(self.model, sampler | options, guide and guide.model)

    @cached_property
    def sources(self) -> Sources:
        """The pictures that are edited."""
        cfg, model = self.cfg, self.model
        if (cfg.path is None) == ("name" not in cfg.data):
            raise DuetError("data, path: give the pictures by one of the two, as data=digits or path=FILE")
        images, labels, names = self._of_file(Path(cfg.path)) if cfg.path is not None else self._of_data()
        if images.shape[1:] != model.spec.image_shape:
            raise DuetError(f"images: they are {images.shape[1:]}, but the network takes {model.spec.image_shape}")
        if cfg.labels is not None:
            return Sources(images, common.sample_labels(cfg.labels, len(images), model, self.leaders.classes), names)
        if labels is None or not model.program.classes:
            return Sources(images, np.full(len(images), model.program.null_label or 0, np.int32), names)
        return Sources(images, labels, names)

    def _of_data(self) -> tuple[NDArray[np.uint8], NDArray[np.int32], list[str]]:
        dataset = common.load_data(self.cfg.data)
        common.check_data(dataset, self.model.spec)
        chosen, program = self._chosen(len(dataset)), self.model.program
        labels = network_labels(dataset.labels[chosen], program.classes, program.null_label)
        return dataset.images[chosen], labels, [f"{self.cfg.data.name} {k}" for k in chosen]

    def _of_file(self, path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int32] | None, list[str]]:
        if path.suffix.lower() in SUFFIXES:
            return self.picture(path, self.model.spec.in_channels)[None], None, [path.stem]
        with open_npz(path, "a picture or an .npz with images") as file:
            images, labels = file["images"], file.get("labels")
        if images.dtype != np.uint8 or images.ndim != 4:
            raise DuetError(f"path: {path} has {images.dtype} images {images.shape}; they must be uint8 (N, H, W, C)")
        chosen = self._chosen(len(images))
        labels = None if labels is None else labels[chosen].astype(np.int32)
        return images[chosen], labels, [f"{path.stem} {k}" for k in chosen]

    def picture(self, path: Path, channels: int) -> NDArray[np.uint8]:
        """The picture of a file in the size of the network, with shape (H, W, channels); says what was done to it."""
        picture, size = open_image(path, channels), self.model.spec.image_size
        if picture.size != (size, size):
            width, height = picture.size
            cut = "" if width == height else f"cut to its central square of {min(picture.size)} and "
            self.said.append(f"{path}: of {width} x {height} pixels, {cut}resized to {size} x {size} (Lanczos)")
        return fit_image(picture, size)

    def _chosen(self, count: int) -> list[int]:
        given = self.cfg.images
        chosen = list(given) if isinstance(given, ListConfig) else [given]
        if not chosen or not all(isinstance(k, int) and 0 <= k < count for k in chosen):
            raise DuetError(f"images: {given} was given; it is a list of numbers of pictures, 0 to {count - 1}")
        return chosen

    def pixels(self) -> NDArray[np.float64]:
        """The pictures in the range of the data, each as often as there are variants of it."""
        images = np.repeat(self.sources.images, self.cfg.variants, axis=0)
        return from_uint8(images, np.float64, self.model.value_range)


class Sampled(Protocol):
    """Samples of an edit with labels, near the range of the data; not `led`, by the network alone."""

    def __call__(self, made: edit.Edit, labels: NDArray[np.int32], *, led: bool = True) -> NDArray:
        """Draw them."""


@dataclass(frozen=True, eq=False)
class Work:
    """What a mode does, when everything that a person can get wrong has been looked at.

    Args:
        run: from a function that samples an edit to the edited pictures, with shape (N, H, W, C), and their labels.
        drawn: the plans that are run, each with how many pictures go through it.
        shown: what stands in front of each row of edited pictures: its caption, and uint8 pictures (K, H, W, C).
        heads: what each of the K is, and at last what is made of them.
    """

    run: Callable[[Sampled], tuple[NDArray, NDArray[np.int32]]]
    drawn: list[tuple[SamplerPlan, int]]
    shown: list[tuple[str, NDArray[np.uint8]]]
    heads: tuple[str, ...]


def _all_at_once(made: edit.Edit, labels: NDArray[np.int32], sampled: Sampled) -> tuple[NDArray, NDArray[np.int32]]:
    return sampled(made, labels), labels


def _image_to_image(given: EditContext, *, strength: float = 0.6) -> Work:
    """Each picture with noise, sampled from there; see `sampling.edit`."""
    plan = edit.tail(given.plan, strength)
    made = edit.image_to_image(plan, given.pixels(), given.seed)
    sources, labels = given.sources, np.repeat(given.sources.labels, given.cfg.variants)
    shown = [(name, image[None]) for name, image in zip(sources.names, sources.images, strict=True)]
    run = partial(_all_at_once, made, labels)
    return Work(run, [(plan, len(labels))], shown, ("picture", "edited"))


ENCODINGS = ("noise", "inversion")


def _interpolate(
    given: EditContext, *, strength: float = 0.6, encode: str = "inversion", mix: str | None = None, count: int = 8
) -> Work:
    """From each first to each second picture of pairs.

    Args:
        given: the configuration.
        strength: the share of the rows that are run.
        encode: ``"inversion"``, each picture's own noise by DDIM, or ``"noise"``, the same for both. Inversion is the
            default: it leads back to both pictures, up to the error of the steps and what guidance does on the way
            down. A noise that has nothing to do with them ends at other pictures, and at a high strength these are
            nearly one. It asks the network half as often.
        mix: one of `edit.MIXES`; None is lerp for noise and slerp for inversion.
        count: samples from one to the other.
    """
    if encode not in ENCODINGS:
        raise one_of("mode.encode", encode, ENCODINGS)
    if given.cfg.variants != 1:
        raise DuetError(f"variants: {given.cfg.variants} was given; an interpolation has one, so use 1")
    images, labels, names = given.sources.images, given.sources.labels, given.sources.names
    if len(images) % 2:
        raise DuetError(
            f"images: {pluralize(len(images), 'picture')} given; an interpolation needs pairs, from one to the other"
        )
    plan, pixels = edit.tail(given.plan, strength), given.pixels()
    pairs = np.arange(len(images) // 2)
    mix = mix or ("lerp" if encode == "noise" else "slerp")
    edit.interpolate(plan, pixels[::2], pixels[1::2], count, mix)  # looks at count and mix
    inverse = None
    if encode == "inversion":
        inverse = given.model.plan("ddim_inversion", steps=None, spacing=edit.decreasing_timesteps(plan.t))
    # Of two classes neither is that of the pictures between.
    nothing, same = given.model.program.null_label or 0, labels[::2] == labels[1::2]
    shared = np.where(same, labels[::2], nothing).astype(np.int32)
    if not np.all(same):
        several = f"{np.sum(~same)} of {pluralize(len(pairs), 'pair')}"
        given.said.append(f"of two classes, so drawn without a class: {several} (labels=CLASS draws all of one)")

    def run(sampled: Sampled) -> tuple[NDArray, NDArray[np.int32]]:
        if inverse is None:
            ends = [edit.add_start_noise(plan, some, pairs, given.seed) for some in (pixels[::2], pixels[1::2])]
        else:
            # What leads the way down has no part in what a picture's own noise is.
            ends = [sampled(edit.Edit(inverse, pairs, some), shared, led=False) for some in (pixels[::2], pixels[1::2])]
        each = np.repeat(shared, count)
        return sampled(edit.interpolate(plan, *ends, count, mix), each), each

    shown = [("\n".join(names[2 * k : 2 * k + 2]), images[2 * k : 2 * k + 2]) for k in pairs]
    drawn = [(plan, len(pairs) * count)] + ([] if inverse is None else 2 * [(inverse, len(pairs))])
    return Work(run, drawn, shown, ("first", "second", "between"))


# Which part of a picture is known, as shares of its height and width: rows, then columns.
PARTS: Mapping[str, tuple[float, float, float, float]] = {
    "left": (0.0, 1.0, 0.0, 0.5),
    "right": (0.0, 1.0, 0.5, 1.0),
    "top": (0.0, 0.5, 0.0, 1.0),
    "bottom": (0.5, 1.0, 0.0, 1.0),
    "centre": (0.25, 0.75, 0.25, 0.75),
}


def _inpaint(given: EditContext, *, known: str = "left", keep: bool = True) -> Work:
    """What is not known of each picture.

    Args:
        given: the configuration.
        known: one of `PARTS`, or a picture that is white where pictures are known and black where not.
        keep: whether that part is known; else all but it is.
    """
    mask = _mask(given, known)
    mask = mask if keep else 1.0 - mask
    made = edit.inpaint(given.plan(), given.pixels(), mask[None])
    sources, labels = given.sources, np.repeat(given.sources.labels, given.cfg.variants)
    hidden = np.where(mask == 1, sources.images, np.uint8(128))
    shown = [(name, np.stack(pair)) for name, *pair in zip(sources.names, sources.images, hidden, strict=True)]
    run = partial(_all_at_once, made, labels)
    return Work(run, [(made.plan, len(labels))], shown, ("picture", "known", "edited"))


def _mask(given: EditContext, known: str) -> NDArray[np.float64]:
    height, width, _ = given.model.spec.image_shape
    if known in PARTS:
        rows, columns = ((np.arange(n) + 0.5) / n for n in (height, width))
        top, bottom, left, right = PARTS[known]
        inside = ((top < rows) & (rows < bottom))[:, None] & ((left < columns) & (columns < right))
        return inside[..., None].astype(np.float64)
    if Path(known).suffix.lower() not in SUFFIXES:
        raise one_of("mode.known", known, [*PARTS, "the path of a picture"])
    return (given.picture(Path(known), 1) > 127).astype(np.float64)


MODES: Mapping[str, Callable[..., Work]] = {
    "image_to_image": _image_to_image,
    "interpolate": _interpolate,
    "inpaint": _inpaint,
}


@command("edit", result=("edited.npz", "edited pictures"), options={"mode": MODES})
def main(cfg: DictConfig) -> None:
    """Look at everything that is asked for, then edit, and write the pictures."""
    given = EditContext(cfg)
    options = plain(cfg.mode)
    work = build("mode", MODES, options.pop("name", "none"), options, given)
    out = Path(cfg.out)
    backend = common.open_backend(cfg, common.sampling_calls(work.drawn, cfg.batch))
    print("\n".join(given.said), flush=True)
    network = backend.network(given.model.program, common.weights_of(given.checkpoint.state, cfg.weights))
    write_atomically(out / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True).encode())
    write_json(out / "environment.json", describe_environment(backend.describe()))
    guidance = given.leaders.guidance(backend)

    def sampled(made: edit.Edit, labels: NDArray[np.int32], *, led: bool = True) -> NDArray:
        with Counter(made.plan.name, len(labels)) as progress:
            return generate(
                backend, network, made.plan, given.model.spec.image_shape, labels, given.seed, batch=cfg.batch,
                progress=progress, guidance=guidance if led else Guidance(), edit=made,
            )  # fmt: skip

    images, labels = work.run(sampled)
    finished = to_uint8(images, given.model.value_range)
    facts = {"mode": cfg.mode.name, "seed": given.seed, "images_seen": given.checkpoint.images_seen}
    facts |= {"weights_sha256": weights_hash(cfg.checkpoint, cfg.weights), "backend": cfg.backend.name}
    write_samples(out / "edited.npz", finished, labels, **facts)
    render.save_png(out / "edited.png", sheet_of(given.model, work, finished, labels))
    print(f"{pluralize(len(finished), 'picture')}: {out / 'edited.png'}")


def sheet_of(
    model: DiffusionModel, work: Work, finished: NDArray[np.uint8], labels: NDArray[np.int32]
) -> NDArray[np.uint8]:
    """The picture: each row's own pictures, and what was made of them, with the class that they were made by."""
    rows, each, program = [], len(finished) // len(work.shown), model.program
    for k, (name, first) in enumerate(work.shown):
        label = labels[k * each]
        words = [] if program.null_label is None else ["no class" if label == program.null_label else f"class {label}"]
        rows.append(("\n".join([name, *words]), np.concatenate([first, finished[k * each : (k + 1) * each]])))
    heads = [*((head, 1) for head in work.heads[:-1]), (work.heads[-1], each)]
    return render.labelled_rows(rows, scale=max(1, 64 // model.spec.image_size), heads=heads)


if __name__ == "__main__":
    main()
