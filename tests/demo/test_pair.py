"""The demo's problems and pair: right answers, no test problem or fact in training, equal seeds equal files."""

import itertools
import json
import random
from collections import Counter, defaultdict

import numpy as np
import pytest

import colm_jax.demo.pair as pair
from colm_jax import CoLM
from colm_jax.demo.problems import (
    EXAMPLE,
    KINDS,
    calculate,
    careless,
    draw_fact,
    held_out,
    splits,
    training_texts,
)
from colm_jax.demo.tokenizer import make_tokenizer, save_tokenizer
from colm_jax.evaluation.numbers import last_number, same_number
from colm_jax.text.tokenizer import load_tokenizer

SEED = 3


@pytest.fixture(scope="module")
def problems():
    return splits(SEED, 300, 40, 60)


def test_splits_share_neither_prompt_nor_fact(problems):
    prompts = {name: {p.prompt for p in split} for name, split in problems.items()}
    facts = {name: {fact for p in split for fact in p.facts} for name, split in problems.items()}
    assert [len(prompts[name]) for name in ("train", "dev", "test")] == [300, 40, 60]
    assert not prompts["dev"] & prompts["test"]
    assert not facts["train"] & (facts["dev"] | facts["test"])
    assert all(held_out(fact, SEED) for fact in facts["test"])
    assert problems["test"][0].prompt == EXAMPLE
    assert {p.kind for p in problems["test"]} == set(KINDS)


def test_the_base_reads_no_held_out_prompt_before_training(problems):
    read = {p.prompt for p in itertools.islice(training_texts(SEED, "pair", careless_results=True), 5000)}
    assert not read & {p.prompt for name in ("dev", "test") for p in problems[name]}


def test_answers_are_right(problems):
    for problem in itertools.chain(*problems.values()):
        assert last_number(problem.completion) == int(problem.answer) == calculate(*problem.facts[-1])
        assert same_number(problem.completion, problem.completion)


@pytest.mark.parametrize("operator", "+-·^")
def test_no_digit_of_a_careless_result_tells_the_next(operator):
    """Else the base could finish a number that the expert began, and nothing would say who is to write its rest."""
    rng = random.Random(SEED)
    compute = careless(rng)
    results = [str(compute(*draw_fact(operator, rng))) for _ in range(20_000)]
    follows: dict[str, Counter] = defaultdict(Counter)
    for result in results[::2]:
        for i in range(1, len(result)):
            follows[result[:i]][result[i]] += 1
    guesses = [
        follows[result[:i]].most_common(1)[0][0] == result[i]
        for result in results[1::2]
        for i in range(1, len(result))
        if follows[result[:i]]
    ]
    assert np.mean(guesses) < 0.15
    true = Counter(len(str(calculate(*draw_fact(operator, rng)))) for _ in range(20_000))
    lengths = Counter(map(len, results))
    assert set(lengths) <= set(true)
    for length, count in true.items():
        assert lengths[length] == pytest.approx(count, rel=0.15, abs=50)


def test_a_careless_writer_carries_its_result_on():
    problems = itertools.islice(training_texts(SEED, "pair", careless_results=True), 500)
    wrong = 0
    for problem in problems:
        assert last_number(problem.completion) == int(problem.answer)
        assert problem.completion.count(f"= {problem.answer}.") >= 1
        wrong += int(problem.answer) != calculate(*problem.facts[-1])
    assert wrong > 400


def test_the_tokenizer_keeps_texts_whole(tmp_path, problems):
    backend = make_tokenizer()
    save_tokenizer(backend, tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    for problem in itertools.chain(*problems.values()):
        text = problem.prompt + problem.completion
        ids, targets = tokenizer.encode_pair(problem.prompt, problem.completion)
        assert tokenizer.decode(ids) == text
        prompt = tokenizer.encode(problem.prompt)
        assert ids[: len(prompt)] == prompt
        assert targets == [False] * len(prompt) + [True] * (len(ids) - len(prompt))
        assert len(ids) <= pair.LENGTH
        assert tokenizer.backend.unk_token_id not in ids


def test_equal_seeds_make_equal_pairs_that_load_as_a_team(tmp_path, monkeypatch):
    monkeypatch.setattr(pair, "TRAIN", 20)
    real = pair.pretrain
    few = lambda config, texts, batch, steps, *rest: real(config, texts, batch, 20, *rest)  # noqa: E731
    monkeypatch.setattr(pair, "pretrain", few)
    for name in ("a", "b"):
        pair.make_pair(tmp_path / name, SEED)
    names = ["base/model.safetensors", "expert/model.safetensors", "base/tokenizer.json", "train.jsonl", "test.jsonl"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    team = CoLM.from_pretrained(tmp_path / "a/base", [tmp_path / "a/expert"])
    record = json.loads((tmp_path / "a/test.jsonl").read_text().splitlines()[0])
    (answer,) = team.generate([record], strategy="confidence", max_new_tokens=4)
    assert len(answer.tokens) <= 4
    assert np.isfinite(team.score([record])[0].expert_log_probs).all()
