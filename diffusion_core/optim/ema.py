r"""Exponential moving averages (EMA) of the weights, and profiles: the decay of each update.

    e <- e + (1 - d_k) (p - e),      e_0 = p_0

for update k = 1, 2, ..., which ends at n_k images seen after a batch of B. A profile is the function d:

    name            d_k
    fixed           decay
    warmup          min(decay, (1 + k) / (10 + k))
    half_life       2^(-B / h),  h = min(images, ramp n_{k-1})
    inverse_gamma   1 - (1 + (k - 1) / inv_gamma)^(-power), clipped to [min_decay, max_decay]
    power           (1 - B / n_k)^(gamma + 1), which is (1 - 1/k)^(gamma + 1) if B never changed

With a warm-up the average forgets the initial weights early, so that samples are useful from the start; later its decay
is that of `fixed`. A ramped half-life and the last two profiles begin with d_1 = 0, so that the initial weights do not
count at all. fixed, warmup and inverse_gamma take a later `start`: until then d = 0, the average equals the weights,
and k is counted from there.

A power function keeps its shape during the run: after k updates step j has the weight
``(j^(gamma+1) - (j-1)^(gamma+1)) / k^(gamma+1)``, the integral over its cell of the density

    p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1),      0 <= tau <= t

whose standard deviation is the fraction ``sigma_rel`` of the run's length t, for every t:

    sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3))

Everything is computed in float64 on the host, and a backend receives the decays as numbers. For arrays of updates a
profile returns arrays.

References:
    Denoising Diffusion Probabilistic Models (Ho et al., 2020), https://arxiv.org/abs/2006.11239 (fixed)
    tf.train.ExponentialMovingAverage, whose argument `num_updates` is the warm-up
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022), training code,
    https://arxiv.org/abs/2206.00364 (half_life)
    k-diffusion (Crowson), `EMAWarmup`, https://github.com/crowsonkb/k-diffusion (inverse_gamma)
    Analyzing and Improving the Training Dynamics of Diffusion Models (Karras et al., 2024), eqs. 121, 123 and 127,
    https://arxiv.org/abs/2312.02696 (power)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.common.registry import build

__all__ = [
    "PROFILES",
    "Ema",
    "Fixed",
    "HalfLife",
    "InverseGamma",
    "Power",
    "Profile",
    "Warmup",
    "ema_update",
    "make_ema",
    "make_profile",
    "power_exponent",
    "profile_options",
    "update_fractions",
]

Array = NDArray[np.float64]
Count = int | NDArray[np.int64]


class Profile(Protocol):
    """The decays of one moving average, a function of the update."""

    def __call__(self, update: Count, images_seen: Count, batch: int) -> Array:
        """Return the decay of update 1, 2, ... of the run, whose step has `batch` images and ends at `images_seen`."""


@dataclass(frozen=True)
class Fixed:
    """The same decay at every update.

    Args:
        decay: in [0, 1).
        start: the number of updates before averaging begins; until then the average equals the weights.
    """

    decay: float = 0.9999
    start: int = 0

    def __post_init__(self) -> None:
        _check_decay("decay", self.decay)
        _check_start(self.start)

    def __call__(self, update: Count, images_seen: Count, batch: int) -> Array:
        """See `Profile`."""
        return np.where(np.greater(update, self.start), self.decay, 0.0)


@dataclass(frozen=True)
class Warmup:
    """A decay that rises as (1 + k) / (10 + k) to a final value.

    Args:
        decay: the final decay, in [0, 1).
        start: as for `Fixed`.
    """

    decay: float = 0.9999
    start: int = 0

    def __post_init__(self) -> None:
        _check_decay("decay", self.decay)
        _check_start(self.start)

    def __call__(self, update: Count, images_seen: Count, batch: int) -> Array:
        """See `Profile`."""
        k = np.maximum(np.subtract(update, self.start), 0)
        return np.where(k > 0, np.minimum(self.decay, (1 + k) / (10 + k)), 0.0)


@dataclass(frozen=True)
class HalfLife:
    """A decay with a half-life in images, which is shorter at the start of the run (Karras et al., 2022).

    Args:
        images: the half-life, in images.
        ramp: the half-life is at most this multiple of the images seen before the update; None does not limit it.
    """

    images: float = 500_000
    ramp: float | None = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.images < np.inf:
            raise DuetError(f"ema.images: {self.images} was given; it must be a half-life in images, above 0")
        if self.ramp is not None and not 0 < self.ramp < np.inf:
            raise DuetError(f"ema.ramp: {self.ramp} was given; it must be above 0, or null for no ramp")

    def __call__(self, update: Count, images_seen: Count, batch: int) -> Array:
        """See `Profile`."""
        before = np.subtract(images_seen, batch)
        half_life = self.images if self.ramp is None else np.minimum(self.images, self.ramp * before)
        # The lower bound is that of the original code; it makes d = 0 in the first update.
        return 0.5 ** (batch / np.maximum(half_life, 1e-8))


@dataclass(frozen=True)
class InverseGamma:
    """A decay that rises as a power of the updates, as in k-diffusion; inv_gamma 1 and power 1 give the plain mean.

    Args:
        inv_gamma: the number of updates over which the rise begins.
        power: 2/3 for runs of a million updates or more, 3/4 for shorter ones, as the original advises.
        min_decay: the smallest decay.
        max_decay: the largest decay, at most 1.
        start: as for `Fixed`.
    """

    inv_gamma: float = 1.0
    power: float = 2 / 3
    min_decay: float = 0.0
    max_decay: float = 0.9999
    start: int = 0

    def __post_init__(self) -> None:
        for name in ("inv_gamma", "power"):
            if not 0 < getattr(self, name) < np.inf:
                raise DuetError(f"ema.{name}: {getattr(self, name)} was given; it must be above 0")
        if not 0 <= self.min_decay <= self.max_decay <= 1 or self.min_decay == 1:
            raise DuetError(
                f"ema.min_decay, ema.max_decay: {self.min_decay} and {self.max_decay} were given; "
                f"min_decay must be in [0, 1) and max_decay between min_decay and 1"
            )
        _check_start(self.start)

    def __call__(self, update: Count, images_seen: Count, batch: int) -> Array:
        """See `Profile`."""
        epoch = np.maximum(np.subtract(update, self.start + 1), 0)
        rising = 1.0 - (1.0 + epoch / self.inv_gamma) ** -self.power
        return np.where(np.greater(update, self.start), np.clip(rising, self.min_decay, self.max_decay), 0.0)


@dataclass(frozen=True)
class Power:
    """A power function of the time since the start of the run (Karras et al., 2024).

    Args:
        sigma_rel: the standard deviation of the profile as a fraction of the run's length, from 0.0001 to
            12^(-1/2) = 0.2887, which gives the plain mean.
    """

    sigma_rel: float = 0.1

    def __post_init__(self) -> None:
        power_exponent(self.sigma_rel)

    @cached_property
    def gamma(self) -> float:
        """The exponent of the power function."""
        return power_exponent(self.sigma_rel)

    def __call__(self, update: Count, images_seen: Count, batch: int) -> Array:
        """See `Profile`."""
        return (1.0 - np.divide(batch, images_seen)) ** (self.gamma + 1.0)


PROFILES: Mapping[str, type] = {
    "fixed": Fixed,
    "warmup": Warmup,
    "half_life": HalfLife,
    "inverse_gamma": InverseGamma,
    "power": Power,
}


def power_exponent(sigma_rel: float) -> float:
    """Return the gamma of a power function from its relative standard deviation (Karras et al., 2024, eq. 126).

    It is the largest root of ``gamma^3 + 7 gamma^2 + (16 - s) gamma + 12 - s`` with ``s = sigma_rel^-2``.

    Raises:
        DuetError: if no gamma of at least 0 has this standard deviation.

    Example:
        >>> round(power_exponent(0.1), 2)
        6.94
    """
    if not 1e-4 <= sigma_rel <= 12**-0.5:
        raise DuetError(f"ema.sigma_rel: {sigma_rel} was given; it must be between 0.0001 and 12^(-1/2) = 0.2887")
    s = float(sigma_rel) ** -2
    return max(float(np.roots([1.0, 7.0, 16.0 - s, 12.0 - s]).real.max()), 0.0)


def make_profile(name: str, **options: Any) -> Profile:
    """Return the profile with this name and these options.

    Raises:
        DuetError: if the name or an option is unknown, or a value is out of range.
    """
    return build("ema", PROFILES, name, options)


def profile_options(profile: Profile) -> dict[str, Any]:
    """Return the name and all options of a profile, from which `make_profile` makes it again."""
    return {"name": next(name for name, kind in PROFILES.items() if type(profile) is kind), **asdict(profile)}


@dataclass(frozen=True)
class Ema:
    """The moving averages of a run.

    Args:
        profiles: one for each average, at least one; samples are drawn with the first.
        snapshot_images: interval in images seen at which all averages are stored, and also at the end; 0 stores none.
    """

    profiles: tuple[Profile, ...]
    snapshot_images: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.snapshot_images, int) or self.snapshot_images < 0:
            images = self.snapshot_images
            raise DuetError(f"ema.snapshot_images: {images} was given; it must be a number of images, or 0 for never")

    def decays(self, update: int, images_seen: int, batch: int) -> tuple[float, ...]:
        """Return the decay of each average at one update; see `Profile`."""
        return tuple(float(profile(update, images_seen, batch)) for profile in self.profiles)


def make_ema(
    name: str = "warmup",
    extra: Sequence[Mapping[str, Any]] = (),
    snapshot_images: int = 0,
    **options: Any,
) -> Ema:
    """Return the moving averages of a run from plain data, as a configuration has it.

    Args:
        name: the profile of the first average, which samples are drawn with.
        extra: the profiles of further averages, each a mapping of its name and options.
        snapshot_images: as for `Ema`.
        options: of the first profile.

    Raises:
        DuetError: if a name or an option is unknown, or a value is out of range.

    Example:
        >>> ema = make_ema("fixed", decay=0.9, extra=[{"name": "power", "sigma_rel": 0.1}])
        >>> ema.decays(update=1, images_seen=64, batch=64)
        (0.9, 0.0)
    """
    profiles = [make_profile(name, **options)]
    if isinstance(extra, (str, Mapping)) or not isinstance(extra, Sequence):
        raise DuetError(f"ema.extra: {extra!r} was given; it must be a list, such as [{{name: power, sigma_rel: 0.1}}]")
    for profile in extra:
        if not isinstance(profile, Mapping) or "name" not in profile:
            raise DuetError(
                f"ema.extra: {profile!r} was given; each entry must be a name with options, such as "
                f"{{name: fixed, decay: 0.9}}"
            )
        profiles.append(make_profile(**profile))
    return Ema(tuple(profiles), snapshot_images)


def update_fractions(decays: Sequence[float], averages: int) -> list[float]:
    """Return 1 - d for each average, the weight of the new weights in its update.

    Raises:
        DuetError: if the number of decays is not `averages`.
    """
    if len(decays) != averages:
        raise DuetError(f"averages: {len(decays)} decays were given, but the trainer keeps {averages} averages")
    return [1.0 - decay for decay in decays]


def ema_update(ema: dict[str, NDArray], weights: dict[str, NDArray], decay: float) -> dict[str, NDArray]:
    """Return the average after one update, by name; the reference for every backend."""
    return {name: e + (1.0 - decay) * (weights[name] - e) for name, e in ema.items()}


def _check_decay(name: str, decay: float) -> None:
    if not 0 <= decay < 1:
        raise DuetError(f"ema.{name}: {decay} was given; it must be in [0, 1)")


def _check_start(start: int) -> None:
    if start < 0:
        raise DuetError(f"ema.start: {start} was given; it must be a number of updates, at least 0")
