"""The mode that samples images which agree with a linear measurement; see `diffusion_core.sampling.measurement`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.common.registry import build
from diffusion_core.data import from_uint8, to_uint8
from diffusion_core.files.safe_read import read_npy
from diffusion_core.images.decode import decode
from diffusion_core.images.files import is_image_file
from diffusion_core.sampling import edit
from diffusion_core.sampling.linear_operators import OPERATORS, LinearOperator
from diffusion_core.sampling.measurement import Measurement, observe
from experiments.editing.masks import known_mask
from experiments.editing.plan import EditPlan, sample_once
from experiments.editing.setup import EditContext

__all__ = ["make_operator", "posterior"]


def posterior(
    context: EditContext,
    *,
    operator: Any = "blur",
    noise: float = 0.05,
    method: str = "mmps",
    scale: float | None = None,
    iterations: int | None = None,
    adaptive: bool = False,
    measurement: str | None = None,
) -> EditPlan:
    """Sample images that agree with a measurement of each image, or with one from a file.

    Args:
        context: the request.
        operator: a name of `OPERATORS`, a name with options, a list of these that are applied one after another, or a
            `LinearOperator`.
        noise: standard deviation of the noise in the measurement, in units of half the value range.
        method: one of `measurement.POSTERIOR_METHODS`.
        scale: see `measurement.Measurement`, like iterations and adaptive.
        iterations: of the conjugate gradients.
        adaptive: an option of ``pigdm``.
        measurement: an image file, or a .npy file in the value range of the network; None measures the images.
    """
    setup, model, shape = context.setup, context.model, context.model.spec.image_shape
    made = make_operator(operator, shape, context)
    half = (model.value_range[1] - model.value_range[0]) / 2
    options = {"method": method, "scale": scale, "iterations": iterations, "adaptive": adaptive}
    if not noise >= 0:
        raise DuetError(f"mode.noise: {noise} was given; it must be a standard deviation, at least 0")
    if measurement is None:
        index = np.arange(len(context.sources.images))
        images = from_uint8(context.sources.images, np.float64, model.value_range)
        y, labels = observe(made, images, half * noise, setup.seed, index), context.sources.labels
        names = context.sources.names
    else:
        if any(value is not None for value in (setup.path, setup.data, setup.arrays)):
            raise DuetError("mode.measurement: a file was given together with images; leave out data and path")
        y = _read_measurement(Path(measurement).expanduser(), made, context)
        names = [f"{Path(measurement).stem} {k}".removesuffix(" 0" if len(y) == 1 else "") for k in range(len(y))]
        labels = context.labels_of(len(y))
    plan, labels = context.plan(), np.repeat(labels, setup.variants)
    given = Measurement(made, np.repeat(y, setup.variants, axis=0), half * noise, shape, **options)
    measured = _as_images(y, shape, model.value_range)
    if measurement is None:
        pairs = zip(names, context.sources.images, measured, strict=True)
        shown, heads = [(name, np.stack(pair)) for name, *pair in pairs], ("image", "measured", "edited")
    else:
        shown = [(name, image[None]) for name, image in zip(names, measured, strict=True)]
        heads = ("measured", "edited")
    return EditPlan(partial(sample_once, edit.posterior(plan, given), labels), [(plan, len(labels))], shown, heads)


def make_operator(operator: Any, shape: tuple[int, ...], context: EditContext | None = None) -> LinearOperator:
    """Return a linear operator for images of a shape.

    Args:
        operator: a name, a name with options, a list of these in the order in which they are applied, or an operator.
        shape: of an image, (h, w, c).
        context: reads the mask that an operator names.

    Raises:
        DuetError: for a name or an option that does not exist.
    """
    if isinstance(operator, LinearOperator):
        return operator
    if isinstance(operator, list | tuple):
        if not operator:
            raise DuetError("mode.operator: [] was given; it must be one operator at least")
        made = make_operator(operator[0], shape, context)
        for other in operator[1:]:
            made = make_operator(other, made.measure(np.zeros((1, *shape))).shape[1:], context) @ made
        return made
    options = dict(operator) if isinstance(operator, Mapping) else {"name": operator}
    name = options.pop("name", None)
    check_choice("mode.operator", name, OPERATORS)
    if name == "mask" and context is not None:
        keep = options.pop("keep", True)
        options["known"] = known_mask(context, options.pop("known", "left"), keep, "mode.operator.known")
    return build("mode.operator", OPERATORS, name, options, shape)


def _read_measurement(path: Path, operator: LinearOperator, context: EditContext) -> NDArray[np.float64]:
    """Return a measurement of one image, or of several, with shape (N, ...)."""
    shape = operator.measure(np.zeros((1, *context.model.spec.image_shape))).shape[1:]
    if is_image_file(path) and len(shape) == 3:
        image = np.asarray(decode(path).image.convert("RGB" if shape[-1] == 3 else "L"))
        pixels = image.reshape(*image.shape[:2], -1)
        if pixels.shape != shape:
            raise DuetError(f"mode.measurement: {path} is an image {pixels.shape}, but the operator makes {shape}")
        return from_uint8(pixels[None], np.float64, context.model.value_range)
    if path.suffix != ".npy":
        raise DuetError(f"mode.measurement: {path} was given; it must be an image file or an array in a .npy file")
    y = np.asarray(read_npy(path), np.float64)
    return y[None] if y.shape == shape else y


def _as_images(y: NDArray[np.float64], shape: tuple[int, ...], value_range: tuple[float, float]) -> NDArray[np.uint8]:
    """Return measurements as images of a shape, enlarged by whole factors; grey where they are no images."""
    middle = (value_range[0] + value_range[1]) / 2
    shown = np.full((len(y), *shape), middle)
    if y.ndim == 4 and y.shape[-1] in (1, shape[-1]) and not (shape[0] % y.shape[1] or shape[1] % y.shape[2]):
        large = y.repeat(shape[0] // y.shape[1], axis=1).repeat(shape[1] // y.shape[2], axis=2)
        shown = np.broadcast_to(large, shown.shape)
    return to_uint8(shown, value_range)
