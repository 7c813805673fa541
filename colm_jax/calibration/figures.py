"""What calibration says of a gate beside the threshold: ROC, reliability, area under a curve. NumPy alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

_POINTS = 101  # of a ROC that are kept
BINS = 10


def roc(p_defer: Float[np.ndarray, "N"], differs: Bool[np.ndarray, "N"]) -> dict[str, Any]:
    """How well p_defer tells positions where the expert's greedy choice differs from the base's.

    Returns:
      "positives" and "negatives", their numbers; "area" (ties count half); "youden", the threshold η with the highest
      true minus false positive rate ("threshold", "tpr", "fpr"; a position is called where p_defer > η); "points",
      [fpr, tpr, η] from no call to all, at most 101. Area and Youden's point are None where either kind is missing.
    """
    positives, negatives = int(differs.sum()), int((~differs).sum())
    found: dict[str, Any] = {"positives": positives, "negatives": negatives, "area": None, "youden": None, "points": []}
    if not positives or not negatives:
        return found
    values, inverse = np.unique(p_defer.astype(np.float64), return_inverse=True)
    hits = np.bincount(inverse, differs, len(values))[::-1]
    misses = np.bincount(inverse, ~differs, len(values))[::-1]
    tpr = np.concatenate([[0.0], np.cumsum(hits) / positives])
    fpr = np.concatenate([[0.0], np.cumsum(misses) / negatives])
    # Point i calls the i highest values: η lies half-way to the next one, so that rounding cannot move it across.
    below = np.concatenate([values[::-1], [0.0]])
    above = np.concatenate([[1.0], values[::-1]])
    eta = (below + above) / 2
    eta[-1] = 0.0
    best = int(np.argmax(tpr - fpr))
    kept = np.unique(np.linspace(0, len(eta) - 1, _POINTS).round().astype(int))
    return found | {
        "area": float(np.trapezoid(tpr, fpr)),
        "youden": {"threshold": float(eta[best]), "tpr": float(tpr[best]), "fpr": float(fpr[best])},
        "points": [[float(fpr[i]), float(tpr[i]), float(eta[i])] for i in kept],
    }


def reliability(p_defer: Float[np.ndarray, "N"], pays: Bool[np.ndarray, "N"]) -> dict[str, Any]:
    """p_defer against how often calling paid: the expert right and the base wrong.

    Returns:
      "bins", ten of equal width: "low", "high", "count", the mean "p_defer" and the "share" of positions where it paid
      (both None in an empty bin); "ece", the expected calibration error: the bins' |p_defer − share|, weighted by
      count; "brier", the mean squared error. A low error is no goal of training: where both models are right the gate
      is free to call.
    """
    wide = p_defer.astype(np.float64)
    bins, error = [], 0.0
    number = np.minimum((wide * BINS).astype(int), BINS - 1)
    for i in range(BINS):
        members = number == i
        count = int(members.sum())
        mean, share = (float(x[members].mean()) if count else None for x in (wide, pays))
        if mean is not None and share is not None:
            error += count * abs(mean - share)
        bins.append({"low": i / BINS, "high": (i + 1) / BINS, "count": count, "p_defer": mean, "share": share})
    return {"bins": bins, "ece": error / len(wide), "brier": float(((wide - pays) ** 2).mean())}


def area(points: Sequence[tuple[float, float]]) -> float:
    """The mean height of a curve over its width, by trapezoids; of a single x, the mean of its heights."""
    x, y = np.array(sorted(points), np.float64).T
    width = x[-1] - x[0]
    return float(np.trapezoid(y, x) / width) if width else float(y.mean())
