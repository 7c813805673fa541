"""Marks that say where an answer should be checked."""

import numpy as np
import pytest

from colm_jax.decoding.risk import EVIDENCE, Mark, Risk, continues, handed_on, marked, marks, shown

ONES = (1.0,) * len(EVIDENCE)
ZEROS = (0.0,) * len(EVIDENCE)


@pytest.mark.parametrize(
    ("pieces", "risks", "found"),
    [
        (("a", " b", " c"), (0.1, 0.9, 0.2), ((2, 3, 0.9),)),
        (("a", " 1", "2", " c"), (0.1, 0.6, 0.9, 0.2), ((2, 4, 0.9),)),  # a number of two tokens is one mark
        (("a", " b"), (0.9, 0.6), ((0, 3, 0.9),)),
        ((" \n", "b"), (0.9, 0.1), ((2, 3, 0.9),)),  # nothing to be seen: its risk is that of the next token
        (("", "é", "b"), (0.9, 0.1, 0.1), ((0, 1, 0.9),)),  # a part of a character
        (("a", " "), (0.1, 0.9), ()),
        (("a", "b", "c"), (0.6, 0.5, 0.6), ((0, 1, 0.6), (2, 3, 0.6))),  # not above the limit
        ((), (), ()),
    ],
)
def test_marks_are_runs_of_risky_tokens(pieces, risks, found):
    assert marks(pieces, shown(pieces, risks), 0.5) == tuple(Mark(*each) for each in found)
    shifted = tuple(Mark(start + 10, end + 10, risk) for start, end, risk in found)
    assert marks(pieces, shown(pieces, risks), 0.5, offset=10) == shifted


def test_what_tokens_show_does_not_depend_on_where_a_stream_is_cut():
    pieces, risks = ("a", "", "\n", "é", " ", "b"), (0.1, 0.9, 0.2, 0.1, 0.3, 0.8)
    whole = shown(pieces, risks)
    assert whole == [0.1, 0.9, 0.9, 0.9, 0.3, 0.8]
    for cut in range(1, len(pieces)):
        first = shown(pieces[:cut], risks[:cut])
        assert first + shown(pieces[cut:], risks[cut:], handed_on(pieces[cut - 1], first[-1])) == whole


def test_the_tokens_of_a_mark_are_those_whose_text_it_covers():
    assert marked(("a", " 1", "2", " c", ""), (Mark(2, 4, 0.9),)) == [False, True, True, False, False]


def test_the_tokens_of_a_span_have_its_risk_and_count_once():
    risk = Risk(ZEROS, ONES, (-9.0,) * len(EVIDENCE), (9.0,) * len(EVIDENCE), (1.0, *ZEROS[1:]), 0.0, 0.5)
    evidence = np.zeros((4, len(EVIDENCE)), np.float32)
    evidence[:, 0] = [2, np.nan, -2, np.nan]
    high, low = 1 / (1 + np.exp(-2)), 1 / (1 + np.exp(2))
    np.testing.assert_allclose(risk.of(evidence), [high, high, low, low], rtol=1e-6)
    np.testing.assert_allclose(risk.of(evidence[1:], before=high), [high, low, low], rtol=1e-6)
    assert continues(evidence).tolist() == [False, True, False, True]
    assert risk.of_answer(evidence) == pytest.approx(1 - (1 - high) * (1 - low))
    assert risk.of(np.zeros((0, len(EVIDENCE)), np.float32)).shape == (0,)


def test_evidence_beyond_what_was_seen_counts_as_the_largest_that_was():
    risk = Risk(ZEROS, ONES, (-1.0,) * len(EVIDENCE), ONES, (1.0, *ZEROS[1:]), 0.0, 0.5)
    evidence = np.zeros((2, len(EVIDENCE)), np.float32)
    evidence[:, 0] = [1, 100]
    assert len(set(risk.of(evidence))) == 1
