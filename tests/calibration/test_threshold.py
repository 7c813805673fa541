"""Calibration: the choice on known curves; on tiny random teams, what is reused is what a fresh decoding gives."""

import json

import numpy as np
import pytest

from colm_jax import CoLM
from colm_jax.calibration.answers import Answers
from colm_jax.calibration.threshold import Point, calibrate, choose, fill, prompt_of
from colm_jax.data.records import Example, Examples, encode_examples
from colm_jax.errors import UserError
from colm_jax.scoring import greedy_choices
from colm_jax.settings.calibration import Calibration
from tests.tiny import write_model, write_team

RATES = (0.02, 0.03, 0.04, 0.1, 0.3, 0.5, 0.7, 0.9)


@pytest.fixture(scope="module")
def team(tmp_path_factory) -> CoLM:
    """A team whose answers end by themselves now and then."""
    directory = tmp_path_factory.mktemp("models")
    base, expert = write_model(directory / "base"), write_model(directory / "expert", seed=1)
    return CoLM.from_pretrained(write_team(directory / "team", base, expert, spread=0.2), [expert])


@pytest.fixture(scope="module")
def dev(team):
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abcdefgh "), 18)) for _ in range(16)]
    records = [(f"dev:{i}", {"prompt": text[:6], "completion": text[6:]}) for i, text in enumerate(texts)]
    return records, encode_examples(records, team.tokenizer, team.context, "dev", team.allowed)


def test_reused_answers_are_what_decoding_anew_gives(team, dev):
    prompts = [{"prompt": record["prompt"]} for _, record in dev[0]]
    rates = np.concatenate([a.p_defer for a in team.generate(prompts, threshold=1.0, max_new_tokens=24)])
    grid = sorted({1.0, 0.0, *np.quantile(rates, 1 - np.array(RATES))}, reverse=True)
    answers = Answers(team, prompts, max_new_tokens=24)
    ended = 0
    for eta in grid:
        fresh = team.generate(prompts, threshold=eta, max_new_tokens=24, batch_size=32)
        for ours, theirs in zip(answers.at(eta), fresh):
            fields = ("tokens", "sources", "text", "finish_reason", "expert_calls")
            assert [getattr(ours, f) for f in fields] == [getattr(theirs, f) for f in fields]
            ended += theirs.finish_reason == "eos"
    assert answers.decoded + answers.reused == len(grid) * len(prompts)
    assert answers.reused > len(prompts)
    assert ended > len(grid)  # so that the step behind an answer's last token is tried too
    with pytest.raises(ValueError, match="must fall"):
        answers.at(1.0)


def test_the_end_of_a_text_counts_as_a_step(team, dev):
    """Of an answer that ended by itself, a threshold that falls below its last step's p_defer decodes it anew."""
    prompts = [{"prompt": record["prompt"]} for _, record in dev[0]]
    answers = Answers(team, prompts, max_new_tokens=24)
    answers.at(1.0)
    for i, end in answers._ends.items():
        written = np.array(answers._answers[i].p_defer)
        if not len(written) or end > written.max() + 1e-3:
            assert answers._changes(i, 1.0, end - 5e-4)
            assert not answers._changes(i, 1.0, end + 5e-4)
            return
    pytest.fail("no answer's highest p_defer is at its end")


