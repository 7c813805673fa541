"""A running batch: requests join it, leave it and are cancelled at any time, and none changes another's result."""

import gc

import jax
import pytest

from colm_jax.decoding.loop import run_turns
from colm_jax.decoding.requests import RunningSequence
from colm_jax.decoding.session import Session
from colm_jax.decoding.slots import BatchShape
from colm_jax.errors import UserError
from colm_jax.settings.generation import GenerationSettings
from tests.decoding.team import by_oracle, engine_of, prompts, request, run, same

SAMPLING = [
    {},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 5, "seed": 3},
    {"temperature": 1.3, "top_p": 0.8},
    {"temperature": 2.0, "min_p": 0.1, "seed": 2**40},
    {"temperature": 1.1, "top_k": 7, "top_p": 0.9, "min_p": 0.05},
]


@pytest.fixture
def session():
    return Session(engine_of(1), GenerationSettings(batch_size=4))


@pytest.fixture(scope="module")
def requests():
    """As many as SAMPLING, each with its own settings; all need slots of 128."""
    lengths = [40, 31, 50, 47, 62, 35]
    return [
        request(prompt, threshold=0.45 + 0.02 * i, new=33 + 2 * i, key=i, stop_token_ids=[3 + i] * (i % 3), **own)
        for i, (prompt, own) in enumerate(zip(prompts(lengths, seed=3), SAMPLING))
    ]


@pytest.fixture(scope="module")
def alone(requests):
    """What each request gets in a batch of its own."""
    return [run(engine_of(1), [each], batch_size=1)[0] for each in requests]


def steps(session, count):
    """Updates of so many steps."""
    return [update for _ in range(count) for update in session.step()]


def generations(updates):
    return {update.request: update.generation for update in updates if update.generation is not None}


def test_the_first_request_is_greedy_and_equals_the_oracle(requests, alone):
    tokens, sources, _ = by_oracle(requests[0])
    assert (alone[0].tokens, alone[0].sources) == (tokens, sources)


def test_a_request_that_joins_a_running_batch_gets_what_it_gets_alone(session, requests, alone):
    found, numbers = {}, [session.submit(requests[0])]
    for each in requests[1:]:
        found |= generations(steps(session, 1))
        numbers.append(session.submit(each))
    found |= dict(session.drain())
    assert sorted(found) == numbers == list(range(len(requests)))
    assert same([found[number] for number in numbers], alone)
    assert session.idle and session.step() == []
    session.submit(requests[2])  # an idle session serves again
    assert same([generation for _, generation in session.drain()], [alone[2]])


def test_cancelled_requests_change_nothing_and_free_their_slots(session, requests, alone):
    numbers = [session.submit(each) for each in requests[:5]]  # the fifth waits for a slot
    updates = steps(session, 1)
    session.cancel(numbers[1])
    last = session.submit(requests[5])
    session.cancel(last)  # before it got a slot
    updates += session.step()
    assert session.shape.slots == 4
    found = generations(updates) | dict(session.drain())
    kept = [0, 2, 3, 4]
    assert sorted(found) == kept
    assert same([found[number] for number in kept], [alone[number] for number in kept])
    session.cancel(numbers[0])  # finished: no effect
    with pytest.raises(KeyError):
        session.cancel(last + 1)


def test_a_session_whose_requests_are_all_cancelled_is_idle(session, requests):
    number = session.submit(requests[0])
    session.step()
    session.cancel(number)
    assert session.idle and session.shape == BatchShape() and session.step() == []


def test_streamed_tokens_are_the_generation_and_each_is_read_once(session, requests, alone, monkeypatch):
    read, extend = [], RunningSequence.extend

    def counted(self, columns, written):
        read.append((self.number, len(columns["calls"])))
        extend(self, columns, written)

    monkeypatch.setattr(RunningSequence, "extend", counted)
    streamed = type(requests[0])(**{**vars(requests[0]), "stream": True})
    number, mate = session.submit(streamed), session.submit(requests[1])
    found, tokens, looks = {}, [], 0
    while not session.idle:
        updates = session.step()
        found |= generations(updates)
        new = [token for update in updates for token in update.tokens]
        looks += bool(new)
        tokens += new
    assert same([found[number], found[mate]], alone[:2])
    assert [(token.token, token.source) for token in tokens] == list(zip(alone[0].tokens, alone[0].sources))
    assert [token.p_defer for token in tokens] == found[number].p_defer
    assert looks > len(tokens) / 2  # nearly every step brings one
    ended = alone[0].finish_reason == "eos"
    assert sum(count for owner, count in read if owner == number) == len(tokens) + ended


def test_one_program_serves_all_settings_and_any_number_of_requests(requests):
    def decode(rounds):
        """Requests that need the same slots, with new settings in every round."""
        session = Session(engine_of(1), GenerationSettings(batch_size=4))
        for n in range(rounds):
            for i, prompt in enumerate(prompts([40, 31, 50, 47], seed=5)):
                more = {"temperature": n + i / 7, "top_k": n, "top_p": 1 / (1 + n), "min_p": n / 10, "seed": n}
                session.submit(request(prompt, new=48, key=i, stop_token_ids=range(n), **more))
        return len(list(session.drain()))

    assert decode(1) == 4
    gc.collect()
    programs, arrays = run_turns._cache_size(), len(jax.live_arrays())
    assert decode(6) == 24
    gc.collect()
    assert run_turns._cache_size() == programs
    assert len(jax.live_arrays()) == arrays


def test_many_stop_tokens_end_a_text():
    (prompt,) = prompts([40], seed=9)
    (plain,) = run(engine_of(1), [request(prompt)], batch_size=1)
    stop = plain.tokens[12]
    others = [token for token in range(200) if token not in plain.tokens]
    (found,) = run(engine_of(1), [request(prompt, stop_token_ids=[*others[:20], stop])], batch_size=1)
    assert found.tokens == plain.tokens[: plain.tokens.index(stop) + 1]
    assert found.finish_reason == "stop"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": []}, "the prompt has 0 tokens; it must have from 1 to 127"),
        ({"prompt": [1] * 128}, "the prompt has 128 tokens"),
        ({"strategy": "base"}, "strategy must be the session's, defer, got base"),
        ({"stop": "a"}, "stop needs an engine with a tokenizer"),
        ({"threshold": [0.1, 0.2]}, "threshold: 2 values for 1 prompts"),
    ],
)
def test_a_wrong_request_is_refused(session, changes, message):
    with pytest.raises(UserError, match=message):
        session.submit(request(**{"prompt": [1], **changes}))
    assert session.idle


@pytest.mark.parametrize("longest, positions", [(200, [256, 256]), (300, [256, 512])])
def test_slots_are_as_long_as_queued_requests_need_up_to_four_times(longest, positions, monkeypatch):
    """So that few loops are compiled, none of which reads a far too long cache."""
    engine = engine_of(0)
    monkeypatch.setattr(engine, "context", 512)
    session = Session(engine, GenerationSettings("base", batch_size=1))
    short, long = (
        request(prompt, "base", new=limit - 20) for prompt, limit in zip(prompts([20, 20], seed=4), (40, longest))
    )
    found = []
    for number in [session.submit(short), session.submit(long)]:
        session.step()
        found.append(session.shape.positions)
        session.cancel(number)
    assert found == positions and session.idle
    session.submit(short)  # afterwards the long one counts no more
    session.step()
    assert session.shape.positions == 64
