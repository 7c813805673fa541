"""Figures of marks that say where to check."""

import numpy as np
import pytest

from colm_jax.evaluation.marks import Judged, departure, mark_figures, places_found, rank_area, words_of


@pytest.mark.parametrize(
    ("pieces", "reference", "place"),
    [
        (("1", "2", " a"), "12 a", None),
        (("1", "3", " a"), "12 a", 1),
        (("", "13"), "12", 1),
        (("12", " a"), "12", 1),  # longer than the reference
        (("1",), "12", None),  # shorter: it departs at no token
        ((), "12", None),
    ],
)
def test_a_text_departs_at_the_first_token_that_the_reference_does_not_have(pieces, reference, place):
    assert departure(pieces, reference) == place


def test_tokens_of_a_word_have_its_number():
    assert words_of(("47", " +", " 3", "8", " ", "=", " ", "8", "5.")) == [1, 2, 3, 3, 3, 4, 4, 5, 5]
    assert words_of(()) == []


def test_a_place_is_found_by_its_word_among_the_highest():
    pieces, reference = (" a", " 1", "2", " b"), " a 13 b"
    first = Judged(pieces, (0.1, 0.9, 0.2, 0.3), False, reference)  # the word of the departure, by its other token
    third = Judged(pieces, (0.9, 0.1, 0.2, 0.8), False, reference)
    right, unknown = Judged(pieces, (0.1,) * 4, True, reference), Judged(pieces, (0.1,) * 4, False)
    assert places_found((first, third, right, unknown), 1) == (1, 2)
    assert places_found((first, third, right, unknown), 2) == (1, 2)
    assert places_found((first, third, right, unknown), 3) == (2, 2)


def test_the_area_is_the_share_of_pairs_in_the_right_order():
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(0, 5, 40), rng.random(40) < 0.3
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[positive] for b in scores[~positive]]
    assert rank_area(scores.tolist(), positive.tolist()) == pytest.approx(np.mean(pairs))
    assert rank_area([1.0, 2.0], [True, True]) is None


def test_figures_of_marks():
    found = mark_figures([0.9, 0.2, 0.4], [True, False, True], [0.0, 1.0, 1.0])
    assert found["auroc"] == 1 and found["wrong"] == pytest.approx(1 / 3) and found["mean_risk"] == pytest.approx(0.5)
    assert (found["wrong_marked"], found["right_marked"]) == (1.0, 0.5)
    assert found["brier"] == pytest.approx((0.01 + 0.04 + 0.16) / 3)
    assert mark_figures([0.1], [False], [1.0])["wrong_marked"] is None
