"""The API over HTTP: shapes, streams, errors, and what other servers got wrong."""

import asyncio
import json
import re
import threading
import time
from base64 import b64encode

import httpx
import numpy as np
import pytest

from colm_jax import CoLM
from colm_jax.serving.service import Draining
from colm_jax.settings.serving import ServingSettings
from tests.serving.conftest import SLOTS, start


def stream(server, route, body) -> list:
    """The events of a stream: bodies, and the text of what is no JSON."""
    found = []
    with httpx.stream("POST", f"{server.url}{route}", json={**body, "stream": True}, timeout=60) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        for line in response.iter_lines():
            if line.startswith("data: "):
                data = line.removeprefix("data: ")
                found.append(json.loads(data) if data != "[DONE]" else data)
            elif line:
                found.append(line)
    return found


def long_answer(server) -> tuple[str, str]:
    """A prompt whose greedy answer has at least 20 characters, and this answer."""
    prompts = ["a", "abc", "x y", "hello", "the", "zz", "q", "once"]
    texts = [choice["text"] for choice in server.complete(prompts, max_tokens=40)["choices"]]
    return next((prompt, text) for prompt, text in zip(prompts, texts) if len(text) >= 20)


def choices_of(events):
    return [choice for event in events if isinstance(event, dict) for choice in event["choices"]]


def error(response) -> dict:
    """The error of a response, which has OpenAI's shape."""
    (found,) = response.json().values()
    assert set(found) == {"message", "type", "param", "code"} and "\n" not in found["message"]
    return found


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


# Errors.


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": "a" * 200}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [99]}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 65}, "n"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop_token_ids": [77]}, "stop_token_ids"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"threshold": 2}, "threshold"),
        ({"strategy": "compose"}, "strategy"),
        ({"strategy": 3}, "strategy"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"guided_choice": ["a"]}, "guided_choice"),
        ({"expert_prompt": "a", "expert_messages": []}, "expert_prompt"),
        ({"expert_prompt": "a" * 300}, "expert_prompt"),
        ({"expert_messages": [{"role": "king"}]}, "expert_messages"),
        ({"expert_prompt": "b", "logprobs": 1}, "logprobs"),
        ({"max_tokens": 3, "prompt": ["a"] * 50, "n": 7}, "n"),
        ({"speculate": "often"}, "speculate"),
    ],
)
def test_a_bad_field_is_named(server, fields, param):
    before = server.metric("colm_requests_total", outcome="400", route="/v1/completions")
    response = server.post("/v1/completions", {"prompt": "a", **fields})
    assert response.status_code == 400, response.text
    found = error(response)
    assert found["param"] == param and found["type"] == "invalid_request_error" and found["message"]
    assert server.metric("colm_requests_total", outcome="400", route="/v1/completions") == before + 1


def test_fields_that_change_nothing_are_accepted(server):
    neutral = {
        **{"user": "me", "metadata": {"a": "b"}, "store": True, "logit_bias": {}, "suffix": None, "tools": None},
        **{"presence_penalty": 0, "frequency_penalty": 0.0, "response_format": {"type": "text"}, "best_of": 1},
    }
    assert server.complete("a", **neutral)["choices"] == server.complete("a")["choices"]


def test_other_errors_have_openais_shape_too(server):
    for response, status in (
        (server.post("/v1/completions", {"prompt": "a", "model": "gpt-4"}), 404),
        (httpx.post(f"{server.url}/v1/completions", content=b"{"), 400),
        (httpx.post(f"{server.url}/v1/completions", content=b'{"prompt": "' + b"a" * 100_001 + b'"}'), 413),
        (httpx.get(f"{server.url}/v1/completions"), 405),
        (httpx.get(f"{server.url}/nowhere"), 404),
        (
            server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
            400,
        ),
        (server.post("/v1/chat/completions", {"messages": [{"role": "king", "content": 3}]}), 400),
        (server.post("/tokenize", {}), 400),
        (server.post("/detokenize", {"tokens": [4000]}), 400),
        (server.post("/v1/candidates", {"tokens": [3] * 129}), 400),
    ):
        assert response.status_code == status, response.text
        assert error(response)["message"]


