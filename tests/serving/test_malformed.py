"""Thousands of malformed requests: each is refused in OpenAI's shape, and the server goes on."""

import asyncio
import json
import logging
import math
import random

import httpx
import pytest

from tests.serving.client import error

ROUTES = ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize", "/v1/candidates")
GOOD = {
    "/v1/completions": {"prompt": "a", "max_tokens": 1},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1},
    "/tokenize": {"prompt": "a"},
    "/detokenize": {"tokens": [3]},
    "/v1/candidates": {"tokens": [3]},
}
NUMBERS = (
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "n",
    "seed",
    "threshold",
    "warmup",
    "rate",
    "logprobs",
)
WRONG = [
    {},
    {"a": {}},
    [[[]]],
    "no number",
    [1],
    True,
    math.nan,
    math.inf,
    -math.inf,
    10**400,
    -(10**30),
    1e308 * 10,
    "1",
]
NEGATIVE = [-2, -1.5, -(2**70)]


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def wrong_type(rng, body, route):
    """A field of a wrong type, or a number that it cannot be."""
    name = rng.choice(NUMBERS if "completions" in route else list(body))
    if name not in NUMBERS:
        return json.dumps({**body, name: rng.choice([1.5, {}, True, [[{}]], math.nan, -1])})
    if "chat" in route and name == "logprobs":
        return json.dumps({**body, name: rng.choice(["yes", 1.5, {}, []])})
    return json.dumps({**body, name: rng.choice([*WRONG, *NEGATIVE]) if name != "seed" else rng.choice(WRONG)})


def wrong_prompt(rng, body, route):
    """A prompt, messages or tokens that are none."""
    if "messages" in body:
        message = {
            "role": rng.choice(["king", 3, None, "", "user"]),
            "content": rng.choice([3, {}, [1], [{"type": "x"}]]),
        }
        value = rng.choice([[message], [], {}, "text", [3], [[]], [None], [{"role": "user"}], [{"content": "a"}]])
        return json.dumps({**body, "messages": value})
    key = "tokens" if "tokens" in body else "prompt"
    value = rng.choice([3, {}, [{}], [-1], [1.5], [10**9], [[3], "a"], "a" * 5000 if route == ROUTES[0] else 4, True])
    return json.dumps({**body, key: value})


def unknown_field(rng, body, route):
    return json.dumps({**body, "".join(rng.choices("abc\u00e9\U0001f600_", k=9)): rng.choice([1, None, nested(3)])})


def broken_text(rng, body, route):
    """JSON that is cut, or bytes that are no UTF-8."""
    text = bytearray(json.dumps(body).encode())
    if rng.random() < 0.5:
        return bytes(text[: rng.randrange(1, len(text) - 1)])
    text[rng.randrange(1, len(text) - 1) : 0] = rng.choice([b"\xff", b"\xc3", b"\xed\xa0\x80", b"\\ud800", b"\x00"])
    return bytes(text)


def no_object(rng, body, route):
    return rng.choice(
        ["", "null", "3", '"a"', "[]", nested(50_000), "NaN", "{}}", "{'a': 1}", '{"prompt": "a",}', "true"]
    )


def deep(rng, body, route):
    """A field that is nested without end."""
    return json.dumps(body)[:-1] + f', "metadata_": {nested(rng.choice([3, 500, 20_000]))}}}'


KINDS = (wrong_type, wrong_prompt, unknown_field, broken_text, no_object, deep)


@pytest.mark.parametrize("count", [2_000, 10_000])
def test_malformed_requests_are_refused_and_the_server_goes_on(server, caplog, count):
    rng = random.Random(0)
    bodies = []
    for number in range(count):
        route = rng.choice(ROUTES)
        bodies.append((route, KINDS[number % len(KINDS)](rng, GOOD[route], route)))
    expected = server.complete("hello")["choices"]

    async def send():
        limits = httpx.Limits(max_connections=16)
        async with httpx.AsyncClient(base_url=server.url, limits=limits, timeout=120) as mine:
            queue = list(enumerate(bodies))

            async def worker():
                while queue:
                    number, (route, body) = queue.pop()
                    response = await mine.post(route, content=body)
                    shown = number, route, body[:200], response.status_code, response.text[:200]
                    assert 400 <= response.status_code < 500, shown
                    assert error(response)["type"] == "invalid_request_error", shown

            await asyncio.gather(*(worker() for _ in range(16)))

    with caplog.at_level(logging.WARNING):
        asyncio.run(send())
    assert not caplog.records
    assert server.complete("hello")["choices"] == expected
