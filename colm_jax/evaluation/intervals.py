"""How far an accuracy may be off: intervals for shares of right answers."""

from scipy.stats import binomtest


def wilson(right: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval (1927) for a share of `right` among `count`, as (low, high).

    Raises:
      ValueError: no answers, or more right ones than answers.
    """
    found = binomtest(right, count).proportion_ci(confidence, method="wilson")
    return float(found.low), float(found.high)
