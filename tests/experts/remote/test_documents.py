"""A document in a remote expert's view: its values are written, the ledger holds it, and the prompt stays here."""

import json
import re

import pytest

from colm_jax import CoLM
from colm_jax.errors import UserError
from colm_jax.settings.remote import RemoteSettings
from tests.experts.remote.conftest import PATIENT, WORDS
from tests.experts.remote.fake import FakeModel, serving
from tests.tiny import write_model

PRIVATE = "Mrs. Quillfeather asks about her lamp: "
QUESTION = "How much is the lamp? "
DOCUMENTS = ("Prices of May: the lamp costs 47 euros. ", "Prices of June: the lamp costs 8,250 euros. ")


class Reader(FakeModel):
    """Writes the price that the text before it names, again and again."""

    def write(self, ids, most, temperature=0.0, seed=0, first=None):
        price = re.search(r"costs ([\d,]+) euros", self.text(ids))
        told = self.encode(f" {price.group(1)} euros." if price else " unknown.")
        return list(told[:most]), len(told) <= most


@pytest.fixture
def base(tmp_path):
    return write_model(tmp_path / "base", words=WORDS, vocab_size=len(WORDS), context=256)


@pytest.fixture
def endpoint():
    with serving(Reader()) as server:
        yield server


def record(document):
    return {"prompt": PRIVATE + QUESTION, "expert_prompt": document + QUESTION}


def load(base, endpoint, **settings):
    return CoLM.from_pretrained(base, [endpoint.address], remote=RemoteSettings(**PATIENT, **settings))


def by_expert(team, answer):
    """The text that the expert wrote."""
    return "".join(piece for piece, source in zip(team.pieces(answer), answer.sources) if source)


def test_the_experts_spans_are_those_of_the_document_that_it_was_sent(base, endpoint):
    team = load(base, endpoint)
    settings = {"strategy": "random", "rate": 0.3, "max_new_tokens": 60}
    answers = team.generate([*map(record, DOCUMENTS), PRIVATE + QUESTION], **settings)
    for answer, own, foreign in zip(answers, ("47", "8,250", "unknown"), ("8,250", "47", "47"), strict=True):
        assert own in by_expert(team, answer) and foreign not in answer.text
        assert 0 in answer.sources and answer.lost == ()


def test_the_ledger_holds_the_document_and_nothing_of_the_prompt(base, endpoint, tmp_path):
    ledger = tmp_path / "ledger.jsonl"
    team = load(base, endpoint, ledger=str(ledger))
    asked = len(endpoint.asked())
    answers = team.generate([*map(record, DOCUMENTS)], strategy="random", rate=0.3, max_new_tokens=60)
    sent = [line for line in map(json.loads, ledger.read_text().splitlines()) if line["prompt"] is not None]
    for number, (document, answer) in enumerate(zip(DOCUMENTS, answers, strict=True)):
        texts = [line["sent"] for line in sent if line["prompt"] == number]
        view = document + QUESTION
        assert len(texts) == answer.sent["requests"] and sum(map(len, texts)) == answer.sent["characters"]
        assert all(text.startswith(view) and answer.text.startswith(text[len(view) :]) for text in texts)
    received = json.dumps(endpoint.asked()[asked:])
    assert all(document in received for document in DOCUMENTS)
    for secret in ("Quillfeather", "asks about"):
        assert secret not in ledger.read_text() and secret not in received


def test_a_document_beyond_the_budget_is_not_sent(base, endpoint):
    most = len(DOCUMENTS[0] + QUESTION) - 1
    team = load(base, endpoint, max_sent_characters=most)
    asked = len(endpoint.asked())
    (answer,) = team.generate([record(DOCUMENTS[0])], strategy="random", rate=0.3, max_new_tokens=20)
    assert len(endpoint.asked()) == asked and set(answer.sources) == {0}
    assert answer.sent == {"requests": 0, "characters": 0}


def test_messages_in_the_experts_view_go_to_chat(base, endpoint):
    messages = [{"role": "system", "content": DOCUMENTS[1]}, {"role": "user", "content": QUESTION}]
    team = load(base, endpoint)
    asked = {"prompt": PRIVATE + QUESTION, "expert_messages": messages}
    (answer,) = team.generate([asked], strategy="random", rate=0.3, max_new_tokens=40)
    assert "8,250" in by_expert(team, answer)
    bodies = [body for body in endpoint.asked() if DOCUMENTS[1] in json.dumps(body)]
    assert bodies and all(body["messages"][:2] == messages for body in bodies)
    with pytest.raises(UserError, match="not both"):
        team.generate([{**asked, "expert_prompt": "x"}])
