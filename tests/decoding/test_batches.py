"""More requests than slots, parked or not, greedy or sampled: each answer is what its request gets alone."""

import numpy as np
import pytest

from colm_jax.decoding.engine import Request, pass_sizes
from colm_jax.decoding.parking import Parking
from colm_jax.decoding.sampling import Sampling
from colm_jax.decoding.schedule import SCHEDULES
from colm_jax.decoding.strategies import STRATEGIES
from tests.decoding.team import CONTEXT, by_oracle, engine_of, prompts, run, same

AT_ONCE, PATIENT = Parking(1, 0), Parking(8, 1000)


@pytest.fixture(scope="module")
def requests():
    """Texts of unlike lengths that want unlike things."""
    rng = np.random.default_rng(8)
    return [
        Request(
            prompt,
            threshold=float(rng.choice([0.0, 0.3, 0.45, 0.5, 0.55, 0.6, 0.7, 1.0])),
            max_new_tokens=int(rng.integers(1, 60)),
            key=i,
            schedule=int(rng.integers(len(SCHEDULES))),
            warmup=int(rng.choice([0, 1, 9, 25])),
        )
        for i, prompt in enumerate(prompts(rng.integers(1, 100, 20), seed=8))
    ]


def limit(request: Request) -> int:
    """The length at which a text ends."""
    return min(len(request.prompt) + request.max_new_tokens, CONTEXT)


@pytest.fixture(scope="module")
def expected(requests):
    return [by_oracle(request, "defer") for request in requests]


@pytest.mark.parametrize(
    ("batch_size", "parking"),
    [(1, None), (3, None), (8, None), (8, AT_ONCE), (8, Parking(3, 2)), (8, PATIENT)],
    ids=str,
)
def test_neither_batch_nor_parking_changes_an_answer(requests, expected, batch_size, parking):
    grows = (batch_size, parking) == (8, None)  # from short texts' slots to long ones': a loop for each
    chosen = [i for i in range(len(requests)) if grows or limit(requests[i]) > 64]
    found = run(engine_of(1), [requests[i] for i in chosen], "defer", batch_size=batch_size, parking=parking)
    for number, answer in zip(chosen, found):
        request, (tokens, sources, rates) = requests[number], expected[number]
        assert (answer.tokens, answer.sources) == (tokens, sources)
        np.testing.assert_allclose(answer.p_defer, rates, atol=1e-4)
        ended = len(request.prompt) + len(tokens) < limit(request)
        assert answer.finish_reason == ("eos" if ended else "length")
        # The end of text is decided too, by an expert maybe.
        assert answer.expert_calls - sum(s > 0 for s in sources) in ((0, 1) if ended else (0,))
    assert {a.finish_reason for a in found} == {"eos", "length"}


def test_parking_saves_passes(requests):
    engine, passes = engine_of(1), {}
    requests = [request for request in requests if limit(request) > 64]
    for parking in (AT_ONCE, Parking(3, 2), PATIENT):
        before = engine.expert_passes.copy()
        run(engine, requests, "defer", parking=parking)
        passes[parking] = int((engine.expert_passes - before)[0])
    assert passes[PATIENT] < passes[Parking(3, 2)] < passes[AT_ONCE]


def test_more_unread_than_a_pass_has_room_for():
    """All wait for all, asleep until their thresholds have come down: then nobody's text has been read."""
    linear = SCHEDULES.index("linear")
    requests = [Request(p, 0.2, 100, i, schedule=linear, warmup=28) for i, p in enumerate(prompts([9] * 8, seed=11))]
    found = run(engine_of(1), requests, "defer", parking=PATIENT)
    for request, answer in zip(requests, found):
        assert (answer.tokens, answer.sources) == by_oracle(request, "defer")[:2]
    largest = pass_sizes(STRATEGIES["defer"], 8)[-1]
    unread = [9 + a.sources.index(1) for a in found if 1 in a.sources]
    assert max(unread) <= largest.chunk
    assert sum(unread) > 2 * largest.tokens


def test_samples_follow_seed_and_number_alone():
    sampling = Sampling(temperature=0.8, top_p=0.9, top_k=12)
    texts = prompts([30, 25, 33, 41], seed=7)
    requests = [Request(p, 0.5, 40, key=i, sample=n) for i, p in enumerate(texts) for n in range(3)]

    def sample(chosen, seed=0, batch_size=4):
        return run(engine_of(1), chosen, "defer", sampling, seed=seed, batch_size=batch_size)

    whole = sample(requests)
    assert same(sample(requests[::-1])[::-1], whole)
    assert same(sample(requests[7:8], batch_size=1), whole[7:8])
    other = sample(requests, seed=1)
    for i in range(0, len(requests), 3):
        assert len({tuple(a.tokens) for a in whole[i : i + 3]}) > 1  # short ones may agree
        assert not same(other[i : i + 3], whole[i : i + 3])