@pytest.mark.parametrize("source", ["texts", "generations"])
def test_a_task_over_the_grid(team, dev, source):
    records, examples = dev
    # Half of the references are what the expert alone writes, so that scores move with the threshold.
    alone = team.generate([record["prompt"] for _, record in records], threshold=0.0, max_new_tokens=12)
    records = [
        (where, {**record, "answer": answer.text if i % 2 else "?"})
        for i, ((where, record), answer) in enumerate(zip(records, alone))
    ]
    settings = Calibration(rates=(0.1, 0.5, 0.9), source=source, max_new_tokens=12)
    result = calibrate(team, records, examples, "exact", settings)
    json.dumps(result)
    curve = result["curve"]
    assert [point["threshold"] for point in curve] == sorted((p["threshold"] for p in curve), reverse=True)
    assert (curve[0]["deferral_rate"], curve[-1]["deferral_rate"], curve[-1]["score"]) == (0, 1, 0.5)
    chosen = next(point for point in curve if point["threshold"] == result["threshold"])
    assert (result["score"], result["deferral_rate"]) == (chosen["score"], chosen["deferral_rate"])
    low, high = result["interval"]
    assert low < result["score"] < high
    low, high = result["plateau"]
    assert low <= result["threshold"] <= high
    assert {low, high} <= {point["threshold"] for point in curve}
    assert set(result["thresholds"].values()) <= {point["threshold"] for point in curve}
    assert result["answers_decoded"] + result["answers_reused"] == len(curve) * len(records)
    assert 0 < result["area"] < 1
    written = team.generate([record["prompt"] for _, record in records], threshold=1.0, max_new_tokens=12)
    assert all(set(answer.sources) <= {0} for answer in written)
    on_generations = np.concatenate([answer.p_defer for answer in written])
    on_texts = np.concatenate([s.mask.nonzero()[0] for s in team.score_examples(examples)])
    positions = result["roc"]["positives"] + result["roc"]["negatives"]
    if source == "generations":
        for rate in settings.rates:
            quantile = float(np.quantile(on_generations, 1 - rate))
            assert result["thresholds"][str(rate)] == pytest.approx(quantile, abs=1e-5)
        assert positions == len(on_generations)
    else:
        assert positions == len(on_texts)
    assert sum(each["count"] for each in result["reliability"]["bins"]) == len(on_texts)


def test_roc_of_texts_is_of_both_models_choices(team, dev):
    _, examples = dev
    base, expert = (greedy_choices(model, examples, team.allowed) for model in (team.base, team.experts[0]))
    scored = team.score_examples(examples)
    for choices, column in ((base, 0), (expert, 1)):  # where a model's choice is the text's token, scoring says so too
        for choice, item, score in zip(choices, examples.items, scored):
            np.testing.assert_array_equal(choice == item.ids[1:], score.is_argmax[:, column])
    differ = sum(int((a != b)[s.mask].sum()) for a, b, s in zip(base, expert, scored))
    result = calibrate(team, dev[0], examples, None, Calibration())
    assert result["roc"]["positives"] == differ
    assert (result["answers_decoded"], result["interval"]) == (0, None)


def test_roc_of_generations_is_of_what_the_expert_would_write_there(team, dev):
    prompts = [{"prompt": record["prompt"]} for _, record in dev[0]]
    result = calibrate(team, dev[0], dev[1], None, Calibration(source="generations", max_new_tokens=12))
    differ = 0
    for answer in team.generate(prompts, threshold=1.0, max_new_tokens=12, batch_size=32):
        if answer.tokens:
            ids, count = np.array(answer.prompt_ids + answer.tokens, np.int32), len(answer.tokens)
            examples = Examples((Example(ids, np.ones(len(ids), bool)),), 0)
            own, other = (greedy_choices(model, examples, team.allowed)[0] for model in (team.base, team.experts[0]))
            np.testing.assert_array_equal(own[-count:], answer.tokens)
            differ += int((other[-count:] != answer.tokens).sum())
    assert result["roc"]["positives"] == differ > 0
    assert result["answers_decoded"] == len(prompts)


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"rates": (0.0,)}, "rates must be a number above 0 and below 1"),
        ({"source": "dev"}, "source must be one of texts, generations, got 'dev'"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number of at least 1"),
    ],
)
def test_settings_are_checked(settings, said):
    with pytest.raises(UserError, match=said):
        Calibration(**settings)


def test_generations_need_prompts(team):
    records = [("dev:1", {"text": "abcd"})]
    examples = encode_examples(records, team.tokenizer, team.context, "dev", team.allowed)
    with pytest.raises(UserError, match="dev:1: a task, and generations as source, need lines with a prompt"):
        calibrate(team, records, examples, None, Calibration(source="generations"))


@pytest.mark.parametrize(
    ("record", "prompt"),
    [
        ({"prompt": "a", "completion": "b"}, {"prompt": "a"}),
        ({"text": "x", "messages": ["a", "b"]}, None),  # a text, whatever else stands beside it
        ({"text": "x", "messages": 5}, None),
        ({"input_ids": [1, 2], "messages": "ab"}, None),
        ({"messages": []}, None),
        ({"messages": [{"role": "user", "content": "a"}]}, None),
    ],
)
def test_a_lines_prompt_is_found_whatever_its_other_keys_hold(record, prompt):
    assert prompt_of(record) == prompt


def curve_of(grid, right, rates):
    """A point for each threshold, and the grades of its problems."""
    grades = [np.array(row, float) for row in right]
    return [Point(eta, rate, row.mean()) for eta, rate, row in zip(grid, rates, grades, strict=True)], grades


