"""Words contain the whole text, and the mean over their tokens."""

import pytest

from colm_jax.report.contents import Piece
from colm_jax.report.words import words, writers_of
from tests.report.sample import PIECES


def _whole(grouped):
    return "".join(part.text for word in grouped for part in (*word.space, *word.pieces))


def test_words_have_the_mean_and_the_writers_of_their_tokens():
    grouped = words(PIECES)
    assert [word.text for word in grouped] == ["is", "31.", "<b>"]
    assert grouped[1].mean_p_defer == pytest.approx(0.5)
    assert grouped[2].mean_p_defer == pytest.approx(0.9)  # excludes the line break before it
    assert [word.sources for word in grouped] == [{0}, {0, 1}, {2}]
    assert _whole(grouped) == "is 31.\n<b>"


def test_token_across_two_words_counts_in_both():
    grouped = words([Piece("a b", 1, 0.8), Piece("c", 0, 0.2), Piece("  ", 0, 0.0)])
    assert [word.text for word in grouped] == ["a", "bc", ""]
    assert [word.mean_p_defer for word in grouped] == [0.8, 0.5, None]
    assert _whole(grouped) == "a bc  "


def test_token_that_is_one_byte_of_a_character_counts():
    (word,) = words([Piece("", 1, 0.6), Piece("é", 0, 0.2)])
    assert word.mean_p_defer == pytest.approx(0.4)
    assert word.sources == {0, 1}


def test_no_mean_without_a_gate():
    (word,) = words([Piece("a", 0, None)])
    assert word.mean_p_defer is None
    assert writers_of(word, ("base",)) == "written by base"


def test_no_tokens_give_no_words():
    assert words(()) == []
