"""A network that a backend built, and what sampling reads besides it and the plan: guidance, noise and a callback."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.networks.program import Program
from diffusion_core.networks.weights import Weights
from diffusion_core.sampling.measurement import Measurement
from diffusion_core.sampling.plan import SamplerPlan

__all__ = [
    "Forward",
    "Guidance",
    "MIN_STD",
    "Network",
    "NoiseSource",
    "StepCallback",
    "VJP",
]


# Lower bound of the standard deviation that guidance rescaling divides by, so that an output of zeros stays zero.
MIN_STD = 1e-12

# A network's output F of (x, c_noise, label, features); see `Network.forward`.
Forward = Callable[..., NDArray]
# The same with a cotangent after the label, giving (F, J^T cotangent); see `Network.vjp`.
VJP = Callable[..., tuple[NDArray, NDArray]]
# z_i for row i of a plan, with the shape of the images.
NoiseSource = Callable[[int], NDArray]


@dataclass(frozen=True)
class StepCallback:
    """A callback on the state of sampling, as diffusers' `callback_on_step_end`.

    Args:
        function: called with (row, register 0, estimate of x_0); both arrays are NumPy arrays (B, H, W, C).
        rows: the rows of the plan after which it is called; None means every row. The rows between run as one segment.

    Example:
        >>> import numpy as np
        >>> seen = []
        >>> callback = StepCallback(lambda row, x, estimate: seen.append(row), rows=(0, 2))
        >>> for row in range(3):
        ...     callback(row, np.zeros((1, 2, 2, 3)), np.zeros((1, 2, 2, 3)))
        >>> seen
        [0, 2]
    """

    function: Callable[[int, NDArray, NDArray], None]
    rows: Collection[int] | None = None

    def __call__(self, row: int, x: NDArray, estimate: NDArray) -> None:
        """Call the function if `row` is one of the selected rows."""
        if self.rows is None or row in self.rows:
            self.function(row, x, estimate)

    def selected_rows(self, rows: int) -> Collection[int]:
        """Return the selected rows of a plan with this number of rows."""
        return range(rows) if self.rows is None else self.rows


class Network(Protocol):
    """A program built in a framework."""

    program: Program

    def forward(
        self,
        x: NDArray,
        c_noise: NDArray,
        label: NDArray,
        features: NDArray | None = None,
        estimate: NDArray | None = None,
        second_time: NDArray | None = None,
    ) -> NDArray:
        """Return the raw output F in evaluation mode.

        Args:
            x: images multiplied by c_in, with shape (B, H, W, C).
            c_noise: encoded noise levels, with shape (B,).
            label: classes, with shape (B,).
            features: with shape (B, program.features); None means zeros.
            estimate: an estimate of x_0 for a self-conditioned program, with the shape of x; None means zeros.
            second_time: for a program of two times, with shape (B,); None means `Program.default_second_time`.
        """

    def vjp(
        self,
        x: NDArray,
        c_noise: NDArray,
        label: NDArray,
        cotangent: NDArray,
        features: NDArray | None = None,
        second_time: NDArray | None = None,
    ) -> tuple[NDArray, NDArray]:
        """Return (F, J^T cotangent), with J = dF/dx in evaluation mode.

        The images of a batch are independent, each with its own J. The cotangent has the shape of F, the product the
        shape of x.
        """

    def jvp(
        self,
        x: NDArray,
        c_noise: NDArray,
        label: NDArray,
        tangents: tuple[NDArray, NDArray, NDArray],
        features: NDArray | None = None,
        second_time: NDArray | None = None,
    ) -> tuple[NDArray, NDArray]:
        """Return (F, dF) in evaluation mode: the output, and its derivative along a direction.

        Args:
            x: as for `forward`, like the other arguments.
            c_noise: encoded noise levels.
            label: classes.
            tangents: the direction (of x, of c_noise, of second_time), each with the shape of its input.
            features: additional numbers.
            second_time: the second time.
        """

    def weights(self) -> Weights:
        """Return the weights by name, in the canonical axes."""

    def load(self, weights: Weights) -> None:
        """Replace the weights; traced and compiled functions stay valid."""


@dataclass(frozen=True, eq=False)
class Guidance:
    """The networks, images and conditions that guide sampling in addition to the plan; all are optional.

    Args:
        guide: the network that guided rows move away from, evaluated with the class (autoguidance); None means
            classifier-free guidance, away from the sampled network without a class.
        classifier: a network of logits (B, K); rows with a weight `SamplerPlan.classifier` follow the gradient of its
            log p(class | x).
        mask: 1 where the image is known and 0 elsewhere, with shape (B, H, W, 1) or (B, H, W, C).
        known: returns the known image at the noise level that row i leads to, with shape (B, H, W, C).
        features: numbers in addition to the class, with shape (B, program.features); None means zeros.
        null_features: the same for the evaluation without a class in classifier-free guidance; None means zeros.
        measurement: what the images agree with, and how; see `sampling.measurement`.
    """

    guide: Network | None = None
    classifier: Network | None = None
    mask: NDArray | None = None
    known: NoiseSource | None = None
    features: NDArray | None = None
    null_features: NDArray | None = None
    measurement: Measurement | None = None

    def check(self, plan: SamplerPlan) -> None:
        """Check that the guidance fits the plan.

        Raises:
            DuetError: for a classifier without a weight or a weight without a classifier, a mask without a known image
                or the reverse, a mask with a solver whose state is more than one image, or a measurement with a mask, a
                classifier or a plan for which its method is not defined.
        """
        if plan.classifier is not None and self.classifier is None:
            raise DuetError("sampler.classifier: a weight was given without a classifier; add classifier=RUN, or use 0")
        if plan.classifier is None and self.classifier is not None:
            raise DuetError(
                "classifier: a classifier was given with weight 0; add sampler.classifier=1, or leave it out"
            )
        if (self.mask is None) != (self.known is None):
            raise DuetError("inpainting: the mask or the known image is missing; give both, or neither")
        if self.mask is not None:
            plan.check_inpainting()
        if self.measurement is not None:
            self.measurement.check(plan)
            if self.mask is not None or self.classifier is not None:
                other = "a mask" if self.mask is not None else "a classifier"
                raise DuetError(f"posterior: a measurement was given with {other}; it takes neither, so leave one out")