def test_gaps_of_the_grid_are_filled_and_its_quantiles_kept():
    grid = fill([0.92, 0.024, 0.006])
    assert grid == sorted(grid, reverse=True)
    assert {1.0, 0.92, 0.024, 0.006, 0.0} <= set(grid)
    assert max(-np.diff(grid)) <= 0.1 + 1e-9
    assert len(grid) == 5 + 8  # 0.896 of nothing wants nine parts
    dense = np.linspace(0, 1, 21)
    assert fill(dense) == sorted(dense, reverse=True)
    assert fill([]) == pytest.approx(np.linspace(1, 0, 11))


def test_the_choice_holds_for_problems_that_reach_beyond_the_dev_set():
    """A problem is right while the threshold is below its least p_defer where an expert is needed, above all others."""
    generator = np.random.default_rng(5)
    logits = generator.normal((5.0, -5.0), 1.0, (20_000, 2))
    needed, others = (1 / (1 + np.exp(-logits))).T
    dev = slice(0, 100)
    # Quantiles that a dev set may have: just below the lowest that is needed, and the highest of the others.
    grid = fill([np.median(needed[dev]), needed[dev].min() - 1e-6, others[dev].max(), np.median(others[dev])])
    right = [(needed > eta) & (others <= eta) for eta in grid]
    rates = [0.1 * (needed > eta).mean() + 0.9 * (others > eta).mean() for eta in grid]
    point, plateau = choose(*curve_of(grid, [row[dev] for row in right], rates))
    highest = max(plateau, key=lambda p: (p.score, p.threshold))
    assert point.score == highest.score == 1
    accuracy = {eta: row.mean() for eta, row in zip(grid, right)}
    assert accuracy[point.threshold] > 0.9995
    assert accuracy[highest.threshold] < 0.995


def test_the_middle_of_the_plateau_is_chosen():
    grid = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.0]
    ten = np.ones(10)
    scores = [0.1, 0.5, 1.0, 1.0, 1.0, 1.0, 0.0]
    right = [np.arange(10) < round(10 * score) for score in scores]
    point, plateau = choose(*curve_of(grid, right, [0, *[0.2] * 5, 1]))
    assert [p.threshold for p in plateau] == [0.8, 0.7, 0.6, 0.5]
    assert point.threshold == 0.7  # 0.6 is as near: the cheaper one
    right[3] = 0 * ten  # a valley ends the plateau, whatever lies behind it
    point, plateau = choose(*curve_of(grid, right, [0, *[0.2] * 5, 1]))
    assert (point.threshold, len(plateau)) == (0.8, 1)


@pytest.mark.parametrize(
    ("worse", "better", "alike"),
    [(1, 0, True), (2, 0, False), (3, 1, True), (4, 1, False), (40, 32, True), (40, 30, False)],
)
def test_a_score_within_one_standard_error_is_as_good(worse, better, alike):
    best = np.arange(100) >= 50  # of the problems that the best gets wrong, some are right at the other threshold
    other = best.copy()
    other[50 : 50 + worse] = False
    other[:better] = True
    curve, grades = curve_of([1.0, 0.7, 0.6, 0.0], [0 * best, best, other, 0 * best], [0, 0.2, 0.2, 1])
    assert [p.threshold for p in choose(curve, grades)[1]] == ([0.7, 0.6] if alike else [0.7])


def test_a_threshold_that_costs_more_is_no_part_of_the_plateau():
    """Where an expert may write everything, a score stays high to the end, and a middle would pay for nothing."""
    grid = list(np.linspace(1, 0, 11))
    right = [np.zeros(50), np.ones(50) * (np.arange(50) < 25), *[np.ones(50)] * 9]
    point, plateau = choose(*curve_of(grid, right, np.linspace(0, 1, 11)))
    assert (point.threshold, point.deferral_rate) == (pytest.approx(0.8), pytest.approx(0.2))
    assert [p.deferral_rate for p in plateau] == pytest.approx([0.2])


def test_nothing_is_deferred_where_nothing_beats_the_base():
    grid = [1.0, 0.9, 0.8, 0.4, 0.0]
    half = np.arange(40) < 20
    point, plateau = choose(*curve_of(grid, [half, half, half, ~half, ~half], [0, 0, 0.3, 0.5, 1]))
    assert (point.threshold, len(plateau)) == (1.0, 1)
