"""A document that the experts read and the base does not: who sees it, and whose tokens follow it."""

import pytest

from colm_jax.experts.guest import GuestExpert
from tests.decoding.units_team import make_team
from tests.tiny import write_model

PROMPT = "once upon a time"
DOCUMENTS = ("there was a bear. ", "lily and her mom went to the park. ")


@pytest.fixture(scope="module", params=["resident", "guest"])
def team(request, mesh, tmp_path_factory):
    """A pair of random models with one tokenizer, and one of trained models with two."""
    if request.param == "guest":
        models = request.getfixturevalue("shared") / "models"
        return make_team(mesh, models / "babyllama-105", [models / "stories260k"])
    folder = tmp_path_factory.mktemp("pair")
    base, expert = (write_model(folder / f"{seed}", seed=seed) for seed in (0, 1))
    return make_team(mesh, base, [expert])


@pytest.fixture
def calls(monkeypatch):
    """The calls of guests, and of resident experts with a view of their own."""
    found, start = [], GuestExpert.start

    def kept(self, calls):
        found.extend(calls)
        start(self, calls)

    monkeypatch.setattr(GuestExpert, "start", kept)
    return found


def answers(team, rate):
    """Of the question with each document; the same places are the expert's until the answers differ."""
    records = [{"prompt": PROMPT, "expert_prompt": document + PROMPT} for document in DOCUMENTS]
    found = team.answers(records, strategy="random", rate=rate, max_new_tokens=24, keys=[7, 7])
    return [answer for _, answer in sorted(found, key=lambda pair: pair[0])]


def test_the_base_never_reads_the_document_and_the_expert_does(team, calls):
    plain = team.tokenizer.encode_prompt(PROMPT)
    assert [answer.prompt_ids for answer in answers(team, 0.4)] == [plain] * 2
    views = [team.units.prompts(document + PROMPT, "view").experts for document in DOCUMENTS]
    assert {tuple(call.prompt) for call in calls} == {tuple(view) for (view,) in views}
    for document, view in zip(DOCUMENTS, views):
        prompts = team.units.prompts({"prompt": PROMPT, "expert_prompt": document + PROMPT}, "prompt")
        assert prompts.base == plain and prompts.experts == view != team.units.prompts(PROMPT, "prompt").experts


def test_without_calls_no_document_changes_an_answer(team, calls):
    one, other = answers(team, 0.0)
    assert one.tokens == other.tokens and set(one.sources) == {0} and not calls


@pytest.mark.parametrize("team", ["resident"], indirect=True)
def test_exchanging_the_document_changes_the_experts_tokens_first(team):
    """Up to the first token of the expert that differs, the base has read the same, and wrote the same."""
    one, other = answers(team, 0.4)
    first = next(i for i, (a, b) in enumerate(zip(one.tokens, other.tokens)) if a != b)
    assert one.sources[first] == 1 == other.sources[first]
    assert one.sources[:first] == other.sources[:first]
