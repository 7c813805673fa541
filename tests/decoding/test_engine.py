"""The loop against the slow oracle and the original's traces; batches, counts of expert passes."""

import json

import jax
import numpy as np
import pytest

from colm_jax.checkpoints.team import load_base, make_gate
from colm_jax.decoding import loop
from colm_jax.decoding.engine import Engine
from colm_jax.settings.generation import SCHEDULE_NAMES
from colm_jax.settings.strategies import STRATEGIES
from tests.decoding.team import (
    CONTEXT,
    EOS,
    WORDS,
    answers,
    by_oracle,
    decoders,
    engine_of,
    kernel,
    prompts,
    request,
    run,
)

REACH = 32  # unread tokens of one text that a pass inside the loop can read


def check(texts, strategy, threshold=0.5, new=40, experts=1, **settings):
    """Answers, equal to the oracle's."""
    found = answers(engine_of(experts), texts, strategy, threshold, new, **settings)
    for prompt, answer in zip(texts, found):
        tokens, sources, rates = by_oracle(request(prompt, strategy, threshold, new), experts)
        assert answer.tokens == tokens
        assert answer.sources == sources
        if STRATEGIES[strategy].needs_gate:
            np.testing.assert_allclose(answer.p_defer, rates, atol=1e-4)
    return found


@pytest.mark.parametrize("threshold", [0.0, 0.35, 0.5, 0.65, 1.0])
def test_defer_equals_the_oracle(threshold):
    found = check(prompts([1, 3, 17, 40, 90]), "defer", threshold)
    rate = np.mean([s > 0 for a in found for s in a.sources])
    assert {0.0: rate == 1, 1.0: rate == 0}.get(threshold, 0 < rate < 1)


@pytest.mark.parametrize("strategy", ["compose", "base", "expert", "confidence", "contrastive", "contrastive_v2"])
def test_strategies_equal_the_oracle(strategy):
    check(prompts([2, 20, 33]), strategy, new=24)


@pytest.mark.parametrize("strategy", ["defer", "compose", "confidence", "proxy"])
def test_two_experts_equal_the_oracle(strategy):
    found = check(prompts([2, 25, 9]), strategy, new=24, experts=2, batch_size=2)
    if strategy == "defer":
        assert {s for a in found for s in a.sources} == {0, 1, 2}


def test_thresholds_schedules_and_warm_ups_are_each_requests_own():
    rng = np.random.default_rng(0)
    requests = [
        request(p, "defer", float(rng.uniform(0.3, 0.7)), 50, i, schedule=name, warmup=int(rng.integers(0, 30)))
        for (i, p), name in zip(enumerate(prompts([5, 9, 1, 30, 44, 70, 16, 22], seed=6)), 2 * SCHEDULE_NAMES)
    ]
    for each, answer in zip(requests, run(engine_of(1), requests)):
        tokens, sources, rates = by_oracle(each)
        assert (answer.tokens, answer.sources) == (tokens, sources)
        np.testing.assert_allclose(answer.p_defer, rates, atol=1e-4)


def unread_at_calls(answer, prompt):
    """How much of a text, alone in its batch, the expert had not read each time that it was called."""
    places = np.flatnonzero(np.array(answer.sources) > 0) + len(prompt)
    return np.diff(places, prepend=0)


def test_an_expert_pass_runs_only_when_called():
    engine = engine_of(1)
    (prompt,) = prompts([40])
    before = engine.expert_passes.copy()
    (never,) = answers(engine, [prompt], "defer", 1.0)
    assert never.expert_calls == 0
    assert (engine.expert_passes == before).all()
    (some,) = answers(engine, [prompt], "defer", 0.5, speculate=False)
    # One pass a call, and one before it where more is unread than a pass inside the loop reads (the prompt at least).
    apart = int((unread_at_calls(some, prompt) > REACH).sum())
    assert 0 < some.expert_calls < len(some.tokens)
    assert engine.expert_passes - before == some.expert_calls + apart


def test_more_unread_tokens_than_a_pass_reads_are_prefilled():
    """Between two calls of the expert more is written than one pass inside the loop reads."""
    engine = engine_of(1)
    (prompt,) = prompts([4], seed=3)
    before = engine.expert_passes.copy()
    (found,) = check([prompt], "defer", 0.8, new=CONTEXT - 4, speculate=False)
    unread = unread_at_calls(found, prompt)
    assert unread[0] <= REACH < unread.max()
    assert engine.expert_passes - before == found.expert_calls + (unread > REACH).sum()


