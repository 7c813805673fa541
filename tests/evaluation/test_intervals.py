"""Wilson's interval by its formula, and at its ends."""

import math

import pytest

from colm_jax.evaluation.intervals import wilson


@pytest.mark.parametrize("right, count", [(0, 10), (3, 10), (199, 200), (50, 50)])
def test_the_interval_is_wilsons(right, count):
    z, share = 1.959963984540054, right / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    assert wilson(right, count) == (pytest.approx(middle - half, abs=1e-9), pytest.approx(middle + half, abs=1e-9))


def test_what_is_no_share_is_refused():
    with pytest.raises(ValueError, match="k"):
        wilson(3, 2)
    with pytest.raises(ValueError, match="n"):
        wilson(0, 0)
