"""What leaves the machine: budgets, windows, pseudonyms, and the ledger that tells all of it."""

import itertools
import json

import numpy as np
import pytest

from colm_jax.data.units import TextView
from colm_jax.errors import UserError
from colm_jax.experts.protocol import Call
from colm_jax.experts.remote import Ledger
from tests.experts.remote.fake import FakeModel, serving
from tests.experts.remote.test_scores import TEXTS, nothing, oracle

PROMPT = "a cat and the dog. "


@pytest.fixture
def rules(tmp_path):
    path = tmp_path / "rules.toml"
    path.write_text("[patterns]\nPERSON = ['Ada Lovelace', 'Bob']\nID = '\\d{3,}'\n")
    return str(path)


def ask(expert, units, answer=(), prompt=PROMPT, sequence=0):
    """One span after an answer."""
    expert.start([Call(sequence, {"prompt": prompt}, [units.spelled(text, "") for text in answer], seed=0)])
    (found,) = expert.finished(wait=True)
    return found


def test_calls_beyond_the_budget_are_refused_and_send_nothing(units, connect):
    with serving() as server:
        expert = connect(server, max_expert_calls=2)
        assert [ask(expert, units).requests for _ in range(2)] == [1, 1]
        before = len(server.requests)
        found = ask(expert, units)
        assert len(server.requests) == before
        assert (found.unit, found.lost, found.requests, found.characters) == (None, False, 0, 0)
        assert found.why == "the budget of 2 expert calls is used up"
        assert ask(expert, units, sequence=1).unit  # each sequence has its own
        expert.release(0)
        assert ask(expert, units, sequence=0).unit
    with serving() as server:
        assert "budget of 0" in ask(connect(server, max_expert_calls=0), units).why


def test_no_more_characters_are_sent_than_the_budget_has(units, connect):
    most = 2 * len(PROMPT) + 3
    with serving() as server:
        expert = connect(server, max_sent_characters=most)
        server.faults += ["status 500"] * 9  # repetitions count too
        found = ask(expert, units)
        assert found.lost and (found.requests, found.characters) == (2, 2 * len(PROMPT))
        before = len(server.requests)
        found = ask(expert, units)
        assert found.unit is None and not found.lost
        assert found.why == f"the budget of {most} sent characters is used up (38 sent, 19 more needed)"
        assert len(server.requests) == before


def test_a_window_sends_the_last_spans(units, connect):
    answer = (" the", " cat", " sat", ".")
    with serving() as server:
        expert = connect(server, window=2)
        ask(expert, units, answer)
        assert server.asked()[-1]["prompt"] == PROMPT + " sat."
        ask(expert, units, answer[:1])
        assert server.asked()[-1]["prompt"] == PROMPT + " the"
        ask(expert, units)
        assert server.asked()[-1]["prompt"] == PROMPT


def test_pseudonyms_are_sent_and_values_come_back(units, connect, rules):
    prompt = "Ada Lovelace met Bob in 1843. "
    with serving() as server:
        expert = connect(server, redact=rules)
        server.faults.append('text "\\u0020PERSON_2.\\u0020"')
        found = ask(expert, units, ("She", " saw", " 1843", ","), prompt)
        assert server.asked()[-1]["prompt"] == "PERSON_1 met PERSON_2 in ID_1. She saw ID_1,"
        assert found.unit and found.unit.text == " Bob"
        server.faults.append('text "\\u0020PERSON_1,\\u0020"')
        found = ask(expert, units, ("She",), prompt)
        assert found.unit and found.unit.text == " Ada Lovelace"  # a value is written whole
        assert found.unit == units.spelled(" Ada Lovelace", "She")


@pytest.mark.parametrize(
    "texts, written, why",
    [
        (['"\\u0020PERSON_7.\\u0020a"'], None, "it wrote PERSON_7, which stands for nothing"),
        (['"\\u0020a\\u0020PERSON_7"'], " a", ""),  # behind the span
        (['"\\u0020PERS"', '"ON_"', '"1"', '"\\u0020b"'], " Ada Lovelace", ""),  # in parts
        (['"\\u0020PERS"', '"IST\\u0020b"'], " PERSIST", ""),
    ],
)
def test_what_cannot_be_restored_is_not_written(texts, written, why, units, connect, rules):
    with serving() as server:
        expert = connect(server, redact=rules)
        server.faults += [f"text {text}" for text in texts]
        found = ask(expert, units, ("So",), "Ada Lovelace. ")
    assert (found.unit and found.unit.text, found.why) == (written, why)


def test_a_match_over_the_edge_of_a_window_stays_replaced(units, connect, rules):
    with serving() as server:
        expert = connect(server, redact=rules, window=1)
        ask(expert, units, ("So", " Ada", " Lovelace"))
        assert server.asked()[-1]["prompt"] == PROMPT + "PERSON_1"


def test_messages_are_redacted(units, connect, rules):
    messages = [{"role": "user", "content": "Who is Bob?"}]
    with serving() as server:
        expert = connect(server, redact=rules)
        answer = [units.spelled(text, "") for text in (" Bob", " is")]
        expert.start([Call(0, {"messages": messages}, answer, seed=0)])
        expert.finished(wait=True)
        sent = server.requests[-1][2]["messages"]
    assert [message["content"] for message in sent] == ["Who is PERSON_1?", " PERSON_1 is"]