def test_the_key_is_asked_for_on_every_route_but_health(team_directory):
    settings = ServingSettings(slots=1, strategies=("base",))
    locked = start(lambda: CoLM.from_pretrained(team_directory), settings, key="se cret")
    routes = [("GET", r) for r in ("/", "/metrics", "/v1/models", "/v1/models/tiny", "/tokenizer_info", "/nowhere")]
    routes += [("POST", f"/{r}") for r in ("v1/completions", "v1/chat/completions", "tokenize", "detokenize")]
    routes += [("POST", "/v1/candidates")]
    for method, route in routes:
        for header in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Bearer"},
            {"Authorization": "se cret"},
        ):
            response = httpx.request(method, f"{locked.url}{route}", headers=header)
            assert response.status_code == 401, route
            assert error(response)["code"] == "invalid_api_key"
    assert httpx.get(f"{locked.url}/health").status_code == 200
    basic = {"Authorization": "Basic " + b64encode(b"anyone:se cret").decode()}
    for header in ({"Authorization": "Bearer se cret"}, basic):
        assert httpx.get(f"{locked.url}/v1/models", headers=header).status_code == 200
    assert httpx.get(f"{locked.url}/").headers["www-authenticate"].startswith("Basic")


def test_front_ends_may_send_fields_of_their_own_where_the_server_lets_them(team_directory):
    settings = ServingSettings(slots=1, strategies=("base",), ignore_unknown_fields=True)
    lenient = start(lambda: CoLM.from_pretrained(team_directory), settings, origins=("https://chat.example",))
    assert lenient.post("/v1/completions", {"prompt": "a", "chat_id": 3, "mirostat": 1}).status_code == 200
    refused = lenient.post("/v1/completions", {"prompt": "a", "logit_bias": {"3": 5}})
    assert refused.status_code == 400  # this one would change the answer
    asks = {"Origin": "https://chat.example", "Access-Control-Request-Method": "POST"}
    allowed = httpx.options(f"{lenient.url}/v1/completions", headers=asks)
    assert allowed.headers["access-control-allow-origin"] == "https://chat.example"


def test_no_other_page_may_call_the_api(server):
    """Nor send what browsers send without asking the server first: a form, or JSON as plain text."""
    for origin in ("https://chat.example", "null", "http://127.0.0.1"):
        headers = {"Origin": origin, "Content-Type": "text/plain"}
        response = httpx.post(f"{server.url}/v1/completions", content=b'{"prompt": "a"}', headers=headers)
        assert response.status_code == 403 and "--cors_origin" in error(response)["message"]
        assert "access-control-allow-origin" not in response.headers
    own = server.post("/v1/completions", {"prompt": "a", "max_tokens": 1}, headers={"Origin": server.url})
    assert own.status_code == 200


def test_other_names_of_this_machine_are_refused(server, monkeypatch):
    monkeypatch.setattr(server.server, "hosts", ("127.0.0.1", "localhost"))
    for host, status in (("evil.example", 403), ("evil.example:8000", 403), ("localhost:1", 200), ("127.0.0.1", 200)):
        assert httpx.get(f"{server.url}/v1/models", headers={"Host": host}).status_code == status


def test_requests_that_are_left_at_the_end_are_told_so(team_directory):
    ending = start(
        lambda: CoLM.from_pretrained(team_directory), ServingSettings(slots=1, strategies=("base", "compose"))
    )
    # This strategy compares models' tokens.
    refused = ending.post("/v1/completions", {"prompt": "a", "strategy": "compose", "expert_prompt": "b"})
    assert refused.status_code == 400 and error(refused)["param"] == "expert_prompt"
    body = {"prompt": "a", "n": 30, "max_tokens": 120, "temperature": 1.0, "stop_token_ids": []}

    async def end():
        async with httpx.AsyncClient(base_url=ending.url, timeout=60) as client:
            asked = [asyncio.create_task(_post(client, {**body, "stream": stream})) for stream in (False, True)]
            while ending.service.unfinished < 50:  # both are accepted
                await asyncio.sleep(0)
            read = ending.service.candidates([3] * 20)  # what is begun before the end is still done
            ending.service.drain()
            await asyncio.to_thread(ending.service.stop)
            assert read.done() and not ending.service.alive
            late = ending.service.candidates([3])
            return [await each for each in asked], late

    (whole, streamed), late = asyncio.run(end())
    assert whole.status_code == 503 and error(whole)["type"] == "server_error"
    assert '"error"' in streamed.text.splitlines()[-2] and "[DONE]" not in streamed.text
    assert isinstance(late.exception(timeout=1), Draining)


def test_a_thread_that_ends_is_seen_in_health(team_directory, monkeypatch):
    from colm_jax.serving.service import Service

    broken = start(lambda: CoLM.from_pretrained(team_directory), ServingSettings(slots=1, strategies=("base",)))
    monkeypatch.setattr(Service, "_step", lambda *_: 1 / 0)
    assert broken.post("/v1/completions", {"prompt": "a"}).status_code == 503
    response = httpx.get(f"{broken.url}/health")
    assert response.status_code == 503 and "failed" in error(response)["message"]


# Slots and queues.


async def _post(client, body):
    return await client.post("/v1/completions", json=body)


