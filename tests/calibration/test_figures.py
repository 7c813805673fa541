import numpy as np
import pytest

from colm_jax.calibration.figures import area, reliability, roc


def test_roc_by_hand():
    # From the top: hit, hit, miss, hit, miss. Of 3 · 2 pairs of a hit and a miss, 5 are in order.
    found = roc(np.array([0.9, 0.8, 0.6, 0.4, 0.1]), np.array([1, 1, 0, 1, 0], bool))
    assert (found["positives"], found["negatives"]) == (3, 2)
    assert found["area"] == pytest.approx(5 / 6)
    assert found["youden"] == {"threshold": pytest.approx(0.7), "tpr": pytest.approx(2 / 3), "fpr": 0.0}
    assert found["points"][0][:2] == [0.0, 0.0]
    assert found["points"][-1] == [1.0, 1.0, 0.0]


def test_ties_count_half_and_thresholds_give_their_rates():
    generator = np.random.default_rng(0)
    rates = np.round(generator.random(400), 1)
    differs = generator.random(400) < rates
    found = roc(rates, differs)
    ahead = rates[differs][:, None] - rates[~differs][None, :]
    assert found["area"] == pytest.approx(((ahead > 0) + 0.5 * (ahead == 0)).mean())
    for fpr, tpr, eta in found["points"]:
        if eta > 0:  # nothing lies below 0
            assert (rates[differs] > eta).mean() == pytest.approx(tpr)
            assert (rates[~differs] > eta).mean() == pytest.approx(fpr)
    assert len(roc(generator.random(5000), generator.random(5000) < 0.5)["points"]) == 101


def test_without_one_kind_there_is_no_area():
    found = roc(np.array([0.2, 0.4]), np.array([False, False]))
    assert (found["positives"], found["area"], found["youden"], found["points"]) == (0, None, None, [])


def test_reliability_by_hand():
    found = reliability(np.array([0.05, 0.05, 0.95, 1.0]), np.array([0, 1, 1, 1], bool))
    first, last = found["bins"][0], found["bins"][-1]
    assert (first["count"], first["share"], last["count"], last["share"]) == (2, 0.5, 2, 1.0)
    assert (first["low"], first["high"], last["high"]) == (0.0, 0.1, 1.0)
    assert first["p_defer"] == pytest.approx(0.05)
    assert found["bins"][5] == {"low": 0.5, "high": 0.6, "count": 0, "p_defer": None, "share": None}
    assert found["ece"] == pytest.approx((2 * 0.45 + 2 * 0.025) / 4)
    assert found["brier"] == pytest.approx((0.05**2 + 0.95**2 + 0.05**2) / 4)


def test_area():
    assert area([(1.0, 0.0), (0.0, 1.0)]) == 0.5
    assert area([(0.2, 0.5), (0.4, 1.0), (0.2, 0.5)]) == pytest.approx(0.75)
    assert area([(0.3, 0.2), (0.3, 0.4)]) == pytest.approx(0.3)
