r"""The sampler plan: every solver as a table, one row per denoising estimate.

A row takes one evaluation of the network, or two where guidance is on. The state is a stack of R registers X
(register 0 is the input of the network) and the last H estimates D of x_0. Row i computes::

    F   = F_null + guidance_scale[i] (F_class - F_null)                 two evaluations where guidance_scale[i] != 1
    D_i = bounded( c_skip[i] X_0 + c_out[i] F(c_in[i] X_0, c_noise[i]) + classifier[i] grad log p(class | X_0) )
    X   <- state[i] X + denoised[i] (D_i, D_{i-1}, ...) + noise[i] exp(a_i + b_i G) z_i,     z_i ~ N(0, 1)

Clipping changes D and therefore the whole step, as in guided-diffusion: the eps of a step is that of the clipped D. A
plan with the tables `unclipped` and `clipped` keeps the eps of the network instead, as in diffusers. With U_i the
argument of bounded() above,

    D_i = bounded( clipped[i, 0] X_0 + clipped[i, 1] U_i ),     X <- ... + unclipped[i] U_i

G is the second
half of an output with twice the channels of the image, a learned variance, with (a, b) = learned[i]; without it the
factor is 1.

Row i leads from the level (alpha[i], sigma[i]) to (alpha[i+1], sigma[i+1]), of register 0. The last level is clean
data, (1, 0), unless the sampler is asked to stop at a noisy one. Noise levels may rise again (inversion, restarts), or
stay the same where a solver evaluates one level twice. All arithmetic on t is done when the plan is made: a backend
that runs a plan needs no schedule.

Guidance has one convention, ``u + w (c - u)``: w = 0 is unconditional, w = 1 conditional; `guidance` converts from the
others. F_null is the output of the same network without the class, or of a weaker network with it (autoguidance, see
`backend.Guidance`). Rescaling brings the standard deviation of each guided image's F back towards that of F_class,

    F <- rescale std(F_class)/std(F) F + (1 - rescale) F

`guidance_channels` guides the first channels of an image only; the others are those of F_class, as DiT and SiT do.

With y = (D - middle)/half, for the middle and half of the value range, estimates are bounded to |y| <= clip. With a
dynamic threshold each image has its own bound s, the quantile `threshold` of its |y| if that exceeds clip, but at most
`threshold_max`,

    y <- y bounded to [-s, s], times clip/s

References:
    Classifier-Free Diffusion Guidance (Ho & Salimans, 2022), https://arxiv.org/abs/2207.12598
    Diffusion Models Beat GANs on Image Synthesis (Dhariwal & Nichol, 2021), section 4, https://arxiv.org/abs/2105.05233
    Guiding a Diffusion Model with a Bad Version of Itself (Karras et al., 2024), https://arxiv.org/abs/2406.02507
    Common Diffusion Noise Schedules and Sample Steps are Flawed (Lin et al., 2023), section 3.4, rescaling,
    https://arxiv.org/abs/2305.08891
    Photorealistic Text-to-Image Diffusion Models with Deep Language Understanding (Saharia et al., 2022), section 2.3,
    dynamic thresholding, https://arxiv.org/abs/2205.11487
    Applying Guidance in a Limited Interval Improves Sample and Distribution Quality in Diffusion Models (Kynkaanniemi
    et al., 2024), https://arxiv.org/abs/2404.07724
    Improved Denoising Diffusion Probabilistic Models (Nichol & Dhariwal, 2021), eq. 15, learned variance,
    https://arxiv.org/abs/2102.09672
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.diffusion.process import Process
from diffusion_core.sampling.guidance import GuidanceScale, per_row
from diffusion_core.sampling.rows import RowSegment, RowSignature

__all__ = ["SamplerPlan", "plan_levels"]

Array = NDArray[np.float64]

PRESERVES = ("marginals", "mean", "nothing")
INTERVAL_ENDS = ("closed", "open")
_ROUNDING = 1e-9
# How near to an end of an open interval a level is the end itself.
_END = 1e-9
# Relative error of a row's coefficients and sums, which may be differences of numbers some ten times as large.
_UNIT = 1e-14


@dataclass(frozen=True, eq=False)
class SamplerPlan:
    """A sampler as float64 tables, with N rows, R registers and H estimates in its history.

    Args:
        name: the method, for display.
        t: the timestep at which each row evaluates, an integer or between two, with shape (N,).
        alpha: signal scale before each row and after the last, with shape (N+1,).
        sigma: noise scale before each row and after the last, with shape (N+1,).
        c_skip: column of the process, with shape (N,); so are c_out, c_in and c_noise.
        state: coefficients of the registers in the new registers, with shape (N, R, R).
        denoised: coefficients of the estimates, newest first, in the new registers, with shape (N, R, H).
        noise: standard deviation of the row's fresh noise in each register, with shape (N, R).
        guidance_scale: weight of the conditional over the unconditional output, with shape (N,).
        start_scale: standard deviation of the noise that sampling starts from.
        clip: estimates are bounded to [-clip, clip] for a value range of [-1, 1]; None for no bound.
        value_range: the values of black and white; see `with_value_range`.
        threshold: the quantile of dynamic thresholding, 0 to 1; None for the same bound on every image.
        threshold_max: the largest bound s of dynamic thresholding, at least clip; None for no limit.
        rescale: fraction of the rescaling of guided outputs, 0 to 1.
        guidance_channels: number of channels that guidance applies to; None for all.
        classifier: weight of the gradient of a classifier's log-probability, with shape (N,); None for no classifier.
        learned: (a, b) of a learned variance, with shape (N, 2); None for a fixed one.
        clipped: weights of register 0 and of the unclipped estimate in the estimate before it is clipped, with shape
            (N, 2); given together with `unclipped`.
        unclipped: coefficients of the unclipped estimate in the new registers, with shape (N, R); None for none.
        second_time: the second time that a network of two times reads, with shape (N,); None for the network's default.
        second_time_meaning: of that, one of `diffusion.second_time.MEANINGS`; None where the plan does not know it.
        preserves: what the rows preserve if every estimate is exact, D = x_0: ``"marginals"``, the alpha and sigma of
            the levels; ``"mean"``, alpha alone (DDPM's larger variance); or ``"nothing"``, for steps that are
            not straight in x (`clock`, `inversion`).

    Raises:
        DuetError: if shapes disagree, a number is not finite or out of range, or a row breaks the identity that an
            exact estimate D = x_0 leads from one level to the next.

    Example:
        >>> from diffusion_core.diffusion.schedule import linear
        >>> from diffusion_core.sampling.ddim import ddim
        >>> plan = ddim(Process(linear(), "v"), steps=4)
        >>> plan
        SamplerPlan('ddim-4', rows=4, registers=1, stochastic=False)
        >>> plan.t.tolist()
        [750, 500, 250, 0]
        >>> plan.state.shape, plan.denoised.shape, plan.noise.shape
        ((4, 1, 1), (4, 1, 1), (4, 1))
    """

    name: str
    t: NDArray
    alpha: Array
    sigma: Array
    c_skip: Array
    c_out: Array
    c_in: Array
    c_noise: Array
    state: Array
    denoised: Array
    noise: Array
    guidance_scale: Array
    start_scale: float = 1.0
    clip: float | None = None
    value_range: tuple[float, float] = (-1.0, 1.0)
    threshold: float | None = None
    threshold_max: float | None = None
    rescale: float = 0.0
    classifier: Array | None = None
    learned: Array | None = None
    clipped: Array | None = None
    unclipped: Array | None = None
    second_time: Array | None = None
    second_time_meaning: str | None = None
    guidance_channels: int | None = None
    preserves: str = "marginals"

    def __post_init__(self) -> None:
        rows, registers, _ = self.denoised.shape
        if rows == 0:
            raise DuetError(f"plan {self.name}: it has no rows")
        shapes = {"t": (rows,), "alpha": (rows + 1,), "sigma": (rows + 1,)}
        shapes |= {"state": (rows, registers, registers), "noise": (rows, registers)}
        shapes |= {name: (rows,) for name in ("c_skip", "c_out", "c_in", "c_noise", "guidance_scale", "classifier")}
        shapes |= {"learned": (rows, 2), "clipped": (rows, 2), "unclipped": (rows, registers), "second_time": (rows,)}
        for name, shape in shapes.items():
            table = getattr(self, name)
            if table is not None and table.shape != shape:
                raise DuetError(f"plan {self.name}: {name} has shape {table.shape}; it must be {shape}")
        for field in fields(self):
            table = getattr(self, field.name)
            if isinstance(table, np.ndarray):
                if not np.all(np.isfinite(table)):
                    raise DuetError(
                        f"plan {self.name}: {field.name} is not finite at row {np.argwhere(~np.isfinite(table))[0]}"
                    )
                table.setflags(write=False)
        if self.clip is not None and not 0 < self.clip < np.inf:
            raise DuetError(f"sampler.clip: {self.clip} was given; clip must be positive or null, which is no bound")
        if self.threshold is not None and not (0 < self.threshold <= 1 and self.clip is not None):
            raise DuetError(
                f"sampler.threshold: {self.threshold} was given with clip {self.clip}; it must be a quantile, "
                "above 0 and at most 1, and needs a clip"
            )
        if self.threshold_max is not None and (self.threshold is None or not self.clip <= self.threshold_max):
            raise DuetError(
                f"sampler.threshold_max: {self.threshold_max} was given with clip {self.clip} and threshold "
                f"{self.threshold}; it must be at least clip, and needs a threshold such as 0.995"
            )
        if (self.clipped is None) != (self.unclipped is None):
            raise DuetError(f"plan {self.name}: clipped and unclipped must be given together")
        if not 0 <= self.rescale <= 1:
            raise DuetError(f"sampler.rescale: {self.rescale} was given; it must be between 0 (no rescaling) and 1")
        channels = self.guidance_channels
        if channels is not None and (isinstance(channels, bool) or not isinstance(channels, int) or channels < 1):
            raise DuetError(
                f"sampler.guidance_channels: {channels} was given; it must be a number of channels, at least 1, or "
                "null for all"
            )
        check_choice(f"plan {self.name}: preserves", self.preserves, PRESERVES)
        if self.preserves != "nothing":
            self._check_rows()

    def __repr__(self) -> str:
        stochastic = bool(self.is_noisy.any())
        return f"SamplerPlan({self.name!r}, rows={self.rows}, registers={self.registers}, stochastic={stochastic})"

    def _check_rows(self) -> None:
        """Check that for D = x_0 each row takes the (alpha, sigma) of register 0 to those of the next level."""
        signal, scale, rounded = self._one_register() if self.registers == 1 else self._all_registers()
        wrong = np.abs(signal - self.alpha[1:])
        if self.preserves == "marginals":
            wrong = np.maximum(wrong, np.abs(scale - self.sigma[1:]))
        allowed = np.maximum(_ROUNDING * np.maximum(1.0, np.maximum(self.sigma[:-1], self.sigma[1:])), rounded)
        for row in np.flatnonzero(~(wrong <= allowed)):
            raise DuetError(
                f"plan {self.name}: row {row} (t = {self.t[row]:g}) does not lead from level "
                f"({self.alpha[row]:.6g}, {self.sigma[row]:.6g}) to ({self.alpha[row + 1]:.6g}, "
                f"{self.sigma[row + 1]:.6g})"
            )

    def _one_register(self) -> tuple[Array, Array, float]:
        """Return signal and noise of register 0 after each row, and the rounding error to allow.

        With a single register each row can be checked by itself.
        """
        state = self.state[:, 0, 0]
        signal = state * self.alpha[:-1] + self._estimates()[:, 0]
        return signal, np.hypot(state * self.sigma[:-1], self.noise[:, 0]), 0.0

    def _all_registers(self) -> tuple[Array, Array, Array]:
        """Return the same for several registers, followed from the start."""
        # Registers are a multiple of x_0, `signal`, plus noise with the covariance factor @ factor.T; all but the first
        # start empty. The factor, with at most R columns, keeps digits that the covariance would lose by squaring.
        first = (np.arange(self.registers) == 0).astype(np.float64)
        signal, factor = first * self.alpha[0], first[:, None] * self.sigma[0]
        # The accumulated rounding error of each register: large numbers that cancel in one row are inexact in the next.
        rounded = np.zeros(self.registers)
        after = np.empty((3, self.rows))
        for row in range(self.rows):
            state, noise = self.state[row], self.noise[row]
            sizes = rounded + _UNIT * (np.abs(signal) + np.linalg.norm(factor, axis=1))
            rounded = np.abs(state) @ sizes + _UNIT * (np.abs(self.denoised[row]).sum(axis=1) + np.abs(noise))
            signal = state @ signal + self._estimates()[row]
            factor = state @ factor
            if noise.any():
                factor = np.linalg.qr(np.column_stack([factor, noise]).T, mode="r").T
            after[:, row] = signal[0], np.linalg.norm(factor[0]), rounded[0]
        return after[0], after[1], after[2]

    def _estimates(self) -> Array:
        """Return the coefficient of x_0 in each new register if every estimate is x_0, with shape (N, R)."""
        total = self.denoised.sum(axis=2)
        return total if self.unclipped is None else total + self.unclipped

    @property
    def rows(self) -> int:
        """N, the number of rows: one network evaluation each, or two where guidance_scale is not 1."""
        return len(self.t)

    @property
    def registers(self) -> int:
        """R, the number of images that the state holds, register 0 among them."""
        return self.state.shape[1]

    @property
    def history(self) -> int:
        """H, the number of estimates in the history, the newest among them."""
        return self.denoised.shape[2]

    @property
    def is_noisy(self) -> NDArray[np.bool_]:
        """Whether each row adds fresh noise, with shape (N,)."""
        return np.any(self.noise != 0, axis=1)

    @property
    def is_guided(self) -> NDArray[np.bool_]:
        """Whether each row evaluates the network with and without the class, with shape (N,)."""
        return self.guidance_scale != 1

    def coefficients(self) -> Array:
        """Return all coefficients of each row in one vector, with shape (N, K); `RowSignature.row` unpacks them.

        Rows without noise have a = b = 0 for a learned variance, so that its factor is 1 for any output.
        """
        none = np.zeros(self.rows)
        learned = np.zeros((self.rows, 2)) if self.learned is None else self.learned * self.is_noisy[:, None]
        classifier = none if self.classifier is None else self.classifier
        columns = (self.c_noise, self.c_in, self.c_skip, self.c_out, self.guidance_scale, classifier)
        tables = [learned, self.state, self.denoised, self.noise]
        tables += [] if self.unclipped is None else [self.clipped, self.unclipped]
        tables += [] if self.second_time is None else [self.second_time]
        return np.column_stack([*columns, *(table.reshape(self.rows, -1) for table in tables)])

    def segments(self, longest: int | None = None, ends: Collection[int] = ()) -> Iterator[RowSegment]:
        """Yield the rows in order, as segments of rows with the same signature.

        Args:
            longest: the largest number of rows in a segment; None for no limit.
            ends: rows after which a segment ends in any case.
        """
        guided, first = self.is_guided, 0
        signatures = {g: self._signature(g) for g in set(guided.tolist())}
        for row in range(self.rows):
            last = row + 1 == self.rows or guided[row + 1] != guided[row]
            if last or row in ends or row + 1 - first == longest:
                yield RowSegment(signatures[bool(guided[row])], range(first, row + 1))
                first = row + 1

    def _signature(self, guided: bool) -> RowSignature:
        """Return the signature of the rows with or without guidance."""
        return RowSignature(
            guided=guided,
            classified=self.classifier is not None,
            learned=self.learned is not None,
            registers=self.registers,
            history=self.history,
            bounds=self.bounds,
            scale=self.scale,
            clip=self.clip,
            threshold=self.threshold,
            rescale=self.rescale if guided else 0.0,
            threshold_max=self.threshold_max,
            unclipped=self.unclipped is not None,
            two_times=self.second_time is not None,
            guidance_channels=self.guidance_channels if guided else None,
        )

    @property
    def scale(self) -> tuple[float, float]:
        """(middle, half) of the value range: estimates are middle + half y."""
        low, high = self.value_range
        return (low + high) / 2, (high - low) / 2

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The smallest and the largest estimate, or None for no bound."""
        middle, half = self.scale
        return None if self.clip is None else (middle - self.clip * half, middle + self.clip * half)

    def check_inpainting(self) -> None:
        """Raise an error for a plan with several registers: inpainting replaces the known part in only one."""
        if self.registers > 1:
            raise DuetError(
                f"inpainting: {self.name} has {self.registers} registers; use a sampler with one, such as ddpm, "
                "repaint, ddim or dpm_solver"
            )

    def is_self_contained(self, row: int) -> bool:
        """Return whether the rows from `row` on use nothing of earlier rows except register 0."""
        registers, history = np.arange(self.registers) > 0, np.ones(self.history, bool)
        for i in range(row, self.rows if row else 0):
            history = np.append(False, history[:-1])
            registers = (self.state[i] != 0) @ registers | (self.denoised[i] != 0) @ history
            if registers[0]:
                return False
        return True

    def tail(self, row: int) -> SamplerPlan:
        """Return the plan of the rows from `row` on, which starts from an image at their first noise level.

        Raises:
            DuetError: if there is no such row, or the rows from there on depend on earlier ones.
        """
        if not 0 <= row < self.rows:
            raise DuetError(f"plan {self.name}: row {row} was given; the plan has rows 0..{self.rows - 1}")
        if not self.is_self_contained(row):
            raise DuetError(f"plan {self.name}: the rows from {row} on depend on earlier rows")
        tables = {name: table[row:] for name, table in self.tables().items()}
        return replace(self, name=f"{self.name} from row {row}", **tables)

    def with_value_range(self, value_range: tuple[float, float]) -> SamplerPlan:
        """Return the plan for data with these values of black and white; a clip of 1 bounds estimates to them."""
        return replace(self, value_range=tuple(value_range))

    def with_guidance(
        self,
        weight: GuidanceScale,
        interval: Sequence[float] | None = None,
        rescale: float = 0.0,
        classifier: float = 0.0,
        interval_ends: str = "closed",
    ) -> SamplerPlan:
        """Return the plan with this guidance in place of its own.

        Args:
            weight: one number, one per row, or a ramp; see `guidance.per_row`.
            interval: smallest and largest sigma/alpha with guidance; outside it the weight is 1, the class alone.
                The largest may be infinite.
            rescale: see `SamplerPlan`.
            classifier: weight of log p(class | x_t): the score becomes score + classifier grad log p.
            interval_ends: whether the ends of the interval belong to it, ``"closed"``, or not, ``"open"``, up to
                rounding of 1e-9.

        Raises:
            DuetError: if a number is out of range.
        """
        guidance_scale = per_row(weight, self.rows)
        check_choice("sampler.interval_ends", interval_ends, INTERVAL_ENDS)
        if interval is None and interval_ends != "closed":
            raise DuetError(f"sampler.interval_ends: {interval_ends} was given without sampler.interval; give both")
        if interval is not None:
            try:
                low, high = map(float, interval)
            except (TypeError, ValueError):
                low, high = 1.0, 0.0
            if not 0 <= low < high:
                raise DuetError(
                    f"sampler.interval: {interval!r} was given; it must be two rising sigma/alpha, such as [0.2, 3]"
                )
            alpha, sigma = self.alpha[:-1], self.sigma[:-1]
            most = high * alpha if np.isfinite(high) else np.full(self.rows, np.inf)
            outside = (sigma < low * alpha) | (sigma > most)
            if interval_ends == "open":
                outside |= (sigma <= low * (1 + _END) * alpha) | (sigma >= (1 - _END) * most)
            if np.all(outside) and np.any(guidance_scale != 1):
                least, most = sigma[-1] / alpha[-1], sigma[0] / max(alpha[0], 1e-300)
                raise DuetError(
                    f"sampler.interval: {interval!r} was given; it contains none of the {self.rows} rows, whose "
                    f"sigma/alpha are {least:.4g} to {most:.4g}"
                )
            guidance_scale[outside] = 1.0
        weights = None
        if isinstance(classifier, bool) or not abs(classifier) < 1e30:  # a product with sigma^2 stays finite
            raise DuetError(f"sampler.classifier: {classifier} was given; it must be a finite number")
        if classifier:
            # As D = (x + sigma^2 score) / alpha. Without signal a classifier has no information: its weight is 0.
            safe = np.where(self.alpha[:-1] > 0, self.alpha[:-1], np.inf)
            weights = classifier * self.sigma[:-1] ** 2 / safe
        return replace(self, guidance_scale=guidance_scale, rescale=rescale, classifier=weights)

    def tables(self) -> dict[str, NDArray]:
        """Return every array of the plan by name, to print, save or compare."""
        return {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), np.ndarray)}


def plan_levels(process: Process, t: NDArray, end: float | None = None) -> dict[str, Array]:
    """Return the tables that do not depend on the solver: noise levels, columns, no guidance, and the start scale.

    Args:
        process: the process that the network was trained for.
        t: the timestep at which each row evaluates, an integer or between two, with shape (N,).
        end: the timestep whose level the last row leads to; None for clean data.
    """
    alpha, sigma = process.schedule(t)
    alpha_end, sigma_end = (1.0, 0.0) if end is None else process.schedule(end)
    columns = process.columns(t)
    return {
        "t": t,
        "alpha": np.append(alpha, alpha_end),
        "sigma": np.append(sigma, sigma_end),
        "c_skip": columns.c_skip,
        "c_out": columns.c_out,
        "c_in": columns.c_in,
        "c_noise": columns.c_noise,
        "guidance_scale": np.ones(len(t)),
        "start_scale": 1.0 if process.schedule.variance_preserving else float(sigma[0]),
    }
