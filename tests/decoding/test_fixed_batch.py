"""A batch of fixed shapes: the same answers, prompts read in parts between scans, nothing compiled for a request."""

import numpy as np
import pytest

from colm_jax.decoding.session import Session
from colm_jax.decoding.slots import FixedBatch
from tests.compilations import counted
from tests.decoding.team import CONTEXT, answers, by_oracle, engine_of, prompts, request, same

FIXED = FixedBatch.of(4, CONTEXT)


def run(session, requests):
    numbers = [session.submit(each) for each in requests]
    found = dict(session.drain())
    return [found[number] for number in numbers]


@pytest.mark.parametrize(("strategy", "experts"), [("defer", 2), ("expert", 1), ("backtrack", 1)])
def test_answers_are_those_of_a_growing_batch_and_later_ones_compile_nothing(strategy, experts):
    engine = engine_of(experts)
    first = [request(p, strategy, new=20, key=i) for i, p in enumerate(prompts([1, 100, 3, 40, 17, 70]))]
    session = Session(engine, first[0].settings, FIXED)
    session.compile_prefill()
    assert same(run(session, first), answers(engine, prompts([1, 100, 3, 40, 17, 70]), strategy, new=20))
    assert session.idle and session.shape.slots == 0
    with counted() as compiled:
        again = run(session, [request(p, strategy, 0.4, 9, stop_token_ids=[5]) for p in prompts([90, 2, 33, 8, 64])])
    assert compiled == [0] and len(again) == 5


def test_other_sequences_go_on_while_a_long_prompt_is_read():
    """A short request ends before the base has read a long one's prompt, of which each step reads 16 tokens."""
    short, long = prompts([3, 100])
    fixed = FixedBatch(FIXED.shape, FIXED.prefill[:1])
    session = Session(engine_of(1), request(short).settings, fixed)
    session.stream_steps = 4
    numbers = [session.submit(request(p, new=12, stream=True)) for p in (long, short)]
    ended = {}
    for step in range(100):
        ended |= {update.request: step for update in session.step() if update.generation is not None}
        if session.idle:
            break
    assert ended[numbers[1]] < ended[numbers[0]]
    assert (ended[numbers[0]] - ended[numbers[1]]) >= 2


def test_a_request_that_is_cancelled_while_its_prompt_is_read_frees_its_slot():
    long, other = prompts([100, 90])
    session = Session(engine_of(1), request(long).settings, FixedBatch(FIXED.shape, FIXED.prefill[:1]))
    number, kept = session.submit(request(long, new=8)), session.submit(request(other, new=8))
    session.step()
    session.cancel(number)
    assert session.running == 1 and session.waiting == 0
    (answer,) = dict(session.drain()).values()
    assert answer.tokens == by_oracle(request(other, new=8))[0] and session.idle and kept == 1


@pytest.mark.parametrize(("length", "other"), [(1, 40), (6, 8)])
def test_an_expert_that_reads_a_long_text_holds_up_nobody(length, other):
    """The long text's first call needs passes of the expert in several steps; the short one writes meanwhile."""
    long, short = prompts([110, 4], seed=3)
    fixed = FixedBatch(FIXED.shape, FIXED.prefill[:1])
    engine = engine_of(1)
    session = Session(engine, request(short).settings, fixed)
    session.stream_steps = 2
    first = session.submit(request(long, threshold=0.0, new=length))
    for _ in range(7):  # the base has read the prompt
        session.step()
    second = session.submit(request(short, threshold=1.0, new=other, stream=True))
    seen = {first: 0, second: 0}
    ended = {}
    for step in range(60):
        for update in session.step():
            seen[update.request] += len(update.tokens)
            if update.generation is not None:
                ended[update.request] = (step, update.generation)
        if session.idle:
            break
    assert ended[second][0] < ended[first][0] or other > 8
    for number, prompt, threshold, new in ((first, long, 0.0, length), (second, short, 1.0, other)):
        tokens, sources, rates = by_oracle(request(prompt, threshold=threshold, new=new))
        assert (ended[number][1].tokens, ended[number][1].sources) == (tokens, sources)
        np.testing.assert_allclose(ended[number][1].p_defer, rates, atol=1e-4)
