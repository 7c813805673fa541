"""Experts that take their time, fail, or are lost: what others get does not change, and the answer says where."""

from dataclasses import dataclass, replace

import pytest

from colm_jax.data.units import Unit
from colm_jax.decoding.requests import Request
from colm_jax.decoding.units_session import UnitsSession
from colm_jax.experts.protocol import Written
from colm_jax.settings.generation import GenerationSettings
from tests.decoding.units_team import make_team
from tests.tiny import write_model

PROMPTS = ["abc", "hello there", "x", "quite another text"]


class Scripted:
    """An expert that writes " abc" after so many looks at it; `answers` says what else for some calls, by number."""

    name, kind, bytes = "scripted", "remote", 0

    def __init__(self, delay=0, answers=None):
        self.delay, self.answers, self.passes = delay, answers or {}, 0
        self.running, self.released, self.waited = [], [], 0

    def score(self, texts, progress):
        raise AssertionError

    def check(self, prompt, settings, where):
        pass

    def expect(self, sequences, positions=None):
        pass

    def start(self, calls):
        for call in calls:
            plain = Written(call.sequence, Unit(" abc", (3, 4, 5, 6)), requests=1, characters=10)
            answer = replace(self.answers.get(self.passes, plain), sequence=call.sequence)
            self.running.append([self.delay, answer])
            self.passes += 1

    def finished(self, wait):
        self.waited += wait
        for item in self.running:
            item[0] = 0 if wait else item[0] - 1
        done = [answer for left, answer in self.running if left <= 0]
        self.running = [item for item in self.running if item[0] > 0]
        return done

    def release(self, sequence):
        self.released.append(sequence)


@dataclass(frozen=True)
class Pair:
    """A base and a scripted expert."""

    team: object

    def run(self, expert, cancel=(), **settings):
        """Answers of all prompts but those that are cancelled after the first step, by their numbers."""
        engine = self.team.engine
        engine._unit_experts = (expert,)
        engine.__dict__.pop("calls", None)
        own = GenerationSettings(strategy="random", rate=0.8, max_new_tokens=60, temperature=1.5, **settings)
        session = UnitsSession(engine, own)
        for key, prompt in enumerate(PROMPTS):
            views = self.team.units.prompts(prompt, "prompt")
            session.submit(Request(views.base, own, key, views=views.experts))
        found = {}
        if cancel:
            updates = session.step()
            for number in cancel:
                session.cancel(number)
            found = {update.request: update.generation for update in updates if update.generation}
        found |= dict(session.drain())
        assert session.idle
        return [found[number] for number in sorted(found)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory, mesh):
    out = tmp_path_factory.mktemp("models")
    base, expert = write_model(out / "base", seed=3), write_model(out / "expert", seed=4)
    return Pair(make_team(mesh, base, [expert], spans="text", spread=0.4))


def tokens(answers):
    return [(answer.tokens, answer.sources, answer.expert_calls) for answer in answers]


def test_answers_do_not_depend_on_how_long_an_expert_takes(pair):
    at_once, slow = pair.run(Scripted()), pair.run(Scripted(delay=3))
    assert tokens(at_once) == tokens(slow)
    assert any(1 in answer.sources for answer in at_once)
    for answer in at_once:
        assert answer.sent == {"requests": answer.expert_calls, "characters": 10 * answer.expert_calls}
        assert not answer.lost


def test_a_unit_that_cannot_stand_is_written_by_the_base(pair):
    nothing = Written(0, None, "why")
    unspelled = Written(0, Unit(" xyz", (3, 4, 5, 6)))
    for answer in (nothing, unspelled):
        found = pair.run(Scripted(answers=dict.fromkeys(range(1000), answer)))
        assert {source for each in found for source in each.sources} == {0}
        assert all(each.expert_calls and not each.lost for each in found)


def test_an_answer_says_where_an_expert_was_lost(pair):
    lost = Written(0, None, "no answer", lost=True)
    expert = Scripted(answers=dict.fromkeys(range(len(PROMPTS), 1000), lost))
    answers = pair.run(expert)
    assert [len(answer.tokens) for answer in answers] == [len(answer.sources) for answer in answers]
    for answer in answers:
        assert answer.lost and all(answer.sources[place] == 0 for place in answer.lost if place < len(answer.tokens))
    stopped = pair.run(Scripted(answers=expert.answers), on_expert_failure="stop")
    for whole, answer in zip(answers, stopped):
        assert answer.lost == (len(answer.tokens),) and answer.finish_reason == "stop"
        assert answer.tokens == whole.tokens[: whole.lost[0]]


def test_cancelled_sequences_are_released_and_change_nothing(pair):
    whole = pair.run(Scripted(delay=5))
    expert = Scripted(delay=5)
    rest = pair.run(expert, cancel=(1, 2))
    assert tokens(rest) == tokens([whole[0], whole[3]])
    assert len(expert.released) == len(PROMPTS)
