"""Scores of spans from an endpoint's log-probabilities of tokens: equal to a slow oracle by characters."""

import itertools
import math

import numpy as np
import pytest

from colm_jax.data.units import TextView
from colm_jax.errors import UserError
from colm_jax.experts.remote.answers import Malformed, TokenScore
from colm_jax.experts.remote.scores import PromptScores, SpanText, span_scores, spell
from tests.experts.remote.fake import SIZE, FakeModel, serving

PROMPT = {"prompt": "a cat and the dog. "}
TEXTS = [
    TextView(PROMPT, ("the", " player", " sat", " on", " the", " mat", ".", " A", " café", ",", " 12"), True),
    TextView(PROMPT, (" a", " cat", " sat", ".", " The", " end"), False),
    TextView(None, ("Once", " a", " cat", ",", " the", " end", "."), True),
    TextView(PROMPT, (" éé", ".", " play", "?"), False),
]


def nothing(done, total):
    pass


def oracle(rule, model, text, top=SIZE):
    """log A of each span that counts, and whether it is the model's greedy one; each token shared by characters."""
    prompt = "" if text.prompt is None else text.prompt["prompt"]
    whole = prompt + "".join(text.spans)
    ids = model.encode(whole)
    each, greedy, starts, size = np.zeros(len(whole)), np.ones(len(whole), bool), {}, 0
    for i, token in enumerate(ids):
        first = len(whole.encode()[:size].decode("utf-8", "ignore"))
        starts.setdefault(first, i) if whole.encode()[:size].decode("utf-8", "replace") == whole[:first] else None
        size += len(model.tokens[token])
        last = len(whole.encode()[:size].decode("utf-8", "replace"))
        if i:
            log_prob = model.after(ids[:i])
            each[first:last] += log_prob[token] / (last - first)
            greedy[first:last] &= log_prob[token] == log_prob.max()
    scores, bits, edges = [], [], np.cumsum([len(prompt), *map(len, text.spans)])
    masses = [0.0] * len(edges)
    best, closes = [True] * len(edges), [True] * len(edges)
    for k, edge in enumerate(edges.tolist()):
        at_end = k == len(edges) - 1
        if k == 0 or (edge not in starts and not at_end) or (at_end and not text.finished):
            continue
        i = len(ids) if at_end else starts[edge]
        log_prob = model.after(ids[:i])
        seen = np.argsort(-log_prob, kind="stable")[:top]
        words = [model.word(v) for v in range(SIZE)]
        within = np.array([bool(w) and "\ufffd" not in w and not rule.opens(whole[edge - 1], w) for w in words])
        mass = 1 - np.exp(log_prob[seen][within[seen]]).sum()
        masses[k] = math.log(min(max(mass, 0 if at_end else math.exp(log_prob[ids[i]])), 1))
        closes[k] = not within[log_prob.argmax()]
        best[k] = not at_end and log_prob[ids[i]] == log_prob[~within].max()
    for k, (a, b) in enumerate(zip(edges[:-1].tolist(), edges[1:].tolist())):
        if k == 0 and text.prompt is None:
            continue
        scores.append(each[a:b].sum() + masses[k + 1] - masses[k])
        size = len(model.tokens[ids[starts[a]]].decode("utf-8", "replace")) if a in starts else 0
        rest = greedy[a + size : b].all() if k and size else greedy[a:b].all()
        if k and size and a + size > b:  # its token lies over the next boundary
            rest = True
        bits.append(bool(closes[k + 1] and rest and (best[k] if k and size else True)))
    return np.array(scores), np.array(bits)