def test_beyond_the_queue_requests_are_refused(team_directory):
    small = start(
        lambda: CoLM.from_pretrained(team_directory), ServingSettings(slots=1, max_waiting=2, strategies=("base",))
    )
    held = threading.Event()
    small.service._commands.put(lambda: held.wait(30))

    async def many():
        async with httpx.AsyncClient(base_url=small.url, timeout=60) as client:
            body = {"prompt": "a", "max_tokens": 3, "temperature": 0}
            asked = [asyncio.create_task(_post(client, body)) for _ in range(6)]
            _, pending = await asyncio.wait(asked, timeout=5)
            assert len(pending) == 3  # one slot and two that wait
            health = time.monotonic()
            assert (await client.get("/health")).status_code == 200
            assert time.monotonic() - health < 1
            held.set()
            return [await each for each in asked]

    found = asyncio.run(many())
    assert sorted(response.status_code for response in found) == [200] * 3 + [429] * 3
    for response in found:
        if response.status_code == 429:
            assert int(response.headers["retry-after"]) > 0 and error(response)["type"] == "rate_limit_error"
    assert small.idle()


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_goes_away_frees_its_slot(server, streamed):
    assert server.idle()
    before = server.metric("colm_requests_total", outcome="cancelled", route="/v1/completions")
    body = {"prompt": ["abc"] * SLOTS, "max_tokens": 120, "temperature": 0, "stream": streamed}

    async def leave():
        async with httpx.AsyncClient(base_url=server.url) as client:
            task = asyncio.create_task(_post(client, body))
            while server.service.running < SLOTS and not task.done():
                await asyncio.sleep(0)
            task.cancel()

    held = threading.Event()
    base_steps = server.team.engine.base_steps
    asyncio.run(leave())
    assert server.idle(), held
    assert server.team.engine.base_steps - base_steps < 120
    assert server.metric("colm_requests_total", outcome="cancelled", route="/v1/completions") == before + 1


def test_a_request_ends_at_its_deadline(team_directory):
    settings = ServingSettings(slots=1, strategies=("base",), deadline=0.3)
    hurried = start(lambda: CoLM.from_pretrained(team_directory), settings)
    held = threading.Event()
    hurried.service._commands.put(lambda: held.wait(30))
    response = hurried.post("/v1/completions", {"prompt": "a", "max_tokens": 3})
    assert response.status_code == 504 and "--deadline" in error(response)["message"]
    events = stream(hurried, "/v1/completions", {"prompt": "a", "max_tokens": 3})
    assert events[-1]["error"]["code"] == "deadline"
    held.set()
    assert hurried.idle()


def test_a_failing_device_is_an_error_and_not_the_end(server, monkeypatch):
    from colm_jax.decoding.engine import Session

    scan = Session._scan
    monkeypatch.setattr(Session, "_scan", lambda *_: 1 / 0)
    response = server.post("/v1/completions", {"prompt": "a", "max_tokens": 3})
    assert response.status_code == 500 and error(response)["type"] == "server_error"
    monkeypatch.setattr(Session, "_scan", scan)
    assert server.complete("a")["choices"] and server.idle()


def test_metrics_count_what_was_done(server):
    names = ("colm_prompt_tokens_total", "colm_expert_calls_total", "colm_base_steps_total")
    before = {name: server.metric(name) for name in names}
    written = {w: server.metric("colm_tokens_total", writer=w) for w in ("base", "expert-1")}
    done = server.metric("colm_requests_total", outcome="finished", route="/v1/completions")
    body = server.complete("some words", max_tokens=30, threshold=0.5)
    (choice,) = body["choices"]
    after = {name: server.metric(name) - before[name] for name in names}
    assert after["colm_prompt_tokens_total"] == body["usage"]["prompt_tokens"]
    assert after["colm_expert_calls_total"] == choice["colm"]["expert_calls"] > 0
    assert after["colm_base_steps_total"] > 0
    for source, name in enumerate(("base", "expert-1")):
        assert server.metric("colm_tokens_total", writer=name) - written[name] == choice["colm"]["sources"].count(
            source
        )
    assert server.metric("colm_requests_total", outcome="finished", route="/v1/completions") == done + 1
    assert server.metric("colm_ready") == 1 and server.metric("colm_running") == 0


def test_the_page_may_run_its_own_script_only(server):
    response = httpx.get(f"{server.url}/")
    policy = response.headers["content-security-policy"]
    (nonce,) = set(re.findall(r"'nonce-([^']+)'", policy))
    assert "unsafe" not in policy and "NONCE" not in response.text
    own = re.findall(r"<(?:script|style)[^>]*>", response.text)
    assert own and all(f'nonce="{nonce}"' in tag for tag in own)
    assert not re.search(r"https?://(?!www\.w3\.org/)", response.text)  # nothing from elsewhere
    assert nonce not in httpx.get(f"{server.url}/").text
