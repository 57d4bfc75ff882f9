"""The augmentation of EDM: random geometric changes of an image, and a vector of nine numbers that describes them.

Each of six changes is made independently with probability p. The entries of a change that is not made are zero.
With a_0, a_1 in {0, 1}, a_3, a_4 uniform in (-pi, pi), and a_2, a_5, a_6, a_7 standard normal::

    change                matrix on coordinates about the centre         label
    horizontal flip       scale(1 - 2 a_0, 1)                            a_0                   with probability 1, not p
    vertical flip         scale(1, 1 - 2 a_1)                            a_1
    scaling               scale(b^a_2, b^a_2),  b = 2^0.2                a_2
    rotation              rotate(-a_3)                                   cos(a_3) - 1, sin(a_3)
    anisotropic scaling   rotate(a_4) scale(b^a_5, b^-a_5) rotate(-a_4)  a_5 cos(a_4), a_5 sin(a_4)
    translation           translate(a_6 / 8, a_7 / 8)  of the sides      a_6, a_7

They are composed in this order. The network is conditioned on the label: it learns from augmented images, and makes
images without augmentation when the label is zero.

Beyond its border an image is continued by reflection. It is resampled with a normalised Lanczos kernel of radius 3,
widened where the image shrinks. The paper filters with a wavelet at twice the resolution instead; images that are
only flipped are equal in both. The published code (NVlabs/edm, training/augment.py) has a_4 = 0 in half of the
anisotropic scalings; here a_4 is always drawn.

The numbers of an image depend on its position in the run, in streams "data/augment" and "data/augment/normal".

References:
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022), appendix F.2,
    https://arxiv.org/abs/2206.00364
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream

__all__ = ["LABEL", "augment", "changes", "warp"]

# The length of a label.
LABEL = 9
_BASE, _SHIFT, _RADIUS = 2.0**0.2, 1 / 8, 3


def augment(
    images: NDArray, positions: ArrayLike, seed: int, probability: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return randomly augmented images, and the label of each.

    Args:
        images: with shape (B, H, W, C).
        positions: the position of each image in the run, with shape (B,).
        seed: the seed of the run.
        probability: p of each change; 0.12 for CIFAR-10 in the paper.

    Returns:
        float64 images with shape (B, H, W, C), and labels with shape (B, 9).

    Raises:
        DuetError: the probability is not in [0, 1].
    """
    if not 0 <= probability <= 1:
        raise DuetError(f"data.augment: {probability} was given; it must be a probability, from 0 to 1")
    matrices, labels = changes(positions, seed, probability)
    changed = images.astype(np.float64)
    for k, matrix in enumerate(matrices):
        if np.any(matrix != np.eye(3)):
            changed[k] = warp(changed[k], matrix)
    return changed, labels


def changes(positions: ArrayLike, seed: int, probability: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the matrices of the images at these positions, with shape (B, 3, 3), and their labels, with shape (B, 9).

    A matrix maps (x, y, 1) of the old image to the new image. x points right and y down, from the centre, in units of
    the longer side; but a translation is in units of the width and of the height.
    """
    u = Stream(seed, "data/augment").uniform(positions, 10)
    a = Stream(seed, "data/augment/normal").normal(positions, (4,))
    on = u[:, :6] < np.array([1.0, *[probability] * 5])
    if probability == 0:
        on[:, 0] = False
    flip_x, flip_y = (on[:, k] & (u[:, 6 + k] < 0.5) for k in (0, 1))
    scaled, stretched = on[:, 2] * a[:, 0], on[:, 4] * a[:, 1]
    angle, axis = on[:, 3] * (2 * u[:, 8] - 1) * np.pi, (2 * u[:, 9] - 1) * np.pi
    shift = on[:, 5, None] * a[:, 2:]
    labels = [flip_x, flip_y, scaled, np.cos(angle) - 1, np.sin(angle)]
    labels += [stretched * np.cos(axis), stretched * np.sin(axis), shift[:, 0], shift[:, 1]]
    one = np.ones(len(u))
    # Without anisotropic scaling the two rotations must cancel exactly.
    axis = np.where(on[:, 4], axis, 0.0)
    matrices = _scale(1.0 - 2.0 * flip_x, 1.0 - 2.0 * flip_y)
    matrices = _rotate(-angle) @ _scale(_BASE**scaled, _BASE**scaled) @ matrices
    matrices = _rotate(axis) @ _scale(_BASE**stretched, _BASE**-stretched) @ _rotate(-axis) @ matrices
    move = _scale(one, one)
    move[:, :2, 2] = _SHIFT * shift
    return move @ matrices, np.stack(labels, axis=1).astype(np.float64)


def warp(image: NDArray[np.float64], matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return an image with shape (H, W, C), resampled under a matrix of `changes`."""
    height, width = image.shape[:2]
    unit = max(height, width)
    sides = np.array([width / unit, height / unit])
    matrix = matrix.copy()
    matrix[:2, 2] *= sides
    inverse = np.linalg.inv(matrix)
    centres = [(np.arange(extent) + 0.5) / unit - side / 2 for extent, side in zip((width, height), sides, strict=True)]
    y, x = (grid.ravel() for grid in np.meshgrid(centres[1], centres[0], indexing="ij"))
    # The position of each new pixel in the old image, in pixels; the centre of the first pixel is 0.
    at = inverse[:2, :2] @ np.stack([x, y]) + inverse[:2, 2:]
    at = (at + sides[:, None] / 2) * unit - 0.5
    at = np.where(np.abs(at - np.rint(at)) < 1e-9, np.rint(at), at)  # keep shifts by whole pixels exact
    stretch = max(1.0, float(np.linalg.norm(inverse[:2, :2], 2)))
    taps = np.arange(-int(np.ceil(_RADIUS * stretch)), int(np.ceil(_RADIUS * stretch)) + 1)
    first = np.floor(at)[..., None] + taps  # (2, H W, taps)
    weights = _lanczos((first - at[..., None]) / stretch)
    weights /= weights.sum(axis=-1, keepdims=True)
    first = first.astype(np.int64)
    columns, rows = _reflected(first[0], width), _reflected(first[1], height)
    values = image[rows[:, :, None], columns[:, None, :]]  # (H W, taps, taps, C)
    return np.einsum("pj, pi, pjic -> pc", weights[1], weights[0], values, optimize=True).reshape(image.shape)


def _lanczos(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(np.abs(x) < _RADIUS, np.sinc(x) * np.sinc(x / _RADIUS), 0.0)


def _reflected(index: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Reflect indices into 0 .. size-1; the first and the last pixel are not repeated."""
    if size == 1:
        return np.zeros_like(index)
    index = np.mod(index, 2 * (size - 1))
    return np.minimum(index, 2 * (size - 1) - index)


def _scale(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    matrix = np.zeros((len(x), 3, 3))
    matrix[:, 0, 0], matrix[:, 1, 1], matrix[:, 2, 2] = x, y, 1.0
    return matrix


def _rotate(angle: NDArray[np.float64]) -> NDArray[np.float64]:
    matrix = _scale(np.cos(angle), np.cos(angle))
    matrix[:, 1, 0] = np.sin(angle)
    matrix[:, 0, 1] = -matrix[:, 1, 0]
    return matrix
