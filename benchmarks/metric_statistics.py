"""Simulations of the intervals of metrics: which value they hold, how often, and how wide they are.

    python -m benchmarks.metric_statistics             # 200 repetitions per cell: some minutes on a core
    python -m benchmarks.metric_statistics 40

Samples are N(0.1, 1.1^2) and the reference N(0, 1) in each of D features, so every distance is known or can be
averaged.
"""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray

from diffusion_core.metrics.difference import difference
from diffusion_core.metrics.evaluate import evaluate, random_sets
from diffusion_core.metrics.frechet import frechet_distance
from diffusion_core.metrics.metric import FeatureKind, SampleSet
from diffusion_core.metrics.protocol import Number
from diffusion_core.statistics import wilson_interval

KIND = FeatureKind("made", {})
SHIFT, SCALE = 0.1, 1.1
Array = NDArray[np.float64]


def measured(
    metric: dict[str, dict], samples: Array, reference: Array, sets: int = 20, reference_sets: int = 0, floors: int = 0
) -> Number:
    """Return the first number of a metric of features."""
    sides = (SampleSet({"features": x}, {}, KIND) for x in (samples, reference))
    fake, real = sides
    partition = random_sets(len(samples), sets, 0)
    return evaluate(metric, fake, partition, real, reference_sets=reference_sets, floors=floors).numbers[0]


def holds(number: Number, truth: float) -> tuple[bool, bool, float]:
    """Return whether the intervals hold a value, and the width of the first."""
    own, both = number.interval, number.interval_both
    return own.low <= truth <= own.high, both is not None and both.low <= truth <= both.high, own.high - own.low


def frechet(repetitions: int) -> None:
    """Print what the intervals of the Fréchet distance hold, and its bias."""
    print("Fréchet distance: samples alone hold E[value | n, reference] / the population's; bias plain, corrected")
    for d, n in ((8, 200), (32, 320), (64, 500), (64, 1000), (128, 500)):
        rng = np.random.default_rng(d + n)
        real = rng.standard_normal((4 * n, d))
        drawn = [SHIFT + SCALE * rng.standard_normal((n, d)) for _ in range(repetitions)]
        population = d * (SHIFT**2 + (SCALE - 1) ** 2)
        values = np.array([frechet_distance(x, real) for x in drawn])
        ideal = 2 * 1.96 * values.std(ddof=1)
        for sets in (5, 20):
            numbers = [measured({"frechet": {}}, x, real, sets) for x in drawn]
            own = np.mean([holds(number, values.mean())[:1] for number in numbers])
            wrong = np.mean([holds(number, population)[:1] for number in numbers])
            width = np.mean([holds(number, 0.0)[2] for number in numbers]) / ideal
            corrected = [number.corrected for number in numbers if number.corrected is not None]
            bias = f"{np.mean(corrected) - population:+.3f}" if corrected else "not given"
            print(
                f"  D {d:3}, n {n:4}, {sets:2} sets: {own:.2f} / {wrong:.2f}, width by ideal {width:.2f}; "
                f"bias {values.mean() - population:+.3f}, {bias} ({len(corrected)} of {repetitions})",
                flush=True,
            )


def kernel(repetitions: int) -> None:
    """Print how often the intervals of the kernel distance of all pairs hold that of the populations."""
    print("kernel distance: the interval over samples, and over both draws, hold the populations' distance")
    for d, n in ((4, 100), (16, 300), (16, 600)):
        rng = np.random.default_rng(d + n)

        def draw(rng: np.random.Generator = rng, n: int = n, d: int = d) -> tuple[Array, Array]:
            return SHIFT + SCALE * rng.standard_normal((n, d)), rng.standard_normal((n, d))

        numbers = [measured({"kernel": {"subsets": 0}}, *draw(), reference_sets=20) for _ in range(repetitions)]
        truth = np.mean([number.value for number in numbers])  # it is unbiased
        own, both, _ = np.mean([holds(number, truth) for number in numbers], axis=0)
        print(f"  D {d:3}, n {n:4}: {own:.2f}, {both:.2f}", flush=True)


def shared_noise(repetitions: int) -> None:
    """Print the interval of the difference of two models on shared noise."""
    print("difference of two models (scales 1.10 and 1.12) on shared noise: holds, width by that of one model")
    for d, n in ((16, 300), (32, 500)):
        rng = np.random.default_rng(d)
        real = rng.standard_normal((3 * n, d))
        pairs = []
        for _ in range(repetitions):
            noise = rng.standard_normal((n, d))
            pairs.append([measured({"frechet": {}}, scale * noise, real) for scale in (1.10, 1.12)])
        truth = np.mean([b.value - a.value for a, b in pairs])
        found = [(difference(a, b).interval, a.interval) for a, b in pairs]
        held = np.mean([own.low <= truth <= own.high for own, _ in found])
        width = np.mean([(own.high - own.low) / (one.high - one.low) for own, one in found])
        print(f"  D {d:3}, n {n:4}: {held:.2f}, {width:.2f}", flush=True)


def fractions(repetitions: int) -> None:
    """Print the coverage of intervals of fractions close to one."""
    print("fraction p of n samples: Wilson, and the jackknife's normal interval")
    for p, n in ((0.998, 500), (0.99, 360), (0.9, 500)):
        k = np.random.default_rng(n).binomial(n, p, 100 * repetitions)
        ends = {value: wilson_interval(int(value), n) for value in np.unique(k)}
        wilson = np.mean([ends[value].low <= p <= ends[value].high for value in k])
        half = 1.96 * np.sqrt(k / n * (1 - k / n) / (n - 1))
        print(f"  p {p}, n {n}: {wilson:.3f}, {np.mean(np.abs(k / n - p) <= half):.3f}")


def floors() -> None:
    """Print the digits Fréchet distance of real digits, and the floor at several sample counts."""
    from diffusion_core.data.digits import digits
    from diffusion_core.metrics.digits import layers

    real, held_out = (layers(digits(part=part).images)["features"] for part in ("train", "held_out"))
    print(
        f"digits: {len(held_out)} held-out against {len(real)} training digits: {frechet_distance(held_out, real):.2f}"
    )
    for n in (360, 500, 1000):
        number = measured({"frechet": {}}, real[:n], real, floors=50)
        print(f"  {n} drawn from the training digits: {number.floor:.2f}")


if __name__ == "__main__":
    times = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    for simulate in (fractions, kernel, shared_noise, frechet):
        simulate(times)
    floors()
