"""Decoding by units: equal to a decoder without caches that encodes and reads everything anew at every step."""

import numpy as np
import pytest

from colm_jax.decoding.session import Session
from colm_jax.errors import UserError
from colm_jax.experts.guest import GuestExpert
from colm_jax.parallel import to_host
from tests.decoding.units_oracle import read
from tests.decoding.units_team import assert_as_the_oracle, make_team

PROMPTS = ["Once upon a time", "Tom and his dog", "One day, a big red ball", "L"]


@pytest.fixture(scope="module")
def models(shared):
    return shared / "models"


@pytest.fixture(scope="module")
def team(models, mesh):
    """A base of characters and an expert of pieces of words."""
    return make_team(mesh, models / "babyllama-105", [models / "stories260k"], spread=0.1)


@pytest.fixture(scope="module")
def resident(models, mesh):
    return make_team(mesh, models / "babyllama-105-colm", [models / "babyllama-361"])


def share(answers):
    """The share of tokens that experts wrote."""
    return np.mean([source > 0 for answer in answers for source in answer.sources])


def results(answers):
    return [(a.text, a.tokens, a.sources, a.p_defer, a.threshold, a.finish_reason, a.expert_calls) for a in answers]


@pytest.mark.parametrize(
    "settings",
    [
        {"threshold": 0.2},
        {"threshold": 0.2, "temperature": 1.0, "seed": 5},
        {"threshold": 0.1, "warmup": 20, "schedule": "linear", "temperature": 0.7, "top_k": 9, "top_p": 0.9},
        {"strategy": "random", "rate": 0.3},
        {"strategy": "expert"},
    ],
    ids=["defer", "sampled", "schedule", "random", "expert"],
)
def test_answers_are_those_of_the_oracle(team, settings):
    answers, _ = assert_as_the_oracle(team, PROMPTS, max_new_tokens=50, **settings)
    assert 0.1 < share(answers) <= 1


def test_at_most_two_and_a_half_tokens_are_computed_for_an_accepted_span(team, monkeypatch):
    computed, finished = [], GuestExpert.finished

    def counted(self, wait):
        found = finished(self, wait)
        computed.extend(written.computed for written in found if written.unit is not None)
        return found

    monkeypatch.setattr(GuestExpert, "finished", counted)
    _, oracle = assert_as_the_oracle(team, PROMPTS, max_new_tokens=50, threshold=0.2)
    assert sorted(computed) == sorted(oracle.computed)
    assert np.mean(computed) <= 2.5


def test_several_experts_of_several_tokenizers(models, mesh):
    experts = [models / "babyllama-361", models / "stories260k"]
    team = make_team(mesh, models / "babyllama-105", experts, spread=0.1)
    assert team.kinds == ("guest", "guest")
    answers, _ = assert_as_the_oracle(team, PROMPTS, max_new_tokens=50, threshold=0.7)
    assert {source for answer in answers for source in answer.sources} == {0, 1, 2}
    assert (team.engine.expert_passes > 0).all()


def test_what_an_answer_is_does_not_depend_on_its_batch(team):
    settings = {"strategy": "random", "rate": 0.3, "temperature": 0.8, "max_new_tokens": 50}
    whole = team.generate(PROMPTS, **settings)
    alone = [team.generate([prompt], **settings)[0] for prompt in PROMPTS[:1]]  # the key is the prompt's number
    assert results(alone) == results(whole[:1])
    assert results(team.generate(PROMPTS, batch_size=1, **settings)) == results(whole)


def test_waiting_sequences_are_served_together(team, monkeypatch):
    together, start = [], GuestExpert.start

    def counted(self, calls):
        before = self.passes
        start(self, calls)
        together.append((len(calls), self.passes - before))

    monkeypatch.setattr(GuestExpert, "start", counted)
    answers = team.generate(PROMPTS, strategy="expert", max_new_tokens=20)
    assert together[0][0] == len(PROMPTS)
    assert max(passes for _, passes in together) <= 2 + 32  # a pass over the prompts' beginnings, one for each token
    assert sum(calls for calls, _ in together) == sum(answer.expert_calls for answer in answers)
    passes, before = sum(passes for _, passes in together), team.engine.expert_passes[0]
    team.generate(PROMPTS, strategy="expert", max_new_tokens=20, batch_size=1)
    assert team.engine.expert_passes[0] - before > 2 * passes


def test_the_base_reads_no_token_twice(team, monkeypatch):
    prefilled, prefill = [], Session._prefill

    def counted(self, model, slots):
        before = to_host(self._state.caches[0].lengths).sum()
        prefill(self, model, slots)
        prefilled.append(int(to_host(self._state.caches[0].lengths).sum() - before))

    monkeypatch.setattr(Session, "_prefill", counted)
    steps = team.engine.base_steps
    (answer,) = team.generate(PROMPTS[:1], strategy="random", rate=0.4, max_new_tokens=80)
    assert answer.expert_calls > 5
    total = sum(prefilled) + team.engine.base_steps - steps
    # Each token once; some behind the answer's end, which the last run of the loop has written, and one before it not.
    assert total in range(len(answer.prompt_ids) + len(answer.tokens) - 1 - 32, len(answer.prompt_ids) + 80)


