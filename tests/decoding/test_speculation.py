"""Speculation changes no answer: every strategy against the plain loop, and how far the base runs ahead."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from colm_jax.checkpoints.team import make_gate
from colm_jax.decoding.engine import Engine
from colm_jax.decoding.session import Session
from colm_jax.decoding.speculation import Agreement, Speculation, run_ahead
from colm_jax.errors import UserError
from colm_jax.models.decoder import Decoder
from colm_jax.settings.generation import SCHEDULE_NAMES, Correction, GenerationSettings
from colm_jax.settings.strategies import STRATEGIES
from colm_jax.text.detokenizer import TokenBytes
from tests.decoding.team import CONTEXT, EOS, WORDS, answers, decoders, kernel, limit, prompts, request, run, same


class Letters(TokenBytes):
    """A letter for each token."""

    def __init__(self):
        pass

    invalid = "replace"

    def special(self, token):
        return None

    def after(self, before, token):
        return bytes([ord("A") + token])


def noisy(seed: int, noise: float) -> Decoder:
    """The base with noise."""
    graph, state = nnx.split(decoders()[0])
    keys = iter(jax.random.split(jax.random.key(seed), 100))

    def add(x):
        return x + noise * jnp.std(x) * jax.random.normal(next(keys), x.shape)

    return nnx.merge(graph, jax.tree.map(add, state))


@cache
def alike(experts: int) -> Engine:
    """A team whose experts often, but not always, agree with the base."""
    allowed = np.arange(32) < WORDS
    others = [noisy(7 + m, 0.1) for m in range(experts)]
    return Engine(decoders()[0], make_gate(kernel(experts)), others, allowed, EOS, CONTEXT, Letters())


def fresh(expert: Decoder) -> Engine:
    """A team that has observed nothing, whose answers have their full length."""
    return Engine(decoders()[0], make_gate(kernel(1)), [expert], np.arange(32) < WORDS, (), CONTEXT)


def mixed(strategy: str, seed: int, count: int = 7, least: int = 1):
    """Requests that differ in all that a slot may have of its own, the longest first: each size is compiled.

    `least`: tokens of prompts and answers.
    """
    rng = np.random.default_rng(seed)
    made = []
    for i, prompt in enumerate(prompts(rng.integers(least, 60, count), seed)):
        sampled = {} if i % 2 else {"temperature": float(rng.uniform(0.3, 1.5)), "top_k": int(rng.integers(0, 20))}
        if sampled and i % 4 == 2:
            sampled |= {"top_p": 0.8, "min_p": 0.02}
        ends = {"stop_token_ids": [int(t) for t in rng.integers(3, WORDS, 6)]} if i % 3 == 0 else {}
        if i % 3 == 1:
            ends = {"stop": [chr(ord("A") + int(t)) for t in rng.integers(3, WORDS, 6)]}
        schedule = {"schedule": SCHEDULE_NAMES[i % 4], "warmup": int(rng.integers(0, 20))}
        threshold, new = float(rng.uniform(0.2, 0.7)), int(rng.integers(least, 60))
        own = sampled | ends | schedule
        made.append(request(prompt, strategy, threshold, new, key=i, rate=0.4, seed=seed, **own))
    return sorted(made, key=limit, reverse=True)


CASES = [(name, 1) for name, s in STRATEGIES.items() if s.calls != "never" and s.experts[0] < 2]
CASES += [("defer", 2), ("compose", 2), ("backtrack", 2), ("confidence", 2), ("proxy", 2)]


@pytest.mark.parametrize(("strategy", "experts"), CASES)
def test_speculation_equals_the_plain_loop(strategy, experts):
    engine = alike(experts)
    corrections = {"correction": Correction(candidates=2, watch=3, bound=-6.0, sure=0.3)}
    shared = corrections if STRATEGIES[strategy].corrects else {}
    guesses = hits = 0
    requests = mixed(strategy, seed=experts, count=10)
    plain = run(engine, requests, 4, speculate=False, **shared)
    ahead = run(engine, requests, 4, speculate=True, **shared)
    assert same(ahead, plain)
    if (strategy, experts) in (("defer", 1), ("expert", 1)):
        assert same(run(engine, requests, 4, speculate="auto", **shared), plain)
    for one, other in zip(ahead, plain):
        assert one.text == other.text
        if one.p_defer is not None:
            np.testing.assert_allclose(one.p_defer, other.p_defer, atol=1e-5)
            np.testing.assert_allclose(one.threshold, other.threshold, atol=1e-7)
        assert (other.guesses, other.hits) == (0, 0)
        guesses, hits = guesses + one.guesses, hits + one.hits
    assert 0 < hits < guesses  # drafts were confirmed and dropped
    assert {answer.finish_reason for answer in plain} >= {"stop", "length"}


def test_a_streamed_answer_is_the_plain_loops():
    engine = alike(1)
    for each in mixed("defer", seed=5, count=3, least=33):
        (plain,) = run(engine, [each], 1, speculate=False)
        settings = replace(each.settings, batch_size=1, speculate=True)
        session, tokens = Session(engine, settings), []
        session.submit(replace(each, settings=settings, stream=True))
        while not session.idle:
            tokens += [token.token for update in session.step() for token in update.tokens]
        assert tokens == plain.tokens


def passes_of(engine, texts, strategy, speculate, **settings) -> tuple[int, int]:
    """Expert passes and deferred tokens of greedy answers, each alone."""
    before, calls = engine.expert_passes.sum(), 0
    for text in texts:
        (answer,) = answers(engine, [text], strategy, batch_size=1, speculate=speculate, **settings)
        calls += answer.expert_calls
    return int(engine.expert_passes.sum() - before), calls


def test_one_expert_pass_decides_several_tokens():
    texts, engine = prompts([20, 30, 25], seed=3), fresh(noisy(7, 0.05))
    for strategy in ("defer", "expert"):
        plain, calls = passes_of(engine, texts, strategy, False, new=60)
        fewer, same_calls = passes_of(engine, texts, strategy, True, new=60)
        assert calls == same_calls and plain >= calls
        assert fewer < 0.5 * calls


def test_auto_runs_ahead_only_where_base_and_expert_agree():
    texts = prompts([20] * 5, seed=3)
    fewer, calls = passes_of(fresh(noisy(7, 0.05)), texts, "defer", "auto", new=60)
    assert fewer < 0.7 * calls
    other = fresh(decoders()[1])
    for strategy in ("defer", "expert"):
        before = other.base_steps
        plain, calls = passes_of(other, texts, strategy, "auto", new=60)
        assert plain > 0.95 * calls
        assert other.base_steps - before < 1.1 * 60 * len(texts)


def costs(agreement, density, base_cost, token_cost, guesses):
    """Expert passes a deferred token for each number of guesses, by all outcomes of a round."""
    found = []
    for k in range(1, guesses + 1):
        outcomes = [(agreement**j * (1 - agreement), j + 1) for j in range(k - 1)] + [(agreement ** (k - 1), k)]
        decided = sum(p * n for p, n in outcomes)
        wasted = sum(p * (k - n) for p, n in outcomes) / density
        found.append((1 + token_cost * k / density + base_cost * wasted) / decided)
    return found


@pytest.mark.parametrize("agreement", [0.0, 0.25, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("density", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("strategy", ["defer", "expert"])
def test_the_base_runs_ahead_as_far_as_it_pays(strategy, agreement, density):
    speculation = Speculation.of("auto", STRATEGIES[strategy], 0.2)
    written = 1000
    observed = Agreement.none(1)
    deferred = jnp.array([round(density * written)])
    observed = replace(observed, right=jnp.array([100 * agreement]), seen=jnp.array([100.0]), deferred=deferred)
    limit = int(run_ahead(speculation, observed, jnp.array([written]))[0])
    density = 1.0 if strategy == "expert" else density
    expected = costs(agreement, density, 0.2, speculation.token_cost, speculation.guesses)
    more = 0.2 if strategy == "expert" else 0.0  # the base's steps are no part of the plain loop
    if limit <= 1:
        assert min(expected) + more > 0.95 * expected[0]
        assert limit == (0 if strategy == "expert" else 1)
    else:
        assert expected[limit - 1] <= 1.03 * min(expected)
        assert expected[limit - 1] + more < expected[0]


def test_speculate_is_auto_on_or_off():
    for given, kept in (("auto", "auto"), ("on", True), ("off", False), (True, True), (False, False)):
        assert GenerationSettings(speculate=given).speculate == kept
    with pytest.raises(UserError, match="speculate must be one of auto, on, off"):
        GenerationSettings(speculate="always")
