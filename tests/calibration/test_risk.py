"""Where answers go wrong is learned from grades of whole answers alone."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize

from colm_jax.calibration.risk import FEWEST, MOST_MARKS, Graded, learn_risk, too_few
from colm_jax.decoding.risk import EVIDENCE, Risk, continues
from colm_jax.errors import UserError

COLUMN = EVIDENCE.index("entropy")


def graded(count, seed=0, tokens=20, spans=False):
    """Answers of which some tokens have a large entropy: there, and only there, two of three go wrong."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        evidence = rng.normal(size=(tokens, len(EVIDENCE))).astype(np.float32)
        evidence[:, COLUMN] = rng.uniform(0, 0.5, tokens)
        hard = rng.random(tokens) < 0.03
        evidence[hard, COLUMN] = rng.uniform(2, 3, hard.sum())
        wrong = hard & (rng.random(tokens) < 2 / 3)
        if spans:  # each token is followed by another one of its span
            evidence = np.repeat(evidence, 2, axis=0)
            evidence[1::2] = np.nan
        found.append((Graded(evidence, 0.0 if wrong.any() else 1.0), wrong))
    return found


@pytest.mark.parametrize("spans", [False, True])
def test_the_place_is_found_without_labels_of_places(spans):
    risk, summary = learn_risk([answer for answer, _ in graded(300, spans=spans)])
    assert summary["why"] is None and summary["auroc"] > 0.75 and summary["ece"] < 0.1
    assert summary["marks"] <= MOST_MARKS
    hits = misses = 0
    for answer, wrong in graded(300, seed=1, spans=spans):
        marked = (risk.of(answer.evidence) > risk.mark_above)[~continues(answer.evidence)]
        hits, misses = hits + (marked & wrong).sum(), misses + (wrong & ~marked).sum()
        assert not (marked & (answer.evidence[~continues(answer.evidence), COLUMN] < 1)).any()
    assert hits > 4 * misses


def test_the_risk_is_calibrated_on_answers_that_were_not_seen():
    risk, _ = learn_risk([answer for answer, _ in graded(1000)])
    others = [answer for answer, _ in graded(1000, seed=1)]
    predicted = np.array([risk.of_answer(answer.evidence) for answer in others])
    wrong = np.array([answer.grade == 0 for answer in others])
    for low, high in ((0, 0.3), (0.3, 1)):
        inside = (predicted >= low) & (predicted < high)
        assert inside.sum() > 50
        assert abs(predicted[inside].mean() - wrong[inside].mean()) < 0.08


def test_the_fit_is_the_optimum_of_the_noisy_or():
    answers = [answer for answer, _ in graded(120)]
    risk, _ = learn_risk(answers)
    inputs = [risk.inputs(answer.evidence) for answer in answers]

    def loss(parameters):
        total = (parameters[:-1] ** 2).sum()
        for answer, x in zip(answers, inputs):
            own = 1 / (1 + np.exp(-(x @ parameters[:-1] + parameters[-1])))
            right = np.prod(1 - own)
            total -= np.log(right if answer.grade else 1 - right)
        return total

    fitted = np.array([*risk.weights, risk.bias])
    best = minimize(loss, fitted, method="BFGS").fun
    assert loss(fitted) <= best + 1e-3


def test_grades_between_right_and_wrong_count_by_their_size():
    answers = [answer for answer, _ in graded(200)]
    halves = [replace(answer, grade=0.25 + 0.5 * answer.grade) for answer in answers]
    sure, unsure = learn_risk(answers)[0], learn_risk(halves)[0]
    means = [np.mean([risk.of_answer(a.evidence) for a in answers if a.grade == 0]) for risk in (sure, unsure)]
    assert means[1] < means[0] and 0.25 < means[1] < 0.8


def test_several_risky_tokens_in_one_answer_count_as_several_marks():
    rng = np.random.default_rng(0)
    answers = []
    for i in range(60):
        evidence = np.zeros((20, len(EVIDENCE)), np.float32)
        evidence[:, COLUMN] = rng.uniform(0, 0.1, 20)
        if i % 3 == 0:  # wrong, and uncertain at half of its tokens, at some a little less
            evidence[:10, COLUMN] = np.linspace(3, 2.5, 10)
        answers.append(Graded(evidence, float(i % 3 > 0)))
    risk, summary = learn_risk(answers)
    marked = sum((risk.of(answer.evidence) > risk.mark_above).sum() for answer in answers)
    assert 0 < marked <= MOST_MARKS * len(answers) and summary["marks"] == marked / len(answers)


@pytest.mark.parametrize("wrong", [0, 4, 296, 300])
def test_without_wrong_or_right_answers_nothing_is_learned(wrong):
    answers = [replace(answer, grade=float(i >= wrong)) for i, (answer, _) in enumerate(graded(300))]
    risk, summary = learn_risk(answers)
    assert risk is None and f"{wrong} of 300" in summary["why"]


def test_empty_answers_teach_nothing():
    answers = [answer for answer, _ in graded(100)]
    nothing = [Graded(np.zeros((0, len(EVIDENCE)), np.float32), 0.0)] * 50
    assert learn_risk(answers + nothing)[0] == learn_risk(answers)[0]


def test_what_is_not_known_is_taken_to_be_the_mean():
    answers = [answer for answer, _ in graded(200)]
    for answer in answers:
        answer.evidence[::2, EVIDENCE.index("margin")] = np.nan
    risk, _ = learn_risk(answers)
    known = answers[0].evidence.copy()
    known[:, EVIDENCE.index("margin")] = risk.mean[EVIDENCE.index("margin")]
    unknown = known.copy()
    unknown[:, EVIDENCE.index("margin")] = np.nan
    np.testing.assert_allclose(risk.of(known), risk.of(unknown), atol=1e-6)


def test_a_stored_risk_is_read_back():
    risk, _ = learn_risk([answer for answer, _ in graded(100)])
    stored = json.loads(json.dumps(risk.as_json()))
    assert Risk.read(stored, "colm.json") == risk
    for broken, says in (
        (stored | {"evidence": ["gate"]}, "calibrate the team again"),
        (stored | {"weights": [0.0]}, "'weights' must have 9 number"),
        (stored | {"bias": "x"}, "bias"),
        (stored | {"scale": [0.0] * 9}, "scale"),
        (stored | {"mark_above": 2.0}, "mark_above"),
        (stored | {"low": [1e9] * 9}, "'low' must not exceed"),
        ([], "needs 'evidence'"),
    ):
        with pytest.raises(UserError, match=f"colm.json: .*{says}|colm.json.*{says}"):
            Risk.read(broken, "colm.json")


def test_dev_prompts_that_are_too_few_are_not_answered():
    assert too_few(2 * FEWEST) is None
    assert "there are 9 dev prompts; at least 10 are needed" in too_few(2 * FEWEST - 1)