def test_one_pass_serves_a_batch():
    engine = engine_of(1)
    before = engine.expert_passes.copy()
    found = answers(engine, prompts([10, 10, 10, 10], seed=1), "expert", new=20, batch_size=4, speculate=False)
    longest = max(a.expert_calls for a in found)
    assert engine.expert_passes - before == 1 + longest  # one for the prompts


def test_random_defers_at_its_rate():
    requests = [request(p, "random", new=60, key=i, rate=0.3) for i, p in enumerate(prompts([8] * 16, seed=2))]
    found = run(engine_of(1), requests)
    share = np.mean([s > 0 for a in found for s in a.sources])
    assert 0.2 < share < 0.4
    again = run(engine_of(1), requests[::-1])[::-1]
    assert [a.sources for a in again] == [a.sources for a in found]


def test_the_text_ends_at_the_context():
    (found,) = check(prompts([CONTEXT - 3], seed=4), "defer", new=40)
    assert len(found.tokens) <= 3
    assert found.finish_reason in ("length", "eos")


def test_public_traces_of_the_original(shared, mesh):
    """Token for token what the original PyTorch implementation wrote, and p_defer to 1e-4."""
    base = load_base(shared / "models/babyllama-105-colm", "float32", mesh)
    plain = load_base(shared / "models/babyllama-105", "float32", mesh).decoder
    expert = load_base(shared / "models/babyllama-361", "float32", mesh).decoder
    allowed = np.ones(105, bool)
    team = Engine(base.decoder, base.gate, [expert], allowed, (2,), 256)
    bare = Engine(plain, None, [expert], allowed, (2,), 256)
    proxy = Engine(expert, None, [expert, plain], allowed, (2,), 256)
    names = {"greedy": "confidence", "cd": "contrastive", "cd_v2": "contrastive_v2"}
    for case in json.loads((shared / "vectors/decode_public.json").read_text()):
        name = names.get(case["strategy"], case["strategy"])
        engine = team if name in ("defer", "compose") else proxy if name == "proxy" else bare
        schedule = {"schedule": case["schedule"], "warmup": case["warmup_steps"]} if "schedule" in case else {}
        threshold = case.get("threshold", 0.5)
        (answer,) = answers(engine, [case["prompt_ids"]], name, threshold, len(case["tokens"]), **schedule)
        assert answer.tokens == case["tokens"], (name, threshold)
        if "p_defer" in case:
            np.testing.assert_allclose(answer.p_defer, case["p_defer"], atol=1e-4)
        if "eta" in case:
            np.testing.assert_allclose(answer.threshold, case["eta"], atol=1e-6)
        if "deferred" in case:
            assert [s > 0 for s in answer.sources] == case["deferred"]


@pytest.mark.parametrize("expert_mesh", [(1, 2, 2), (1, 4, 1)], ids=str)
def test_a_sharded_team_writes_the_same(expert_mesh):
    from flax import nnx

    from colm_jax.parallel import make_mesh, reshaped, shardings

    base, expert, _ = decoders()
    mesh = make_mesh(data=1, fsdp=2, tensor=2)

    def spread(decoder, mesh=mesh):
        graph, state = nnx.split(decoder)
        return nnx.merge(graph, jax.tree.map(jax.device_put, state, shardings(mesh, state)))

    allowed = np.arange(32) < WORDS
    sharded = Engine(
        spread(base), make_gate(kernel(1)), [spread(expert, reshaped(mesh, expert_mesh))], allowed, EOS, CONTEXT
    )
    texts = prompts([5, 30])
    for one, two in zip(answers(sharded, texts, "defer", new=16), answers(engine_of(1), texts, "defer", new=16)):
        assert one.tokens == two.tokens


def test_an_interrupt_within_a_scan_is_raised_and_counts_are_kept(monkeypatch):
    """A signal may come when the state has been given to the devices and the next one is not there yet."""
    real, scans = loop.run_turns, []

    def stopped(*arguments):
        scans.append(real(*arguments))
        if len(scans) > 1:
            raise KeyboardInterrupt
        return scans[-1]

    engine = engine_of(1)
    before, steps = engine.expert_passes.copy(), engine.base_steps
    monkeypatch.setattr("colm_jax.decoding.session.run_turns", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(engine, [request(p, new=60, key=i) for i, p in enumerate(prompts([3, 9]))])
    assert len(scans) == 2
    assert engine.base_steps > steps and (engine.expert_passes > before).all()  # of the first
