r"""The sampler plan: every solver as a table, one row per network evaluation.

State is a stack of R registers X (register 0 is what the network sees) and the last H estimates D of
x_0. Row i says::

    D_i = clip( c_skip[i] X_0 + c_out[i] F(c_in[i] X_0, c_noise[i]) )
    F   = F_null + guidance[i] (F_class - F_null)                 two evaluations where guidance[i] != 1
    X   <- state[i] X + denoised[i] (D_i, D_{i-1}, ...) + noise[i] z_i,     z_i ~ N(0, 1)

Because D is clipped and the plan never recomputes eps from the raw output, a clipped estimate moves the
whole step, as guided-diffusion does it. Row i leads from the level (alpha[i], sigma[i]) to
(alpha[i+1], sigma[i+1]); the last level is clean data, (1, 0), unless a sampler is asked to stop at a noisy
one (`ddpm` with last_t). The arithmetic on t is done when the plan is made: nothing that runs a plan knows a
schedule. Guidance has one convention, ``u + w (c - u)``: w = 0 is unconditional, w = 1 conditional.

References:
    Classifier-Free Diffusion Guidance (Ho & Salimans, 2022), https://arxiv.org/abs/2207.12598
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_core.errors import DuetError
from diffusion_core.process import Process

__all__ = ["SamplerPlan", "plan_levels"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SamplerPlan:
    """A sampler as float64 tables; N rows, R registers, H remembered estimates.

    Args:
        name: the method, for people.
        t: the level index each row starts from, with shape (N,).
        alpha: signal scale before each row and after the last, with shape (N+1,).
        sigma: noise scale before each row and after the last, with shape (N+1,).
        c_skip: column of the process, with shape (N,); so are c_out, c_in and c_noise.
        state: registers to registers, with shape (N, R, R).
        denoised: estimates to registers, newest first, with shape (N, R, H).
        noise: scale of the row's fresh noise per register, with shape (N, R).
        guidance: weight of the class over no class, with shape (N,).
        start_scale: standard deviation of the noise that the sampler starts from.
        clip: estimates are clipped to [-clip, clip] in a data range of [-1, 1]; None leaves them.
        value_range: the data range; see `within`.
        keeps_marginals: whether a row maps the exact distribution at its level to that at the next one
            in variance too (false for DDPM's larger variance).

    Raises:
        DuetError: if shapes disagree, a number is not finite, or a row breaks the identity that an exact
            estimate D = x_0 leads from one level to the next.
    """

    name: str
    t: NDArray[np.int64]
    alpha: Array
    sigma: Array
    c_skip: Array
    c_out: Array
    c_in: Array
    c_noise: Array
    state: Array
    denoised: Array
    noise: Array
    guidance: Array
    start_scale: float = 1.0
    clip: float | None = None
    value_range: tuple[float, float] = (-1.0, 1.0)
    keeps_marginals: bool = True

    def __post_init__(self) -> None:
        rows, registers, _ = self.denoised.shape
        if rows == 0:
            raise DuetError(f"plan {self.name}: it has no rows")
        shapes = {"t": (rows,), "alpha": (rows + 1,), "sigma": (rows + 1,)}
        shapes |= {"state": (rows, registers, registers), "noise": (rows, registers)}
        shapes |= {name: (rows,) for name in ("c_skip", "c_out", "c_in", "c_noise", "guidance")}
        for name, shape in shapes.items():
            table = getattr(self, name)
            if table.shape != shape:
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
        if registers == 1:
            self._check_rows()

    def _check_rows(self) -> None:
        """With every D = x_0, a one-register row takes (alpha, sigma) at its level to those of the next."""
        state, denoised, noise = self.state[:, 0, 0], self.denoised[:, 0].sum(axis=1), self.noise[:, 0]
        signal = state * self.alpha[:-1] + denoised
        wrong = np.abs(signal - self.alpha[1:]) > 1e-9
        if self.keeps_marginals:
            wrong |= np.abs(np.hypot(state * self.sigma[:-1], noise) - self.sigma[1:]) > 1e-9
        if np.any(wrong):
            row = int(np.argmax(wrong))
            raise DuetError(
                f"plan {self.name}: row {row} (t = {self.t[row]}) does not lead from level "
                f"({self.alpha[row]:.6g}, {self.sigma[row]:.6g}) to "
                f"({self.alpha[row + 1]:.6g}, {self.sigma[row + 1]:.6g})"
            )

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
        return self.guidance != 1

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The least and the largest estimate, or None."""
        low, high = self.value_range
        middle, half = (low + high) / 2, (high - low) / 2
        return None if self.clip is None else (middle - self.clip * half, middle + self.clip * half)

    def within(self, value_range: tuple[float, float]) -> SamplerPlan:
        """The same plan for data whose black and white are these values: a clip of 1 ends there."""
        return replace(self, value_range=tuple(value_range))

    def with_guidance(self, weight: ArrayLike) -> SamplerPlan:
        """The same plan with another guidance weight, one number or one per row.

        Raises:
            DuetError: if it is neither.
        """
        try:
            guidance = np.broadcast_to(np.asarray(weight, np.float64), (self.rows,)).copy()
        except (TypeError, ValueError) as error:
            raise DuetError(
                f"sampler.guidance: {weight!r} was given; it must be a number, or one for each of {self.rows} rows"
            ) from error
        return replace(self, guidance=guidance)

    def tables(self) -> dict[str, NDArray]:
        """Every array of the plan by name, to print, save or compare."""
        return {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), np.ndarray)}


def plan_levels(process: Process, t: NDArray[np.int64], end: int | None = None) -> dict[str, Array]:
    """The tables that every plan over the levels t, shape (N,), shares: levels, columns, and no guidance.

    Args:
        process: what the network was trained for.
        t: the level each row starts from.
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
        "guidance": np.ones(len(t)),
        "start_scale": 1.0 if process.schedule.variance_preserving else float(sigma[0]),
    }
