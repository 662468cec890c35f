"""Confidence intervals for the difference of two scores over the same units, by the bootstrap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
CONFIDENCE = 0.95

Floats = NDArray[np.float64]
Statistic = Callable[[Floats, int], Floats]


@dataclass(frozen=True)
class Stratum:
    """Units that are resampled together: one row each, [units, 2, columns], run A first; `weight` of its statistic."""

    units: Floats
    weight: float


def resampled(
    strata: Sequence[Stratum], statistic: Statistic, *, seed: int, resamples: int = RESAMPLES
) -> tuple[Floats, Floats]:
    """Scores of A and B, [2], and those of the units drawn anew, [resamples, 2].

    Equal units are counted instead of drawn one by one: drawing n units with replacement from k kinds is one draw of a
    multinomial distribution, which makes a benchmark of 200,000 questions as cheap as a small one.

    Args:
        strata: resampled one by one; the score is the weighted sum of their statistics.
        statistic: from sums of the columns [..., columns] over a number of units to the score [...].
        seed: of the draws.
        resamples: number of draws.
    """
    generator = np.random.default_rng(seed)
    scores = np.zeros(2)
    drawn = np.zeros((resamples, 2))
    for stratum in strata:
        count = len(stratum.units)
        kinds, counts = np.unique(stratum.units, axis=0, return_counts=True)
        scores += stratum.weight * statistic(stratum.units.sum(axis=0), count)
        times = generator.multinomial(count, counts / count, size=resamples)
        drawn += stratum.weight * statistic(np.einsum("rk,kac->rac", times.astype(float), kinds), count)
    return scores, drawn


def bootstrap(
    strata: Sequence[Stratum], statistic: Statistic, *, seed: int, resamples: int = RESAMPLES
) -> tuple[float, float, float, float]:
    """Score of A, score of B, and the interval of B minus A; the arguments are those of `resampled`."""
    scores, drawn = resampled(strata, statistic, seed=seed, resamples=resamples)
    return float(scores[0]), float(scores[1]), *interval(drawn[:, 1] - drawn[:, 0])


def interval(drawn: Floats) -> tuple[float, float]:
    """The middle `CONFIDENCE` of the draws."""
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return float(low), float(high)


def mean(sums: Floats, count: int) -> Floats:
    """The mean of the one column."""
    return sums[..., 0] / count


def f1(sums: Floats, count: int) -> Floats:
    """F1 in per cent from the columns right yes, claimed yes, real yes; 0 without a right one."""
    total = sums[..., 1] + sums[..., 2]
    return 200 * sums[..., 0] / np.maximum(total, 1)
