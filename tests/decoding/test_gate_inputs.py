"""A gate that reads the base's uncertainty: all loops decide as the slow decoders do, and scoring gives its logits."""

from functools import cache

import numpy as np
import pytest

from colm_jax.checkpoints.team import make_gate
from colm_jax.decoding.candidates import CandidateReader
from colm_jax.decoding.engine import Engine
from colm_jax.models.gate import p_defer
from tests.decoding.oracle import LENGTH, decode, gate_logits
from tests.decoding.team import CONTEXT, EOS, WORDS, decoders, prompts, request, run
from tests.decoding.units_oracle import read
from tests.decoding.units_team import assert_as_the_oracle, make_team
from tests.tiny import run as forward

TEXTS = prompts([4, 9, 17, 30, 64])
# Weights of entropy, top log-probability and margin. They vary about 3.0, -1.8 and 0.4 here, so that no expert always
# writes.
WEIGHTS = np.array([[0.9, -0.8], [1.5, -1.2], [-0.3, 0.5]], np.float32)


def kernel(experts: int) -> np.ndarray:
    hidden = 0.2 * np.random.default_rng(experts).normal(size=(32, experts)).astype(np.float32)
    return np.concatenate([hidden, WEIGHTS[:, :experts]])


@cache
def engine_of(experts: int) -> Engine:
    base, *others = decoders()
    gate = make_gate(kernel(experts), "uncertainty")
    return Engine(base, gate, others[:experts], np.arange(32) < WORDS, EOS, CONTEXT)


def by_oracle(experts: int, prompt: list[int], matrix: np.ndarray, threshold: float, strategy: str = "defer"):
    base, *others = decoders()
    settings = {"strategy": strategy, "threshold": threshold, "new": 40, "eos": EOS, "words": WORDS}
    return decode(base, matrix, others[:experts], prompt, **settings)


@pytest.mark.parametrize("speculate", [False, True])
@pytest.mark.parametrize(("experts", "strategy"), [(1, "defer"), (2, "defer"), (2, "compose")])
def test_answers_are_those_of_the_oracle(experts, strategy, speculate):
    threshold = 0.45 if experts == 1 else 0.68
    requests = [request(text, strategy, threshold, key=i) for i, text in enumerate(TEXTS)]
    found = run(engine_of(experts), requests, speculate=speculate)
    changed = 0
    for text, answer in zip(TEXTS, found):
        tokens, sources, rates = by_oracle(experts, text, kernel(experts), threshold, strategy)
        assert (answer.tokens, answer.sources) == (tokens, sources)
        np.testing.assert_allclose(answer.p_defer, rates, atol=1e-5)
        changed += by_oracle(experts, text, kernel(experts)[:32], threshold, strategy)[1] != sources
    sources = [source for answer in found for source in answer.sources]
    assert 0.1 < np.mean(np.array(sources) > 0) < 0.95
    assert changed >= 3  # the three values count


@pytest.mark.parametrize("settings", [{"threshold": 0.5}, {"threshold": 0.5, "temperature": 1.0, "seed": 5}], ids=str)
def test_guests_are_called_as_the_oracle_calls_them(shared, mesh, settings):
    models = shared / "models"
    experts = [models / "stories260k"]
    team = make_team(mesh, models / "babyllama-105", experts, spread=0.1, inputs="uncertainty")
    team.gate.kernel[-3:, 0] = np.array([0.5, 0.1, -0.3])
    team.engine.models.gate["kernel"][...] = team.gate.kernel[...]
    answers, _ = assert_as_the_oracle(team, ["Once upon a time", "Tom and his dog"], max_new_tokens=40, **settings)
    assert 0 < np.mean([source > 0 for answer in answers for source in answer.sources]) < 0.95


def test_scoring_has_the_gate_logits_of_the_loop(shared, mesh):
    models = shared / "models"
    team = make_team(mesh, models / "babyllama-105", [models / "babyllama-361"], spread=0.3, inputs="uncertainty")
    assert team.kinds == ("resident",)
    for answer in team.generate(["Once upon a time", "Tom and his dog"], max_new_tokens=40, threshold=0.5):
        ids = [*answer.prompt_ids, *answer.tokens]
        (scored,) = team.score([{"input_ids": ids, "labels": ids}])
        logits = scored.gate_logits[len(answer.prompt_ids) - 1 :]
        np.testing.assert_allclose(np.asarray(p_defer(logits)), answer.p_defer, atol=1e-5)
        hidden, base = read(team.base, ids[:-1])
        want = gate_logits(np.asarray(team.gate.kernel[...]), hidden, np.where(team.allowed, base, -np.inf))
        np.testing.assert_allclose(scored.gate_logits[-1], want, atol=1e-4)


def test_candidates_have_the_same_gate_logits():
    (text,) = prompts([LENGTH - 1], seed=4)
    found = CandidateReader(engine_of(2)).read(text)
    padded = np.array([[*text, 0]], np.int32)
    hidden, logits = (np.asarray(x[0, : len(text)]) for x in forward(decoders()[0], padded))
    want = [gate_logits(kernel(2), h, row[:WORDS]) for h, row in zip(hidden, logits)]
    np.testing.assert_allclose(found.gate_logits, want, atol=1e-4)
