"""Figures that calibration reports about a gate: ROC, reliability, area under a curve. NumPy only."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

_POINTS = 101  # kept of a ROC curve
BINS = 10


def roc(p_defer: Float[np.ndarray, "N"], differs: Bool[np.ndarray, "N"]) -> dict[str, Any]:
    """Measure how well p_defer separates positions where the expert's greedy token differs from the base's.

    Returns:
      "positives" and "negatives", their counts; "area" (ties count half); "youden", the threshold η with the highest
      true minus false positive rate ("threshold", "tpr", "fpr"; a position is positive where p_defer > η); "points",
      [fpr, tpr, η] from no positive to all, at most 101. Area and Youden's point are None if either class is empty.
    """
    positives, negatives = int(differs.sum()), int((~differs).sum())
    found: dict[str, Any] = {"positives": positives, "negatives": negatives, "area": None, "youden": None, "points": []}
    if not positives or not negatives:
        return found
    # Point i defers at the i highest values. Sorting each class to count takes little more memory than p_defer.
    values = np.unique(p_defer)[::-1]
    tpr, fpr = (_shares_from(np.sort(p_defer[kind]), values) for kind in (differs, ~differs))
    best = int(np.argmax(tpr - fpr))
    kept = np.unique(np.linspace(0, len(values), _POINTS).round().astype(int))

    def threshold(i: int) -> float:
        """Return η of point i, half-way between the last deferred value and the next, so that rounding is harmless."""
        if i == len(values):
            return 0.0
        return float((np.float64(values[i]) + (np.float64(values[i - 1]) if i else 1.0)) / 2)

    return found | {
        "area": float(np.trapezoid(tpr, fpr)),
        "youden": {"threshold": threshold(best), "tpr": float(tpr[best]), "fpr": float(fpr[best])},
        "points": [[float(fpr[i]), float(tpr[i]), threshold(int(i))] for i in kept],
    }


def _shares_from(ordered: Float[np.ndarray, "_"], values: Float[np.ndarray, "N"]) -> Float[np.ndarray, "N+1"]:
    """Return the share of `ordered` (ascending) at or above each value (descending), preceded by 0: N + 1 shares."""
    shares = np.zeros(len(values) + 1)
    shares[1:] = (len(ordered) - np.searchsorted(ordered, values)) / len(ordered)
    return shares


def reliability(p_defer: Float[np.ndarray, "N"], pays: Bool[np.ndarray, "N"]) -> dict[str, Any]:
    """Compare p_defer with how often deferral pays: the expert is right and the base wrong.

    Returns:
      "bins", ten of equal width: "low", "high", "count", the mean "p_defer" and the "share" of positions where deferral
      pays (both None in an empty bin); "ece", the expected calibration error: |p_defer − share| of the bins, weighted
      by count; "brier", the mean squared error. Training does not aim at a low error: where both models are right,
      deferral costs the objective nothing.
    """
    wide, bins = p_defer.astype(np.float64), []
    number = np.minimum((wide * BINS).astype(int), BINS - 1)
    for i in range(BINS):
        members = number == i
        count = int(members.sum())
        mean, share = (float(x[members].mean()) if count else None for x in (wide, pays))
        bins.append({"low": i / BINS, "high": (i + 1) / BINS, "count": count, "p_defer": mean, "share": share})
    return {"bins": bins, **calibration_error(wide, pays)}


def area(points: Sequence[tuple[float, float]]) -> float:
    """Return the mean height of a curve, by trapezoids; if all points have one x, the mean of their heights."""
    x, y = np.array(sorted(points), np.float64).T
    width = x[-1] - x[0]
    return float(np.trapezoid(y, x) / width) if width else float(y.mean())


def calibration_error(probability: Float[np.ndarray, "N"], happened: Bool[np.ndarray, "N"]) -> dict[str, float]:
    """Return "ece", the expected calibration error over ten bins of equal width, and "brier", the squared error."""
    number = np.minimum((probability * BINS).astype(int), BINS - 1)
    error = sum(abs(float((probability - happened)[number == i].sum())) for i in range(BINS))
    return {"ece": error / len(probability), "brier": float(((probability - happened) ** 2).mean())}