def test_nothing_that_matches_is_ever_sent(units, connect, rules, tmp_path):
    """Neither to write nor to score; what is scored are the same spans."""
    view = TextView({"prompt": "Bob and Ada Lovelace. "}, (" Bob", " 12345", ",", " Ada", " Lovelace", "."), True)
    with serving(prompt_logprobs=True) as server:
        expert = connect(server, redact=rules)
        ask(expert, units, view.spans, view.prompt["prompt"])
        (scores,) = expert.score([view], nothing)
        expert.greedy_spans([view], 6, 0, nothing)
        sent = json.dumps([body for _, _, body in server.requests])
    assert not any(secret in sent for secret in ("Bob", "Ada", "Lovelace", "12345"))
    assert "PERSON_1" in sent
    assert len(scores.log_prob) == 6
    # The sum is that of what was sent: opening masses cancel, but for the last.
    shown = TextView({"prompt": "PERSON_1 and PERSON_2. "}, (" PERSON_1 ID_1, PERSON_2.",), True)
    log_prob, _ = oracle(units.rule, server.model, shown, top=20)
    assert scores.log_prob.sum() == pytest.approx(log_prob.sum(), rel=1e-5)
    assert (scores.log_prob[3:5] < -1).all()  # two spans share the pseudonym of "Ada Lovelace"


def test_the_ledger_tells_requests_characters_and_texts(units, connect, tmp_path):
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    with serving() as server:
        expert = connect(server, ledger=ledger)
        probed = ledger.total
        assert probed.requests == len(server.asked()) + 1  # and /tokenize
        expert.start([Call(i, {"prompt": PROMPT}, [], seed=0, number=7, sample=i) for i in range(3)])
        found = []
        while len(found) < 3:
            found += expert.finished(wait=True)
        assert (ledger.total - probed).requests == 1 == ledger.of(0).requests
        assert (ledger.total - probed).characters == 3 * len(PROMPT) == sum(w.characters for w in found)
        expert.score(TEXTS[:1], nothing)
        lines = [json.loads(line) for line in path.read_text().splitlines()]
    url = f"{server.url}/v1/completions"
    assert lines[-4:-1] == [{"to": url, "prompt": 7, "sample": i, "characters": 19, "sent": PROMPT} for i in range(3)]
    assert lines[-1]["sent"] == PROMPT + "".join(TEXTS[0].spans) and lines[-1]["prompt"] is None
    assert sum(line["characters"] for line in lines) == ledger.total.characters
    assert expert.passes == ledger.total.requests


def test_a_text_beyond_the_budget_is_not_scored(connect):
    with serving() as server:
        expert = connect(server, max_sent_characters=55)
        before = len(server.requests)
        with pytest.raises(UserError, match=r"text 1 has 56 characters, and max_sent_characters is 55; shorten"):
            expert.score(TEXTS, nothing)
        assert len(server.requests) == before


# Weak labels without scores.


def test_greedy_spans_equal_what_the_endpoint_writes(units, connect):
    with serving(FakeModel(1)) as server:
        expert = connect(server)
        total = sum(len(text.spans) - (text.prompt is None) for text in TEXTS)
        done = []
        found = expert.greedy_spans(TEXTS, 1000, 0, lambda *progress: done.append(progress))
        assert done[-1] == (total, total)
        assert all(places.asked.all() for places in found)
        for text, places in zip(TEXTS, found, strict=True):
            first = int(text.prompt is None)
            for k in range(first, len(text.spans)):
                prompt = (text.prompt or {"prompt": ""})["prompt"]
                written = ask(expert, units, text.spans[:k], prompt)
                own = written.unit is not None and written.unit.text == text.spans[k]
                assert places.is_argmax[k - first] == own


def test_greedy_spans_find_the_models_own(units, connect):
    model = FakeModel(2, end=-20.0)
    answer = model.text(model.write(model.encode(PROMPT), 40)[0])
    starts = units.rule.starts(answer)
    spans = tuple(answer[a:b] for a, b in itertools.pairwise(starts))
    with serving(model) as server:
        (places,) = connect(server).greedy_spans([TextView({"prompt": PROMPT}, spans, False)], 99, 0, nothing)
    assert places.is_argmax[0] and places.is_argmax.mean() > 0.6  # where its tokens are the canonical ones


def test_the_sample_is_bounded_and_seeded(connect):
    with serving(echo=False) as server:
        expert = connect(server)
        one, again = (expert.greedy_spans(TEXTS, 5, 7, nothing) for _ in range(2))
        other = expert.greedy_spans(TEXTS, 5, 8, nothing)
    asked = [np.concatenate([places.asked for places in found]) for found in (one, again, other)]
    assert [int(bits.sum()) for bits in asked] == [5, 5, 5]
    assert (asked[0] == asked[1]).all() and (asked[0] != asked[2]).any()


def test_places_beyond_a_budget_are_not_asked(connect):
    with serving(echo=False) as server:
        found = connect(server, max_sent_characters=60).greedy_spans(TEXTS, 99, 0, nothing)
    assert 0 < sum(places.asked.sum() for places in found) < sum(len(places.asked) for places in found)
    assert not any((places.is_argmax & ~places.asked).any() for places in found)
