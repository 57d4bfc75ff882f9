r"""The sampler plan: every solver as a table, one row per network evaluation.

State is a stack of R registers X (register 0 is what the network sees) and the last H estimates D of
x_0. Row i says::

    F   = F_null + guidance_scale[i] (F_class - F_null)                 two evaluations where guidance_scale[i] != 1
    D_i = bounded( c_skip[i] X_0 + c_out[i] F(c_in[i] X_0, c_noise[i]) + classifier[i] grad log p(class | X_0) )
    X   <- state[i] X + denoised[i] (D_i, D_{i-1}, ...) + noise[i] exp(a_i + b_i G) z_i,     z_i ~ N(0, 1)

Because D is bounded and the plan never recomputes eps from the raw output, a clipped estimate moves the
whole step, as guided-diffusion does it. G is the second half of an output with twice the channels of the image, a
learned variance, with (a, b) = learned[i]; without them the factor is 1.

Row i leads from the level (alpha[i], sigma[i]) to (alpha[i+1], sigma[i+1]), of register 0; the last level is clean
data, (1, 0), unless a sampler is asked to stop at a noisy one. Levels may rise again (inversion, time travel), or stand
still where a solver looks at one level twice. The arithmetic on t is done when the plan is made: nothing that runs a
plan knows a schedule.

Guidance has one convention, ``u + w (c - u)``: w = 0 is unconditional, w = 1 conditional; `guidance` converts from the
others. F_null is of the same network without the class, or of a weaker network with it (autoguidance, see
`backend.Guidance`). Rescaling brings the standard deviation of each guided image's F back towards that of F_class,

    F <- rescale std(F_class)/std(F) F + (1 - rescale) F

Estimates y, measured from the middle of the value range in units of half of it, are bounded to [-clip, clip]; with a
dynamic threshold each image has a bound s of its own, the quantile `threshold` of its |y| where that is more than clip,

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

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.diffusion.process import Process
from diffusion_core.sampling.guidance import GuidanceScale, per_row
from diffusion_core.sampling.rows import RowSegment, RowSignature

__all__ = ["SamplerPlan", "plan_levels"]

Array = NDArray[np.float64]

PRESERVES = ("marginals", "mean", "nothing")
_ROUNDING = 1e-9
# Of the coefficients of a row and their sums, which may be differences of numbers some ten times as large.
_UNIT = 1e-14


@dataclass(frozen=True, eq=False)
class SamplerPlan:
    """A sampler as float64 tables; N rows, R registers, H remembered estimates.

    Args:
        name: the method, for people.
        t: the level each row starts from, whole or between two, with shape (N,).
        alpha: signal scale before each row and after the last, with shape (N+1,).
        sigma: noise scale before each row and after the last, with shape (N+1,).
        c_skip: column of the process, with shape (N,); so are c_out, c_in and c_noise.
        state: registers to registers, with shape (N, R, R).
        denoised: estimates to registers, newest first, with shape (N, R, H).
        noise: scale of the row's fresh noise per register, with shape (N, R).
        guidance_scale: weight of the class over no class, with shape (N,).
        start_scale: standard deviation of the noise that the sampler starts from.
        clip: estimates are bounded to [-clip, clip] in a data range of [-1, 1]; None leaves them.
        value_range: the data range; see `with_value_range`.
        threshold: the quantile of dynamic thresholding, 0 to 1; None bounds every image alike.
        rescale: share of the rescaling of guided outputs, 0 to 1.
        classifier: weight of the gradient of a classifier's log-probability, with shape (N,); None is none.
        learned: (a, b) of a learned variance, with shape (N, 2); None is a fixed one.
        preserves: what the rows keep where every estimate is exact, D = x_0: ``"marginals"``, the levels' alpha and sigma;
            ``"mean"``, alpha alone (DDPM's larger variance); or ``"nothing"``, which is not for solvers.

    Raises:
        DuetError: if shapes disagree, a number is not finite or does not fit, or a row breaks the identity that an
            exact estimate D = x_0 leads from one level to the next.
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
    rescale: float = 0.0
    classifier: Array | None = None
    learned: Array | None = None
    preserves: str = "marginals"

    def __post_init__(self) -> None:
        rows, registers, _ = self.denoised.shape
        if rows == 0:
            raise DuetError(f"plan {self.name}: it has no rows")
        shapes = {"t": (rows,), "alpha": (rows + 1,), "sigma": (rows + 1,)}
        shapes |= {"state": (rows, registers, registers), "noise": (rows, registers)}
        shapes |= {name: (rows,) for name in ("c_skip", "c_out", "c_in", "c_noise", "guidance_scale", "classifier")}
        shapes |= {"learned": (rows, 2)}
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
        if self.clip is not None and not self.clip > 0:
            raise DuetError(f"plan {self.name}: clip must be positive or null, not {self.clip}")
        if self.threshold is not None and not (0 < self.threshold <= 1 and self.clip is not None):
            raise DuetError(
                f"sampler.threshold: {self.threshold} was given with clip {self.clip}; it is a share of the pixels, "
                "above 0 and at most 1, with a clip to bound them to"
            )
        if not 0 <= self.rescale <= 1:
            raise DuetError(f"sampler.rescale: {self.rescale} was given; it must be between 0 (not at all) and 1")
        if self.preserves not in PRESERVES:
            raise one_of(f"plan {self.name}: preserves", self.preserves, PRESERVES)
        if self.preserves != "nothing":
            self._check_rows()

    def __repr__(self) -> str:
        stochastic = bool(self.is_noisy.any())
        return f"SamplerPlan({self.name!r}, rows={self.rows}, registers={self.registers}, stochastic={stochastic})"

    def _check_rows(self) -> None:
        """With every D = x_0, each row takes the (alpha, sigma) of register 0 at its level to those of the next."""
        signal, scale, rounded = self._alone() if self.registers == 1 else self._together()
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

    def _alone(self) -> tuple[Array, Array, float]:
        """Signal and noise of register 0 after each row and what rounding may add: nothing else is carried, so that
        each row is judged by itself.
        """
        state = self.state[:, 0, 0]
        signal = state * self.alpha[:-1] + self.denoised[:, 0].sum(axis=1)
        return signal, np.hypot(state * self.sigma[:-1], self.noise[:, 0]), 0.0

    def _together(self) -> tuple[Array, Array, Array]:
        """The same of several registers, carried from the start."""
        # They are multiples of x_0, here `signal`, and noise with the covariance factor @ factor.T; all but the first
        # start empty. The factor, of R columns at most, keeps the digits that a covariance loses in squaring.
        first = (np.arange(self.registers) == 0).astype(np.float64)
        signal, factor = first * self.alpha[0], first[:, None] * self.sigma[0]
        # What rounding may have done to each register: large numbers that cancel in one row are inexact in the next.
        rounded = np.zeros(self.registers)
        after = np.empty((3, self.rows))
        for row in range(self.rows):
            state, noise = self.state[row], self.noise[row]
            sizes = rounded + _UNIT * (np.abs(signal) + np.linalg.norm(factor, axis=1))
            rounded = np.abs(state) @ sizes + _UNIT * (np.abs(self.denoised[row]).sum(axis=1) + np.abs(noise))
            signal = state @ signal + self.denoised[row].sum(axis=1)
            factor = state @ factor
            if noise.any():
                factor = np.linalg.qr(np.column_stack([factor, noise]).T, mode="r").T
            after[:, row] = signal[0], np.linalg.norm(factor[0]), rounded[0]
        return after[0], after[1], after[2]

    @property
    def rows(self) -> int:
        """N, the number of network evaluations (each two, where guidance is not 1)."""
        return len(self.t)

    @property
    def registers(self) -> int:
        """R, the number of images that the state holds."""
        return self.state.shape[1]

    @property
    def history(self) -> int:
        """H, the number of estimates that are remembered."""
        return self.denoised.shape[2]

    @property
    def is_noisy(self) -> NDArray[np.bool_]:
        """Whether each row draws noise, with shape (N,)."""
        return np.any(self.noise != 0, axis=1)

    @property
    def is_guided(self) -> NDArray[np.bool_]:
        """Whether each row needs the network with and without the class, with shape (N,)."""
        return self.guidance_scale != 1

    def coefficients(self) -> Array:
        """The coefficients of each row side by side, as `rows.RowSignature.row` takes them apart, with shape (N, K).

        Rows without noise have 0 for a and b of a learned variance: its factor is then 1, whatever the output.
        """
        none = np.zeros(self.rows)
        learned = np.zeros((self.rows, 2)) if self.learned is None else self.learned * self.is_noisy[:, None]
        classifier = none if self.classifier is None else self.classifier
        columns = (self.c_noise, self.c_in, self.c_skip, self.c_out, self.guidance_scale, classifier)
        tables = (learned, self.state, self.denoised, self.noise)
        return np.column_stack([*columns, *(table.reshape(self.rows, -1) for table in tables)])

    def segments(self, longest: int | None = None, ends: Collection[int] = ()) -> Iterator[RowSegment]:
        """The rows in order, cut where their form changes, where one is of the longest length, and after some rows.

        Args:
            longest: rows of a stretch; None is any number.
            ends: the rows that a stretch ends with.
        """
        guided, first = self.is_guided, 0
        forms = {g: self._form(g) for g in set(guided.tolist())}
        for row in range(self.rows):
            last = row + 1 == self.rows or guided[row + 1] != guided[row]
            if last or row in ends or row + 1 - first == longest:
                yield RowSegment(forms[bool(guided[row])], range(first, row + 1))
                first = row + 1

    def _form(self, guided: bool) -> RowSignature:
        """What its rows share beside numbers, of those that are guided or those that are not."""
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
        )

    @property
    def scale(self) -> tuple[float, float]:
        """(middle, half) of the value range: estimates are middle + half y."""
        low, high = self.value_range
        return (low + high) / 2, (high - low) / 2

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The least and the largest estimate, or None."""
        middle, half = self.scale
        return None if self.clip is None else (middle - self.clip * half, middle + self.clip * half)

    def check_inpainting(self) -> None:
        """Refuse a plan of several registers: a known part could be laid over one of them alone."""
        if self.registers > 1:
            raise DuetError(
                f"inpainting: {self.name} keeps {self.registers} pictures; use a sampler that keeps one, such as ddpm, "
                "repaint, ddim or dpm_solver"
            )

    def is_self_contained(self, row: int) -> bool:
        """Whether the rows from `row` on read nothing that earlier ones have left, beside register 0."""
        registers, history = np.arange(self.registers) > 0, np.ones(self.history, bool)
        for i in range(row, self.rows if row else 0):
            history = np.append(False, history[:-1])
            registers = (self.state[i] != 0) @ registers | (self.denoised[i] != 0) @ history
            if registers[0]:
                return False
        return True

    def tail(self, row: int) -> SamplerPlan:
        """The rows from `row` on, to start from a picture at their first level.

        Raises:
            DuetError: if there is no such row, or the rows from there on need earlier ones.
        """
        if not 0 <= row < self.rows:
            raise DuetError(f"plan {self.name}: row {row} was asked for; it has rows 0..{self.rows - 1}")
        if not self.is_self_contained(row):
            raise DuetError(f"plan {self.name}: the rows from {row} on need what earlier ones have left")
        tables = {name: table[row:] for name, table in self.tables().items()}
        return replace(self, name=f"{self.name} from row {row}", **tables)

    def with_value_range(self, value_range: tuple[float, float]) -> SamplerPlan:
        """The same plan for data whose black and white are these values: a clip of 1 ends there."""
        return replace(self, value_range=tuple(value_range))

    def with_guidance(
        self,
        weight: GuidanceScale,
        interval: Sequence[float] | None = None,
        rescale: float = 0.0,
        classifier: float = 0.0,
    ) -> SamplerPlan:
        """The same plan with another guidance.

        Args:
            weight: one number, one per row, or a ramp; see `guidance.per_row`.
            interval: least and largest sigma/alpha of the rows that are guided; the others have the class alone, 1.
            rescale: see `SamplerPlan`.
            classifier: how often log p(class | x_t) is counted: its gradient moves the score by so much of itself.

        Raises:
            DuetError: if a number does not fit.
        """
        guidance_scale = per_row(weight, self.rows)
        if interval is not None:
            try:
                low, high = map(float, interval)
            except (TypeError, ValueError):
                low, high = 1.0, 0.0
            if not 0 <= low < high:
                raise DuetError(
                    f"sampler.interval: {interval!r} was given; it must be two rising sigma/alpha, as [0.2, 3]"
                )
            alpha, sigma = self.alpha[:-1], self.sigma[:-1]
            outside = (sigma < low * alpha) | (sigma > high * alpha)
            if np.all(outside) and np.any(guidance_scale != 1):
                least, most = sigma[-1] / alpha[-1], sigma[0] / max(alpha[0], 1e-300)
                raise DuetError(
                    f"sampler.interval: {interval!r} was given; it holds none of the {self.rows} rows, whose "
                    f"sigma/alpha are {most:.4g} .. {least:.4g}"
                )
            guidance_scale[outside] = 1.0
        slope = None
        if classifier:
            # As D = (x + sigma^2 score) / alpha; where there is no signal a classifier has nothing to say.
            safe = np.where(self.alpha[:-1] > 0, self.alpha[:-1], np.inf)
            slope = classifier * self.sigma[:-1] ** 2 / safe
        return replace(self, guidance_scale=guidance_scale, rescale=rescale, classifier=slope)

    def tables(self) -> dict[str, NDArray]:
        """Every array of the plan by name, to print, save or compare."""
        return {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), np.ndarray)}


def plan_levels(process: Process, t: NDArray, end: float | None = None) -> dict[str, Array]:
    """The tables that every plan over the levels t, shape (N,), shares: levels, columns, and no guidance.

    Args:
        process: what the network was trained for.
        t: the level each row starts from, whole or between two.
        end: the level that the last row leads to; None is clean data.
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
