"""Statistics of the gate, on answers counted by hand."""

import numpy as np
import pytest

from colm_jax.evaluation.gate import (
    AnswerTokens,
    TokenSpan,
    agreement,
    agreement_of,
    by_class,
    by_entropy,
    by_position,
    calculator_calls,
    results,
    template_fillings,
    token_classes,
)
from colm_jax.scoring.texts import Scored


def written(text, entropy=None):
    """Make an answer from tokens separated by |; an expert's begin with a star."""
    tokens = text.split("|")
    sources = [int(token.startswith("*")) for token in tokens]
    return AnswerTokens(
        [token.removeprefix("*") for token in tokens], sources, [0.9 if s else 0.1 for s in sources], entropy
    )


def counts(shares):
    return {share.name: (share.tokens, share.deferred) for share in shares if share.tokens}


@pytest.mark.parametrize(
    "text, classes",
    [
        ("Eval|uate| a|^|3| · | 12|\n", "word start,word continuation,word start,operator or punctuation,number,"
         "operator or punctuation,number,white space"),
        ("(|x|2|y| =|", "operator or punctuation,word start,number,word continuation,operator or punctuation,"
         "word continuation"),
        ("é|é| é|-|é", "word start,word continuation,word start,operator or punctuation,word start"),
    ],
)  # fmt: skip
def test_token_classes(text, classes):
    assert ",".join(token_classes(text.split("|"))) == classes


def test_one_byte_of_a_character_does_not_end_a_word():
    assert token_classes(["caf", "", "é", "s"])[1:] == ["word continuation"] * 3


def test_deferral_by_class_counts_tokens_and_means():
    shares = by_class([written("It| is|*3|*1|.|\n"), written("*It| is|3")])
    assert counts(shares) == {
        "number": (3, 2),
        "operator or punctuation": (1, 0),
        "word start": (4, 1),
        "white space": (1, 0),
    }
    number = shares[0]
    assert number.rate == pytest.approx(2 / 3)
    assert number.mean_p_defer == pytest.approx((0.9 + 0.9 + 0.1) / 3)
    assert [share.rate for share in shares if not share.tokens] == [None]  # no token continues a word


def test_deferral_by_position():
    shares = by_position([written("*a|b|*c|d|e|f"), written("a")])
    assert [(share.name, share.tokens, share.deferred) for share in shares] == [
        ("0", 2, 1),
        ("1", 1, 0),
        ("2–3", 2, 1),
        ("4–7", 2, 0),
    ]
    assert by_position([]) == []


def test_deferral_by_entropy_uses_answers_with_known_entropy():
    shares = by_entropy([written("a|*b|*c|d", [0.0, 3.0, 0.5, 0.499]), written("*a")])
    assert counts(shares) == {"0–0.01": (1, 0), "0.1–0.5": (1, 0), "0.5–1": (1, 1), "2–": (1, 1)}


def test_no_mean_without_a_gate():
    assert by_class([AnswerTokens(["a"], [1])])[2].mean_p_defer is None


def test_template_filling_is_one_whole_word_or_number_between_base_tokens():
    answers = [
        written("The| drug| is|* aspirin|.| Take|* 3| a| day|*."),
        written("*It| is|* two"),  # at the ends nothing is filled
        written("1|*2|3"),  # part of a number
        written("a|* b|* c| d"),  # two tokens
        written("a|* b|c"),  # part of a word
        written("a|*b| c"),  # likewise
        written("(|*5|)"),
        written("a|* +| b"),  # no content
    ]
    assert template_fillings(answers) == [TokenSpan(0, 3, 4), TokenSpan(0, 6, 7), TokenSpan(6, 1, 2)]


def test_calculator_calls_begin_after_the_bases_equals_sign():
    answers = [
        written("3| ·| 4| =|* 1|*2|."),
        written("3| ·| 4| =| |*1|*2|."),
        written("a| = |$|-|*5"),
        written("x| =|* 1|2"),  # begun, not complete
        written("x|* =|* 1|*2"),  # the equals sign is by the expert
        written("x| =| y|* 1"),  # not directly after it
        written("5^2| =|* 5|^|5| =|*25"),  # the first 5 is part of a calculation
        written("x| =|* 3|*.|*5| and"),
        written("x| =|*1|*2|* 3"),  # another number begins
    ]
    assert calculator_calls(answers) == [
        TokenSpan(0, 4, 6),
        TokenSpan(1, 5, 7),
        TokenSpan(2, 4, 5),
        TokenSpan(6, 6, 7),
        TokenSpan(7, 2, 5),
        TokenSpan(8, 2, 4),
    ]
    assert [found.answer for found in results(answers)] == [0, 1, 2, 3, 6, 7, 8]


def test_responsibilities_and_p_defer_equal_values_by_hand():
    # p_defer 1/2 everywhere but last; r = p_e / (p_e + p_b): 0.8, 0.2, 0.5; last p 0.9, r = 0.9 / (0.9 + 0.1) = 0.9.
    logits = np.log([[1.0], [1.0], [1.0], [9.0]]).astype(np.float32)
    base, experts = np.log([0.1, 0.4, 0.2, 0.4]), np.log([[0.4], [0.1], [0.2], [0.4]])
    found = agreement_of(logits, base.astype(np.float32), experts.astype(np.float32), bins=3)
    assert found.counts == ((0, 0, 0), (1, 1, 1), (0, 0, 1))
    assert found.mean_p_defer == (None, pytest.approx(0.5), pytest.approx(0.9, abs=1e-6))
    assert found.mean_responsibility == (None, pytest.approx(0.5), pytest.approx(0.9, abs=1e-6))
    p, r = np.array([0.5, 0.5, 0.5, 0.9]), np.array([0.8, 0.2, 0.5, 0.9])
    assert found.correlation == pytest.approx(np.corrcoef(p, r)[0, 1], abs=1e-5)


def test_several_experts_are_summed():
    logits = np.zeros((1, 2), np.float32)  # 1/3 each
    found = agreement_of(logits, np.zeros(1, np.float32), np.log(np.full((1, 2), 2.0, np.float32)), bins=5)
    assert found.mean_p_defer[3] == pytest.approx(2 / 3)
    assert found.mean_responsibility[3] == pytest.approx(4 / 5)
    assert found.correlation is None


def test_only_counted_tokens_are_scored_and_only_with_a_gate():
    def scored(gate):
        mask = np.array([False, True, True])
        zeros = np.zeros((3, 1), np.float32)
        return Scored(np.arange(4), mask, zeros[:, 0], zeros, zeros if gate else None, np.zeros((3, 2), bool))

    found = agreement([scored(True), scored(True)])
    assert sum(map(sum, found.counts)) == 4
    assert found.bins == 5
    assert agreement([scored(False)]) is None
    assert agreement([]) is None