def test_streamed_tokens_are_the_answer(team):
    settings = {"threshold": 0.2, "max_new_tokens": 40}
    (whole,) = team.generate(PROMPTS[:1], **settings)
    tokens = list(team.stream(PROMPTS[0], **settings))
    assert [token.token for token in tokens] == whole.tokens and 1 in whole.sources
    assert [token.source for token in tokens] == whole.sources
    assert "".join(token.text for token in tokens) == whole.text


def test_stops_and_limits_hold_within_a_span(team):
    settings = {"strategy": "expert", "max_new_tokens": 40}
    (whole,) = team.generate(PROMPTS[:1], **settings)
    place = whole.text.index("little") + 2  # within a word, which the expert writes at once
    stop = whole.text[place : place + 3]
    (stopped,) = team.generate(PROMPTS[:1], stop=stop, **settings)
    assert (stopped.text, stopped.finish_reason) == (whole.text[: whole.text.index(stop)], "stop")
    assert stopped.tokens == whole.tokens[: len(stopped.tokens)]
    (limited,) = team.generate(PROMPTS[:1], **settings | {"max_new_tokens": place})
    assert (limited.tokens, limited.finish_reason) == (whole.tokens[:place], "length")
    token = whole.tokens[place]
    (by_id,) = team.generate(PROMPTS[:1], stop_token_ids=[token], **settings)
    assert (by_id.tokens, by_id.finish_reason) == (whole.tokens[: whole.tokens.index(token) + 1], "stop")


# Shared tokenizers.


@pytest.mark.parametrize(
    "settings",
    [{}, {"temperature": 1.0, "seed": 3}, {"strategy": "random", "temperature": 0.7}, {"strategy": "expert"}],
    ids=["defer", "sampled", "random", "expert"],
)
def test_a_guest_at_token_units_gives_the_resident_answers(resident, models, mesh, settings):
    guest = make_team(mesh, models / "babyllama-105-colm", [models / "babyllama-361"], spans="tokens")
    assert (resident.kinds, guest.kinds) == (("resident",), ("guest",))
    known = resident.generate(PROMPTS, threshold=0.1, max_new_tokens=40, **settings)
    found = guest.generate(PROMPTS, threshold=0.1, max_new_tokens=40, **settings)
    assert share(found) > 0.02
    for one, two in zip(known, found):
        assert (one.tokens, one.sources, one.expert_calls) == (two.tokens, two.sources, two.expert_calls)
        assert (one.text, one.finish_reason, one.threshold) == (two.text, two.finish_reason, two.threshold)
        if one.p_defer is not None:
            np.testing.assert_allclose(one.p_defer, two.p_defer, atol=1e-5)


def test_a_resident_expert_reads_its_own_view(resident):
    view = "The princess said to the dragon"
    records = [{"prompt": PROMPTS[0], "expert_prompt": view}, {"prompt": PROMPTS[0]}]
    own, same = resident.generate(records, strategy="expert", max_new_tokens=12)
    ids, allowed = resident.units.prompts(view, "view").base, resident.allowed
    for _ in own.tokens:
        logits = read(resident.experts[0], ids)[1][: len(allowed)]
        ids.append(int(np.argmax(np.where(allowed, logits, -np.inf))))
    assert own.tokens == ids[-12:] and own.text != same.text
    assert results([same]) == results(resident.generate([PROMPTS[0]], strategy="expert", max_new_tokens=12))
    tokens = list(resident.stream(records[0], strategy="expert", max_new_tokens=12))
    assert [token.token for token in tokens] == own.tokens


# Views and what cannot be.


def test_guests_read_their_own_view(team):
    records = [{"prompt": prompt, "expert_prompt": f"Once there was a bear. {prompt}"} for prompt in PROMPTS]
    answers, _ = assert_as_the_oracle(team, records, max_new_tokens=30, threshold=0.2)
    assert [a.text for a in answers] != [a.text for a in team.generate(PROMPTS, max_new_tokens=30, threshold=0.2)]


def test_a_guest_whose_context_is_full_leaves_the_text_to_the_base(team):
    tokenizer = team.units.tokenizers[1]
    text = "One day"
    while len(tokenizer.encode_prompt(f"{text} a")) < 508:
        text += " a"
    (answer,) = team.generate([{"prompt": PROMPTS[0], "expert_prompt": text}], strategy="expert", max_new_tokens=60)
    written = len(answer.sources) - answer.sources[::-1].index(1)
    assert 0 < written < 40 and set(answer.sources[written:]) == {0} and len(answer.tokens) == 60


@pytest.mark.parametrize("strategy", ["compose", "lookahead", "contrastive", "confidence"])
def test_strategies_that_compare_tokens_are_refused_by_name(team, strategy):
    with pytest.raises(UserError, match=f"'{strategy}' compares the models' tokens"):
        team.generate(PROMPTS, strategy=strategy)


def test_views_and_log_probs_are_refused_where_they_cannot_be(team, resident):
    record = {"prompt": "a", "expert_prompt": "b"}
    with pytest.raises(UserError, match="'compose' compares"):
        resident.generate([record], strategy="compose")
    with pytest.raises(UserError, match="log_probs needs experts that share"):
        resident.generate([record], log_probs=True)
    with pytest.raises(UserError, match="log_probs needs experts that share"):
        team.generate(["a"], log_probs=True)
    with pytest.raises(UserError, match="not both"):
        team.generate([{"prompt": "a", "expert_prompt": "b", "expert_messages": []}])
