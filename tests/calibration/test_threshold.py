"""Calibration on tiny random teams: what is reused is what a fresh decoding gives; sources, figures and errors."""

import json

import numpy as np
import pytest

from colm_jax import CoLM
from colm_jax.calibration.answers import Answers
from colm_jax.calibration.threshold import Calibration, calibrate
from colm_jax.data.records import Example, Examples, encode_examples
from colm_jax.errors import UserError
from colm_jax.scoring import greedy_choices
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
    best = max(point["score"] for point in curve)
    assert result["score"] == best
    assert result["threshold"] == max(point["threshold"] for point in curve if point["score"] == best)
    low, high = result["interval"]
    assert low < best < high
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
        ({"rates": (0.0,)}, "each of rates must be a number above 0 and below 1"),
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
