"""Slots and queues: what waits, what is cancelled, what is counted, and how a server ends."""

import asyncio
import re
import threading
import time

import httpx
import pytest

from colm_jax import CoLM
from colm_jax.serving.service import Draining
from colm_jax.settings.serving import ServingSettings
from tests.serving.client import error, stream
from tests.serving.conftest import SLOTS, start


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


def test_a_client_that_leaves_while_its_log_probabilities_are_read_harms_nobody(server):
    """Its text is read to the end, or not at all, and the thread goes on."""

    async def leave(number):
        async with httpx.AsyncClient(base_url=server.url) as client:
            body = {"prompt": "a b c d " * 12, "max_tokens": 1 + number, "logprobs": 5, "echo": True}
            task = asyncio.create_task(_post(client, {**body, "stream": bool(number % 2)}))
            await asyncio.wait({task}, timeout=0.01 * number)
            task.cancel()

    async def everyone():
        await asyncio.gather(*map(leave, range(24)))

    asyncio.run(everyone())
    assert server.idle() and server.service.failure is None
    assert server.complete("abc", logprobs=2, max_tokens=3)["choices"][0]["logprobs"]


def test_a_text_that_cannot_be_read_does_not_spoil_the_next(server, monkeypatch):
    from colm_jax.decoding import candidates

    read = candidates._read
    monkeypatch.setattr(candidates, "_read", lambda *_, **__: 1 / 0)
    assert server.post("/v1/candidates", {"tokens": [4]}).status_code == 500
    monkeypatch.setattr(candidates, "_read", read)
    assert server.post("/v1/candidates", {"tokens": [4]}).status_code == 200


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
    from colm_jax.decoding.session import Session

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
