"""Answers over HTTP: their shapes, streams, log-probabilities and tokens."""

import threading

import httpx
import numpy as np
import pytest

from colm_jax import CoLM
from colm_jax.settings.serving import ServingSettings
from tests.serving.client import choices_of, error, long_answer, stream
from tests.serving.conftest import start

# Answers.


def test_the_models_are_listed(server):
    (card,) = httpx.get(f"{server.url}/v1/models").json()["data"]
    assert (card["id"], card["object"], card["max_model_len"]) == ("tiny", "model", 128)
    assert card["colm"]["strategies"] == ["defer", "base", "expert"] and card["colm"]["chat"]
    assert httpx.get(f"{server.url}/v1/models/tiny").json() == card
    assert httpx.get(f"{server.url}/v1/models/other").status_code == 404


def test_a_chat_answer_is_that_of_generate(server):
    messages = [{"role": "user", "content": "hello"}]
    body = {"messages": messages, "temperature": 0, "max_completion_tokens": 12}
    found = server.post("/v1/chat/completions", body).json()
    (answer,) = server.team.generate([{"messages": messages}], max_new_tokens=12)
    (choice,) = found["choices"]
    assert choice["message"] == {"role": "assistant", "content": answer.text, "refusal": None}
    assert choice["colm"]["sources"] == answer.sources and choice["colm"]["finish_reason"] == answer.finish_reason
    np.testing.assert_allclose(choice["colm"]["p_defer"], answer.p_defer, atol=1e-5)
    assert found["object"] == "chat.completion" and found["usage"]["completion_tokens"] == len(answer.tokens)
    parts = [{"role": "user", "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]}]
    again = server.post("/v1/chat/completions", {**body, "messages": parts}).json()
    assert again["choices"][0]["message"]["content"] == answer.text


def test_the_marks_of_an_answer_are_those_of_generate_and_of_its_chunks(server):
    (choice,) = server.complete("hello", max_tokens=40)["choices"]
    (answer,) = server.team.generate(["hello"], max_new_tokens=40)
    check = choice["colm"]["check"]
    assert [(mark["start"], mark["end"]) for mark in check] == [(mark.start, mark.end) for mark in answer.check]
    np.testing.assert_allclose([mark["risk"] for mark in check], [mark.risk for mark in answer.check], atol=1e-3)
    assert choice["colm"]["risk"] == pytest.approx(answer.risk, abs=1e-3)
    body = {"prompt": "hello", "temperature": 0, "max_tokens": 40, "echo": True}
    parts = choices_of(stream(server, "/v1/completions", body))
    streamed = [mark for part in parts for mark in part.get("colm", {}).get("check", ())]
    covered = {i for mark in streamed for i in range(mark["start"], mark["end"])}
    text = answer.text
    assert {i for i in covered if not text[i].isspace()} == {
        i for mark in answer.check for i in range(mark.start, mark.end) if not text[i].isspace()
    }
    assert check and len(covered) < len(text)
    assert all("risk" not in each["colm"] for each in server.complete("hello", strategy="base")["choices"])


def test_without_a_number_a_chat_answer_ends_by_itself_or_with_the_context(server):
    body = {"messages": [{"role": "user", "content": "hello"}], "temperature": 0}
    found = server.post("/v1/chat/completions", body).json()
    length = found["usage"]["total_tokens"]
    assert found["choices"][0]["colm"]["finish_reason"] == ("length" if length == 128 else "eos")


def test_samples_and_seeds_are_those_of_generate(server):
    fields = {"max_tokens": 16, "temperature": 1.0, "seed": 7, "n": 3, "threshold": 0.5}
    body = server.complete(["ab", "cd"], **fields)
    expected = server.team.generate(["ab", "cd"], max_new_tokens=16, temperature=1.0, seed=7, samples=3, threshold=0.5)
    assert [choice["text"] for choice in body["choices"]] == [answer.text for answer in expected]
    assert [choice["index"] for choice in body["choices"]] == list(range(6))
    assert len({choice["text"] for choice in body["choices"][:3]}) > 1
    prompts = sum(len(expected[i].prompt_ids) for i in (0, 3))
    assert body["usage"]["prompt_tokens"] == prompts
    unseeded = {server.complete("ab", max_tokens=16, temperature=1.0)["choices"][0]["text"] for _ in range(4)}
    assert len(unseeded) > 1


@pytest.mark.parametrize("prompt", ["ab cd", [4, 5, 3, 6, 7]])
def test_text_ids_and_lists_of_them_are_prompts(server, prompt):
    record = {"prompt": prompt} if isinstance(prompt, str) else {"input_ids": prompt}
    (answer,) = server.team.generate([record], max_new_tokens=8)
    assert server.complete(prompt, max_tokens=8)["choices"][0]["text"] == answer.text
    both = server.complete([prompt, prompt], max_tokens=8)["choices"]
    assert [choice["text"] for choice in both] == [answer.text] * 2


def test_what_an_expert_reads_in_the_prompts_place_changes_its_words(server):
    fields = {"strategy": "expert", "max_tokens": 12}
    (answer,) = server.team.generate(
        [{"prompt": "ab", "expert_prompt": "other words"}], strategy="expert", max_new_tokens=12
    )
    assert server.complete("ab", expert_prompt="other words", **fields)["choices"][0]["text"] == answer.text
    assert answer.text != server.complete("ab", **fields)["choices"][0]["text"]
    both = server.complete(["ab", "cd"], expert_prompt="ab", **fields)["choices"]  # its own view is that of one only
    records = [{"prompt": prompt, "expert_prompt": "ab"} for prompt in ("ab", "cd")]
    expected = server.team.generate(records, strategy="expert", max_new_tokens=12)
    assert [choice["text"] for choice in both] == [answer.text for answer in expected]
    messages = {"expert_messages": [{"role": "user", "content": "other"}]}
    (answer,) = server.team.generate([{"prompt": "ab", **messages}], strategy="expert", max_new_tokens=12)
    assert server.complete("ab", **messages, **fields)["choices"][0]["text"] == answer.text


# Streams.


@pytest.mark.parametrize("route", ["/v1/completions", "/v1/chat/completions"])
def test_a_stream_is_the_whole_answer_in_parts(server, route):
    chat = "chat" in route
    prompt = {"messages": [{"role": "user", "content": "hi there"}]} if chat else {"prompt": "hi there"}
    body = {**prompt, "temperature": 0, "max_tokens": 40, "n": 2}
    whole = server.post(route, body).json()
    events = stream(server, route, body)
    assert events[-1] == "[DONE]" and len({event["id"] for event in events[:-1]}) == 1
    assert not any("usage" in event for event in events[:-1])
    assert {event["object"] for event in events[:-1]} == {"chat.completion.chunk" if chat else "text_completion"}
    for wanted in whole["choices"]:
        own = [choice for choice in choices_of(events) if choice["index"] == wanted["index"]]
        if chat:
            assert own[0]["delta"] == {"role": "assistant", "content": ""} and "colm" not in own[0]
            own = own[1:]
            assert all("role" not in choice["delta"] for choice in own) and own[-1]["delta"] == {}
        text = "".join(choice["delta"].get("content", "") if chat else choice["text"] for choice in own)
        assert text == (wanted["message"]["content"] if chat else wanted["text"])
        for name in ("tokens", "pieces", "sources", "p_defer", "threshold"):
            joined = [value for choice in own for value in choice["colm"][name]]
            assert (
                joined == pytest.approx(wanted["colm"][name], abs=1e-5) if name == "p_defer" else wanted["colm"][name]
            )
        assert sum(choice["colm"]["expert_calls"] for choice in own) == wanted["colm"]["expert_calls"]
        assert [choice["finish_reason"] for choice in own[:-1]] == [None] * (len(own) - 1)
        assert own[-1]["finish_reason"] == wanted["finish_reason"]


def test_usage_is_given_where_it_is_asked_for_and_there_only(server):
    body = {"prompt": "ab", "temperature": 0, "max_tokens": 5}
    events = stream(server, "/v1/completions", {**body, "stream_options": {"include_usage": True}})
    assert all(event["usage"] is None for event in events[:-2])
    written = sum(len(choice["colm"]["tokens"]) for choice in choices_of(events))
    assert events[-2]["choices"] == [] and events[-2]["usage"]["completion_tokens"] == written > 0
    refused = server.post("/v1/completions", {**body, "stream_options": {"include_usage": True}})
    assert refused.status_code == 400 and error(refused)["param"] == "stream_options"


def test_no_beginning_of_a_stop_string_is_in_a_stream(server):
    prompt, text = long_answer(server)
    stop = text[9:12]
    body = {"prompt": prompt, "temperature": 0, "max_tokens": 40, "stop": stop}
    events = stream(server, "/v1/completions", body)
    cut = text[: text.index(stop)]
    shown = ""
    for choice in choices_of(events):
        shown += choice["text"]
        assert cut.startswith(shown)
    assert shown == cut and choices_of(events)[-1]["finish_reason"] == "stop"


def test_a_smaller_context_is_that_of_the_server(team_directory):
    """Prompts that it cannot hold are refused, answers end with it, and the cache has its size."""
    settings = ServingSettings(slots=1, strategies=("base",), context=32)
    short = start(lambda: CoLM.from_pretrained(team_directory), settings)
    assert short.service.fixed.shape.positions == 32
    refused = short.post("/v1/completions", {"prompt": "a" * 31, "max_tokens": 1})
    assert refused.status_code == 400 and error(refused)["code"] == "context_length_exceeded"
    bodies = [short.complete(prompt, max_tokens=100, stop_token_ids=[]) for prompt in ("abc", "x y", "hello", "q")]
    longest = max(body["usage"]["total_tokens"] for body in bodies)
    assert longest == 32 and httpx.get(f"{short.url}/v1/models").json()["data"][0]["max_model_len"] == 32


def test_a_silent_stream_gets_comments(team_directory):
    """The server is held up, as by a long prompt; a comment comes for each `ping` seconds of silence."""
    slow = start(
        lambda: CoLM.from_pretrained(team_directory), ServingSettings(slots=1, ping=0.05, strategies=("base",))
    )
    held = threading.Event()
    slow.service._commands.put(lambda: held.wait(20))
    seen = []
    with httpx.stream(
        "POST", f"{slow.url}/v1/completions", json={"prompt": "a", "max_tokens": 2, "stream": True}, timeout=60
    ) as response:
        for line in response.iter_lines():
            seen.append(line)
            if len([each for each in seen if each == ": ping"]) == 2:
                held.set()
    assert seen.index(": ping") == 0 and seen[-2:] == ["data: [DONE]", ""]


# Log-probabilities.


def scores(server, text, strategy, threshold=0.5):
    """Log-probability of each token of a text after the first, and whether it is what the team would write."""
    (found,) = server.team.score([{"input_ids": text, "labels": text}])
    models = np.column_stack([found.base_log_prob, found.expert_log_probs]).astype(np.float64)
    if strategy in ("base", "expert"):
        column = ("base", "expert").index(strategy)
        return models[:, column], found.is_argmax[:, column]
    gate = found.gate_logits[:, 0].astype(np.float64)
    writers = np.stack([-np.logaddexp(0, gate), -np.logaddexp(0, -gate)], 1)
    deferred = 1 / (1 + np.exp(-gate)) > threshold
    return np.logaddexp(*(writers + models).T), found.is_argmax[np.arange(len(gate)), deferred.astype(int)]


@pytest.mark.parametrize("strategy", ["defer", "base", "expert"])
def test_echoed_log_probabilities_are_those_of_score(server, strategy):
    rng = np.random.default_rng(0)
    text = [1, *rng.integers(3, 30, 40).tolist()]
    text[20:25] = server.team.generate([{"input_ids": text[:20]}], max_new_tokens=5, strategy=strategy)[0].tokens
    fields = {"max_tokens": 1, "echo": True, "logprobs": 1, "strategy": strategy}
    found = server.complete(text, **fields)["choices"][0]["logprobs"]
    expected, greedy = scores(server, text, strategy)
    assert found["token_logprobs"][0] is None and found["top_logprobs"][0] is None
    np.testing.assert_allclose(found["token_logprobs"][1:-1], expected, atol=1e-4)
    got = [value == max(top.values()) for value, top in zip(found["token_logprobs"], found["top_logprobs"]) if top]
    assert got[:-1] == greedy.tolist() and greedy[19:24].all() and not greedy.all()
    alone = server.complete(text, **{**fields, "max_tokens": 0})["choices"][0]
    assert alone["logprobs"]["token_logprobs"] == found["token_logprobs"][:-1]
    parts = choices_of(stream(server, "/v1/completions", {"prompt": text, **fields, "max_tokens": 0, "temperature": 0}))
    assert parts[-1]["logprobs"] == alone["logprobs"] and parts[-1]["finish_reason"] == "length"
    assert alone["colm"]["tokens"] == [] and alone["text"] == server.team.tokenizer.decode(text)


def test_log_probabilities_of_written_tokens_and_their_alternatives(server):
    whole = server.complete("abc", max_tokens=9, logprobs=3)["choices"][0]
    found = whole["logprobs"]
    assert len(found["tokens"]) == len(whole["colm"]["tokens"]) == len(found["text_offset"])
    assert found["text_offset"][0] == 0 and "".join(whole["colm"]["pieces"]) == whole["text"]
    for own, top in zip(found["token_logprobs"], found["top_logprobs"]):
        assert own in top.values() and len(top) == 3  # greedy: what was written is among them
    events = stream(server, "/v1/completions", {"prompt": "abc", "temperature": 0, "max_tokens": 9, "logprobs": 3})
    parts = [choice["logprobs"] for choice in choices_of(events) if choice["logprobs"]]
    assert [offset for part in parts for offset in part["text_offset"]] == found["text_offset"]
    joined = [value for part in parts for value in part["token_logprobs"]]
    np.testing.assert_allclose(joined, found["token_logprobs"], atol=1e-5)
    chat = {"messages": [{"role": "user", "content": "a"}], "temperature": 0, "max_tokens": 6, "logprobs": True}
    (choice,) = server.post("/v1/chat/completions", {**chat, "top_logprobs": 2}).json()["choices"]
    assert len(choice["logprobs"]["content"]) == 6
    for entry in choice["logprobs"]["content"]:
        assert bytes(entry["bytes"]).decode() == entry["token"] and len(entry["top_logprobs"]) == 2
        assert entry["top_logprobs"][0]["token"] == entry["token"]
        assert entry["top_logprobs"][0]["logprob"] == entry["logprob"] < 0


def test_candidates_of_each_model(server):
    found = server.post("/v1/candidates", {"tokens": [1, 4, 5], "top": 4}).json()
    assert list(found["models"]) == ["base", "expert-1", "team"]
    for strategy, name in (("base", "base"), ("expert", "expert-1")):
        (answer,) = server.team.generate([{"input_ids": [1, 4, 5]}], max_new_tokens=1, strategy=strategy)
        assert found["models"][name][0]["token"] == answer.tokens[0] and len(found["models"][name]) == 4
    (answer,) = server.team.generate([{"input_ids": [1, 4, 5]}], max_new_tokens=1)
    assert found["p_defer"] == pytest.approx(answer.p_defer[0], abs=1e-5)


# Tokens.


def test_tokens_of_texts_and_texts_of_tokens(server):
    tokenizer = server.team.tokenizer
    found = server.post("/tokenize", {"prompt": "ab c"}).json()
    assert found["tokens"] == tokenizer.encode("ab c") and found["count"] == 5 and found["max_model_len"] == 128
    plain = server.post("/tokenize", {"prompt": "ab c", "add_special_tokens": False}).json()
    assert plain["tokens"] == tokenizer.encode_plain("ab c")
    assert server.post("/detokenize", {"tokens": plain["tokens"]}).json() == {"prompt": "ab c"}
    chat = server.post("/tokenize", {"messages": [{"role": "user", "content": "hi"}]}).json()
    assert tokenizer.decode(chat["tokens"]).endswith("a?")
    info = httpx.get(f"{server.url}/tokenizer_info").json()
    assert (info["eos_token"], info["bos_token"]) == ("</s>", "<s>") and info["chat_template"]
