"""Spans that an endpoint writes: equal to a local model's, in one request where lists are allowed."""

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colm_jax.errors import UserError
from colm_jax.experts.protocol import Call
from colm_jax.experts.remote import Redaction
from colm_jax.experts.remote.answers import Choice
from colm_jax.experts.remote.bodies import Sampling, View
from colm_jax.experts.remote.writing import Draft
from colm_jax.text.spans import SpanRule
from tests.experts.remote.fake import EOS, SIZE, FakeModel, serving

PROMPT = "a cat and the dog. "
SPANS = (" the", " cat", ",", " player", " sat", ".", " on", " a", " mat", " 12", ".", " and", " m")


def calls(units, answers, **fields):
    made = [[units.spelled(text, "") for text in answer] for answer in answers]
    return [Call(i, {"prompt": PROMPT}, answer, seed=i, **fields) for i, answer in enumerate(made)]


def collect(expert, count):
    """All of `count` answers, by sequence."""
    found = {}
    while len(found) < count:
        got = expert.finished(wait=True)
        assert got
        found |= {written.sequence: written for written in got}
    return [found[i] for i in sorted(found)]


def whole(rule, model, prompt, answer):
    """The oracle: a span by the model itself, its first token among all that open one; None: an end of text."""
    ids, text = list(model.encode(prompt + answer)), ""
    first = np.array([not answer or not word or rule.opens(answer, word) for word in map(model.word, range(SIZE))])
    scores = model.after(ids)
    if answer and int(scores.argmax()) != EOS and not first[int(scores.argmax())]:
        first[EOS] = False  # it is chosen among likely tokens that open a span, and goes on
    for step in range(64):
        scores = np.where(first, model.after(ids), -np.inf) if step == 0 else model.after(ids)
        token = int(scores.argmax())
        if token == EOS:
            return text.rstrip() or None
        if step == 0 and not np.array_equal(scores, model.after(ids)) and token != int(model.after(ids).argmax()):
            text = model.text([token])
            ids = list(model.encode(prompt + answer + text))
        else:
            ids.append(token)
            text += model.text([token])
        end = next((i for i in range(1, len(text)) if rule.opens(text[i - 1], text[i])), None)
        if end is not None:
            return text[:end] if text[:end].strip() else None
    return None


ANSWERS = [SPANS[:count] for count in range(len(SPANS))]


@pytest.mark.parametrize("form", ["lists", "texts", "content", "chat"])
def test_greedy_spans_equal_the_models_own(form, units, connect):
    features = {"top": SIZE, "lists": form != "texts", "content_form": form == "content"}
    with serving(completions=form != "chat", **features) as server:
        plain = connect(server, rounds=8).abilities
        assert plain.top == (0 if form == "chat" else 20) and plain.chat_top == 20
        expert = connect(server, rounds=8, abilities=replace(plain, top=SIZE, chat_top=SIZE))
        expert.start(calls(units, ANSWERS))
        found = collect(expert, len(ANSWERS))
    prompt = PROMPT if form != "chat" else f"[user]{PROMPT}\n[assistant]"
    expected = [whole(units.rule, server.model, prompt, "".join(answer)) for answer in ANSWERS]
    assert [written.unit and written.unit.text for written in found] == expected
    assert sum(text is not None for text in expected) > 8
    assert all(written.unit or written.why for written in found) and not any(written.lost for written in found)
    repaired = [
        answer for answer in ANSWERS[1:] if not units.rule.opens(answer[-1], unmasked(server.model, prompt, answer))
    ]
    assert repaired, "some answers must need their first token chosen"


def unmasked(model, prompt, answer):
    return model.word(int(model.after(model.encode(prompt + "".join(answer))).argmax()))


def test_units_have_the_bases_tokens(units, connect):
    with serving() as server:
        expert = connect(server)
        expert.start(calls(units, [(), (" the", " cat")]))
        for written in collect(expert, 2):
            assert written.unit == units.spelled(written.unit.text, "x")
            assert len(written.unit.tokens) == len(written.unit.text)