@pytest.mark.parametrize("form", ["echo", "prompt_logprobs"])
@pytest.mark.parametrize("seed", range(3))
def test_scores_equal_the_oracle(form, seed, units, connect):
    with serving(FakeModel(seed), echo=form == "echo", prompt_logprobs=True) as server:
        expert = connect(server)
        assert (expert.abilities.scores, expert.abilities.top) == (form, 20)
        done = []
        found = expert.score(TEXTS, lambda *progress: done.append(progress))
    assert done[-1] == (len(TEXTS), len(TEXTS))
    for text, scores in zip(TEXTS, found, strict=True):
        log_prob, is_argmax = oracle(units.rule, server.model, text, top=20)
        np.testing.assert_allclose(scores.log_prob, log_prob, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(scores.is_argmax, is_argmax)
        assert len(scores.log_prob) == len(text.spans) - (text.prompt is None)


def test_one_by_one_and_together_give_the_same_scores(units, connect):
    with serving(lists=False) as server:
        alone = connect(server).score(TEXTS, nothing)
    with serving() as server:
        expert = connect(server)
        before = len(server.asked())
        together = expert.score(TEXTS, nothing)
        assert len(server.asked()) - before == 1
        server.faults.append("list")
        after_a_failure = expert.score(TEXTS, nothing)
    for others in (alone, after_a_failure):
        for one, other in zip(together, others, strict=True):
            np.testing.assert_array_equal(one.log_prob, other.log_prob)
            np.testing.assert_array_equal(one.is_argmax, other.is_argmax)


def test_sums_are_those_of_the_tokens(units, connect):
    model, text = FakeModel(), TextView(PROMPT, (" a", " playing", ".", " e", ","), False)
    with serving(model) as server:
        expert = connect(server)
        (scores,) = expert.score([text], nothing)
    ids = model.encode(PROMPT["prompt"] + "".join(text.spans))
    start = len(model.encode(PROMPT["prompt"]))
    total = sum(model.after(ids[:i])[ids[i]] for i in range(start, len(ids)))
    assert scores.log_prob.sum() == pytest.approx(total, abs=1e-4)  # opening masses cancel in the sum
    # " e," is written as " ", "e,": the token over the boundary is shared by its two characters.
    assert model.word(ids[-1]) == "e," and scores.log_prob[-1] > model.after(ids[:-1])[ids[-1]]
    assert scores.log_prob[-1] == pytest.approx(model.after(ids[:-1])[ids[-1]] / 2, abs=1e-4)


def test_greedy_texts_are_their_own_argmax(units, connect):
    model, found = FakeModel(3, end=-20.0), 0
    ids, _ = model.write(model.encode("a cat"), 60)
    answer = model.text(ids)
    starts = [*units.rule.starts(answer), len(answer)]
    view = TextView({"prompt": "a cat"}, tuple(answer[a:b] for a, b in itertools.pairwise(starts)), False)
    if model.encode("a cat" + answer)[len(model.encode("a cat")) :] == tuple(ids):
        found = len(view.spans)
    with serving(model) as server:
        (scores,) = connect(server).score([view], nothing)
    if found:
        assert scores.is_argmax.all()
    assert scores.is_argmax.sum() > len(view.spans) // 2


@pytest.mark.parametrize(
    "tokens, text, places",
    [
        (["a", " b"], "a b", [(0, 1), (1, 3)]),
        (["<s>", "a", " b"], "a b", [(0, 0), (0, 1), (1, 3)]),
        ([" a", " b"], "a b", [(-1, 1), (1, 3)]),  # a space that a tokenizer adds at the beginning
        (["x", "a b"], "b", [(0, 0), (-2, 1)]),
        (["a", "\ufffd", "\ufffd", "b"], "aéb", [(0, 1), (1, 2), (1, 2), (2, 3)]),
        (["a", "", "", "b"], "aéb", [(0, 1), (1, 2), (1, 2), (2, 3)]),
        (["\ufffd", "\ufffd"], "é", [(0, 1), (0, 1)]),
        (["<s>", "\ufffd", "\ufffd"], "é", None),
        (["a", "c"], "ab", None),
        (["b"], "ab", None),
        ([], "", []),
    ],
)
def test_tokens_are_placed_by_their_texts(tokens, text, places):
    found = spell(tokens, text)
    if tokens == ["<s>", "\ufffd", "\ufffd"]:
        assert found and found[1:] == [(0, 1), (0, 1)] and found[0][1] <= 0
    else:
        assert found == places


def test_an_opening_mass_is_at_least_the_texts_own(units):
    # Behind "cat" the endpoint names "s" (0.9) only; the text's own token opens with 0.3, rounded.
    top = (("s", math.log(0.9)),)
    tokens = (
        TokenScore(" cat", -1.0, ()),
        TokenScore(" sat", math.log(0.3), top),
    )
    text = SpanText(" cat sat", (0, 4, 8), False, False)
    scores = span_scores(PromptScores(tokens, None), text, units.rule.opens)
    np.testing.assert_allclose(scores.log_prob, [-1.0 + math.log(0.3), 0.0], atol=1e-6)
    assert scores.is_argmax.tolist() == [False, True]  # "cats" is likelier than "cat", but not among spans


def test_tokens_that_spell_another_text_are_an_error(units):
    scores = PromptScores((TokenScore("dog", -1.0, ()),), None)
    with pytest.raises(Malformed, match="do not spell the text"):
        span_scores(scores, SpanText("cat", (0, 3), False, False), units.rule.opens)


def test_without_scores_of_prompts_the_error_names_the_way_out(units, connect):
    with serving(echo=False) as server, pytest.raises(UserError, match=r"use objective weak"):
        connect(server).score(TEXTS, nothing)


def test_conversations_are_scored_where_chat_does(units, connect):
    view = TextView({"messages": [{"role": "user", "content": "a cat"}]}, (" the", " cat", " sat", "."), True)
    with serving(echo=False, prompt_logprobs=True) as server:
        expert = connect(server)
        assert expert.abilities.chat_scores
        (scores,) = expert.score([view], nothing)
    rendered = TextView({"prompt": "[user]a cat\n[assistant]"}, view.spans, True)
    log_prob, is_argmax = oracle(units.rule, server.model, rendered, top=20)
    np.testing.assert_allclose(scores.log_prob, log_prob, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(scores.is_argmax, is_argmax)
    with serving(prompt_logprobs=False) as server, pytest.raises(UserError, match=r"give 'expert_prompt'"):
        connect(server).score([view], nothing)


def test_a_text_that_is_refused_is_named(units, connect):
    refused = pytest.raises(UserError, match=r"text 1: status 400: the prompt is longer than the context")
    with serving(context=50) as server, refused:
        connect(server).score(TEXTS, nothing)


def test_texts_without_spans_send_nothing(connect):
    with serving() as server:
        expert = connect(server)
        before = len(server.requests)
        assert expert.score([], nothing) == []
        empty, single = expert.score([TextView(PROMPT, (), True), TextView(None, ("a",), True)], nothing)
        assert len(server.requests) == before
    assert len(empty.log_prob) == len(single.is_argmax) == 0
