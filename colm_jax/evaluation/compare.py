"""Statistical uncertainty of scores: 95 % intervals of an accuracy and of the difference of two graded answer files."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Shaped

LEVEL = 0.95
SAMPLES = 10_000
_CHUNK = 1 << 22  # draws in memory at once
Grades = Sequence[float] | Shaped[np.ndarray, "N"]  # of answers, or whether each is right


@dataclass(frozen=True)
class Difference:
    """A paired comparison, first minus second."""

    difference: float
    low: float  # ends of the 95 % interval
    high: float
    p: float  # two-sided p-value: how often resampling loses or flips the difference's sign
    better: int  # number of answers with a higher grade in the first
    worse: int


def wilson(right: int, answers: int) -> tuple[float, float]:
    """Return the 95 % interval of an accuracy (Wilson's score interval)."""
    from scipy.stats import binomtest  # takes a second to import

    found = binomtest(right, answers).proportion_ci(LEVEL, method="wilson")
    return float(found.low), float(found.high)


def _resampled_means(values: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """Return the means [samples] of bootstrap samples of the values."""
    generator, count = np.random.default_rng(seed), len(values)
    rows = max(1, _CHUNK // count)
    parts = [min(rows, samples - first) for first in range(0, samples, rows)]
    return np.concatenate([values[generator.integers(0, count, (part, count))].mean(axis=1) for part in parts])


def mean_interval(grades: Grades, samples: int = SAMPLES, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % interval of the mean grade: Wilson's if all grades are 0 or 1, otherwise by the bootstrap."""
    values = np.asarray(grades, np.float64)
    if np.isin(values, (0.0, 1.0)).all():
        return wilson(int(values.sum()), len(values))
    low, high = np.quantile(_resampled_means(values, samples, seed), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def paired_bootstrap(first: Grades, second: Grades, samples: int = SAMPLES, seed: int = 0) -> Difference:
    """Compare two grades per answer by the paired bootstrap.

    Args:
      first: one grade per answer, 0 to 1.
      second: grades for the same references, in the same order.
      samples: the number of bootstrap samples; p is at least 2 / (samples + 1).
      seed: the seed of the draws.
    """
    differences = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    means = _resampled_means(differences, samples, seed)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    tail = min(int((means <= 0).sum()), int((means >= 0).sum())) + 1
    return Difference(
        difference=float(differences.mean()),
        low=float(low),
        high=float(high),
        p=min(1.0, 2 * tail / (samples + 1)),
        better=int((differences > 0).sum()),
        worse=int((differences < 0).sum()),
    )
