"""More requests than slots, calls batched or not, greedy or sampled: each answer is what its request gets alone."""

import numpy as np
import pytest

from colm_jax.decoding.engine import pass_sizes
from colm_jax.settings.generation import SCHEDULE_NAMES, ExpertBatching
from colm_jax.settings.strategies import STRATEGIES
from tests.decoding.team import by_oracle, engine_of, limit, prompts, request, run, same

AT_ONCE, PATIENT = ExpertBatching(1, 0), ExpertBatching(8, 1000)


@pytest.fixture(scope="module")
def requests():
    """Texts of unlike lengths that want unlike things."""
    rng = np.random.default_rng(8)
    return [
        request(
            prompt,
            threshold=float(rng.choice([0.0, 0.3, 0.45, 0.5, 0.55, 0.6, 0.7, 1.0])),
            new=int(rng.integers(1, 60)),
            key=i,
            schedule=SCHEDULE_NAMES[rng.integers(len(SCHEDULE_NAMES))],
            warmup=int(rng.choice([0, 1, 9, 25])),
        )
        for i, prompt in enumerate(prompts(rng.integers(1, 100, 20), seed=8))
    ]


@pytest.fixture(scope="module")
def expected(requests):
    return [by_oracle(each) for each in requests]


@pytest.mark.parametrize(
    ("batch_size", "batching"),
    [(1, None), (3, None), (8, None), (8, AT_ONCE), (8, ExpertBatching(3, 2)), (8, PATIENT)],
    ids=str,
)
def test_neither_batch_nor_batched_calls_change_an_answer(requests, expected, batch_size, batching):
    grows = (batch_size, batching) == (8, None)  # from short texts' slots to long ones': a loop for each
    order = sorted(range(len(requests)), key=lambda i: limit(requests[i]))
    chosen = [i for i in order if grows or limit(requests[i]) > 64]
    found = run(engine_of(1), [requests[i] for i in chosen], batch_size, expert_batching=batching)
    for number, answer in zip(chosen, found):
        each, (tokens, sources, rates) = requests[number], expected[number]
        assert (answer.tokens, answer.sources) == (tokens, sources)
        np.testing.assert_allclose(answer.p_defer, rates, atol=1e-4)
        ended = len(each.prompt) + len(tokens) < limit(each)
        assert answer.finish_reason == ("eos" if ended else "length")
        # The end of text is decided too, by an expert maybe.
        assert answer.expert_calls - sum(s > 0 for s in sources) in ((0, 1) if ended else (0,))
    assert {a.finish_reason for a in found} == {"eos", "length"}


def test_batched_calls_save_passes(requests):
    engine, passes = engine_of(1), {}
    requests = [each for each in requests if limit(each) > 64]
    for batching in (AT_ONCE, ExpertBatching(3, 2), PATIENT):
        before = engine.expert_passes.copy()
        run(engine, requests, expert_batching=batching, speculate=False)
        passes[batching] = int((engine.expert_passes - before)[0])
    assert passes[PATIENT] < passes[ExpertBatching(3, 2)] < passes[AT_ONCE]


def test_more_unread_than_a_pass_has_room_for():
    """All wait for all, without a call until their thresholds have come down: then nobody's text has been read."""
    requests = [
        request(p, threshold=0.2, new=100, key=i, schedule="linear", warmup=28)
        for i, p in enumerate(prompts([9] * 8, seed=11))
    ]
    found = run(engine_of(1), requests, expert_batching=PATIENT, speculate=False)
    for each, answer in zip(requests, found):
        assert (answer.tokens, answer.sources) == by_oracle(each)[:2]
    largest = pass_sizes(STRATEGIES["defer"], 8, speculates=False)[-1]
    unread = [9 + a.sources.index(1) for a in found if 1 in a.sources]
    assert max(unread) <= largest.chunk
    assert sum(unread) > 2 * largest.tokens


def test_samples_follow_seed_and_number_alone():
    texts = prompts([30, 25, 33, 41], seed=7)

    def sample(order, seed=0, batch_size=4):
        requests = [
            request(p, key=i, sample=n, seed=seed, temperature=0.8, top_p=0.9, top_k=12)
            for i, p in enumerate(texts)
            for n in range(3)
        ]
        return run(engine_of(1), requests[order], batch_size)

    whole = sample(slice(None))
    assert same(sample(slice(None, None, -1))[::-1], whole)
    assert same(sample(slice(7, 8), batch_size=1), whole[7:8])
    other = sample(slice(None), seed=1)
    for i in range(0, len(whole), 3):
        assert len({tuple(a.tokens) for a in whole[i : i + 3]}) > 1  # short ones may agree
        assert not same(other[i : i + 3], whole[i : i + 3])