def test_eight_waiting_sequences_go_in_one_request(units, connect):
    with serving() as server:
        expert = connect(server, abilities=connect(server).abilities, tokens=40)
        before = len(server.asked())
        expert.start(calls(units, [()] * 8))
        found = collect(expert, 8)
        (body,) = server.asked()[before:]
    assert body["prompt"] == [PROMPT] * 8
    assert [written.requests for written in found] == [1] * 8
    assert [written.characters for written in found] == [len(PROMPT)] * 8
    assert expert.passes == 1


def test_without_lists_requests_are_concurrent(units, connect):
    with serving(lists=False) as server:
        expert = connect(server)
        assert not expert.abilities.lists
        server.faults[:] = ["silence"] * 3  # these three hang; the others do not wait for them
        expert.start(calls(units, [()] * 5))
        found = expert.finished(wait=True)
        while len(found) < 2:
            found += expert.finished(wait=True)
        assert len(found) == 2 and not any(written.lost for written in found)


def test_sampling_parameters_are_all_sent(units, connect):
    with serving() as server:
        expert = connect(server)
        expert.start(calls(units, [()], temperature=0.7, top_p=0.9, top_k=5, min_p=0.1))
        collect(expert, 1)
        body = server.asked()[-1]
    wanted = {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.0}
    wanted |= {"repeat_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "n": 1, "stream": False}
    assert wanted.items() <= body.items() and body["max_tokens"] == 16


def test_sampled_spans_do_not_depend_on_the_batch(units, connect):
    answers = [SPANS[:3]] * 6
    with serving() as server:
        expert = connect(server)
        expert.start(calls(units, answers, temperature=1.0))
        together = [written.unit for written in collect(expert, 6)]
        alone = []
        for call in calls(units, answers, temperature=1.0):
            expert.start([call])
            alone += [written.unit for written in expert.finished(wait=True)]
    assert together == alone
    assert len({unit and unit.text for unit in together}) > 2


def test_a_strict_endpoint_refuses_what_it_does_not_take(units, connect):
    with serving(strict=True) as server:
        expert = connect(server)
        assert expert.abilities.extras == ()
        with pytest.raises(UserError, match=r"does not take top_k; leave it out"):
            expert.start(calls(units, [()], top_k=3))
        expert.start(calls(units, [()]))
        assert collect(expert, 1)[0].unit


@pytest.mark.parametrize(
    "written, answer, why",
    [
        ('"ing\\u0020home"', (" play",), "it continued the word before, and tells no other likely tokens"),
        ('"\\u0020\\n\\u0020" stop', (" play",), "it wrote only white space"),
        ('"" stop', (), "it ended the text"),
        ('""', (), "it wrote nothing"),
        ('"\\ufffd\\u0020a"', (), "it wrote bytes that are no text"),
        ('"\\ud83d\\u0020a"', (), "it wrote bytes that are no text"),  # half of a surrogate pair
    ],
)
def test_what_cannot_stand_is_not_written(written, answer, why, units, connect):
    with serving(top=0) as server:
        expert = connect(server)
        assert expert.abilities.top == 0 and not expert.abilities.scores
        server.faults.append(f"text {written}")
        expert.start(calls(units, [answer]))
        (found,) = collect(expert, 1)
    assert (found.unit, found.why, found.lost) == (None, why, False)


PIECES = st.sampled_from([*" a.1_\n\u2581", "bc", "PERSON_1", "PERSON_2", "PERSON_", "PER", "PERSON"])


@given(before=st.sampled_from(["", "So", "a.", "PERSON_1", "3"]), pieces=st.lists(PIECES, min_size=1, max_size=8))
@settings(max_examples=500, deadline=None)
def test_a_span_does_not_depend_on_how_it_comes(before, pieces):
    """In parts or at once; it opens at the seam, and has no boundary within, but in a restored value."""
    rule, rules = SpanRule(frozenset(), frozenset()), Redaction({"PERSON": (re.compile("Ada Love"),)})

    def outcome(texts):
        table = rules.pseudonyms()
        table.replace("Ada Love")
        draft = Draft(View(text=f"x{before}"), before, 0, Sampling(), table)
        read = (draft.read(Choice(text, i + 1 == len(texts), ()), rule) for i, text in enumerate(texts))
        return next(found for found in read if found is not None)

    found = outcome(pieces)
    assert found == outcome(["".join(pieces)])
    if found.text is not None:
        assert found.text.strip() and "PERSON_2" not in found.text
        assert not before or rule.opens(before, found.text)
        values = [(match.start(), match.end()) for match in re.finditer("Ada Love", found.text)]
        inner = [i for i in rule.starts(found.text)[1:] if not any(a < i < b for a, b in values)]
        assert not inner


@pytest.mark.parametrize("cut", ['"ab\\ufffd"', '"ab\\ud83d"'])
def test_parts_of_a_character_at_the_end_are_asked_for_again(cut, units, connect):
    with serving() as server:
        expert = connect(server)
        server.faults += [f"text {cut}", 'text "é\\u0020."']
        expert.start(calls(units, [()]))
        (found,) = collect(expert, 1)
        assert [body["prompt"] for body in server.asked()[-2:]] == [PROMPT, f"{PROMPT}ab"]
    assert found.unit and found.unit.text == "abé"


def test_white_space_at_the_end_belongs_to_no_span(units, connect):
    with serving() as server:
        expert = connect(server)
        server.faults.append('text "\\u0020ab\\u0020\\n" stop')
        expert.start(calls(units, [()]))
        (found,) = collect(expert, 1)
    assert found.unit and found.unit.text == " ab"


def test_an_end_of_text_is_left_to_the_base(units, connect):
    with serving(FakeModel(end=50.0)) as server:
        expert = connect(server)
        expert.start(calls(units, [(), (" a",)]))
        assert [(w.unit, w.why) for w in collect(expert, 2)] == [(None, "it ended the text")] * 2


def test_a_long_span_is_asked_for_in_parts(units, connect):
    with serving() as server:
        expert = connect(server)
        server.faults += ['text "ab"', 'text "c"', 'text "d\\u0020e"']
        expert.start(calls(units, [()]))
        (found,) = collect(expert, 1)
        assert [body["prompt"] for body in server.asked()[-3:]] == [PROMPT, f"{PROMPT}ab", f"{PROMPT}abc"]
    assert found.unit and found.unit.text == "abcd"
    assert (found.requests, found.characters) == (3, 3 * len(PROMPT) + 2 + 3)


def test_a_span_without_an_end_is_bounded(units, connect):
    with serving() as server:
        expert = connect(server, rounds=3)
        before = len(server.asked())
        server.faults[:] = ['text "abc"'] * 4
        expert.start(calls(units, [()]))
        (found,) = collect(expert, 1)
        assert len(server.asked()) - before == 3
    assert found.unit is None and found.why == "its span did not end within 48 tokens"


def test_a_span_that_does_not_fit_is_not_written(units, connect):
    with serving() as server:
        expert = connect(server)
        expert.start(calls(units, [()], most=0))
        (found,) = collect(expert, 1)
    assert found.unit is None and found.why.endswith("there is room for 0")


def test_released_sequences_are_dropped(units, connect):
    with serving() as server:
        expert = connect(server)
        expert.start(calls(units, [(), ()]))
        expert.release(0)
        assert [written.sequence for written in expert.finished(wait=True)] == [1]
        assert expert.finished(wait=True) == [] == expert.finished(wait=False)


def test_messages_go_to_chat_and_the_answer_is_the_unfinished_turn(units, connect):
    messages = [{"role": "user", "content": "a cat"}]
    with serving() as server:
        expert = connect(server)
        answer = [units.spelled(text, "") for text in (" the", " cat")]
        expert.start([Call(0, {"messages": messages}, answer, seed=0)])
        assert collect(expert, 1)
        path, _, body = server.requests[-1]
    assert path == "/v1/chat/completions"
    assert body["messages"] == [*messages, {"role": "assistant", "content": " the cat"}]
    assert body["continue_final_message"] is True and body["add_generation_prompt"] is False


def test_messages_need_chat(units, connect):
    with serving(chat=False) as server:
        expert = connect(server)
        with pytest.raises(UserError, match=r"give 'expert_prompt', the prompt as a text"):
            expert.start([Call(0, {"messages": [{"role": "user", "content": "a"}]}, [], seed=0)])
