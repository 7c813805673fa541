"""`colm bench serving`: what the server costs beyond the engine.

A server runs in this process, its clients in another one. Eight clients stream answers to prompts of their own, all at
once; `CoLM.generate` answers the same prompts in a batch of eight. The first token of one prompt is timed by a client
of an idle server, and inside the engine without one. Rounds of both take turns.
"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

from colm_jax.bench.timing import Announce, Figure, machine, ratio
from colm_jax.decoding.requests import Request
from colm_jax.errors import UserError
from colm_jax.serving.server import listen, serve
from colm_jax.serving.service import Service
from colm_jax.serving.state import Server
from colm_jax.settings.bench import ServingBench
from colm_jax.settings.serving import ServingSettings
from colm_jax.team import CoLM

CLIENTS = 8
# Reads lines of JSON, [bodies]; for each it sends the bodies at once, and prints the seconds until all answers and
# until the first token, and the texts.
_CLIENT = """
import asyncio, json, sys, time, httpx
async def one(client, body, begun):
    text, first = "", None
    async with client.stream("POST", "/v1/completions", json=body) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                choice = json.loads(line[6:])["choices"][0]
                if first is None:  # the first token, or the end of an answer without any
                    first = time.perf_counter() - begun
                text += choice["text"]
    return text, first
async def main():
    async with httpx.AsyncClient(base_url=sys.argv[1], timeout=600) as client:
        for line in sys.stdin:
            begun = time.perf_counter()
            found = await asyncio.gather(*(one(client, body, begun) for body in json.loads(line)))
            took = time.perf_counter() - begun
            print(json.dumps([took, min(first for _, first in found), [text for text, _ in found]]), flush=True)
asyncio.run(main())
"""


def measure(settings: ServingBench, announce: Announce = lambda name: None) -> tuple[list[Figure], dict[str, Any]]:
    """Run the benchmark; return the figures and the measurements.

    Args:
      settings: models and amount of work.
      announce: callback(name), called before each piece of work; `pieces` is their number.

    Raises:
      UserError: as `CoLM.from_pretrained`.
      RuntimeError: an answer of the server is not that of `generate`.
    """
    announce("loading and compiling")
    if settings.base is None:
        raise UserError("bench serving needs --base")
    team = CoLM.from_pretrained(settings.base, settings.experts or None, dtype=settings.dtype or "float32")
    strategy = "base" if team.gate is None else "defer"
    where = listen("127.0.0.1", 0)
    server = Server("team", ServingSettings(slots=CLIENTS, strategies=(strategy,)))
    threading.Thread(target=serve, args=(server, where, lambda: team), daemon=True).start()
    while server.service is None or not server.service.ready.is_set():
        if server.service is not None and server.service.failure is not None:
            raise server.service.failure
        time.sleep(0.05)
    prompts = _prompts(team, settings.prompt_tokens)
    wanted = team.settings(strategy=strategy, max_new_tokens=settings.new_tokens, batch_size=CLIENTS)
    bodies = [
        {"prompt": prompt, "max_tokens": settings.new_tokens, "temperature": 0, "strategy": strategy, "stream": True}
        for prompt in prompts
    ]
    rounds: dict[str, list[float]] = {name: [] for name in ("served", "generate", "first token", "first step")}
    command = [sys.executable, "-c", _CLIENT, "http://{}:{}".format(*where.getsockname()[:2])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        for turn in range(settings.repeats + 1):
            announce("served")
            served, _, texts = _ask(client, bodies)
            announce("generate")
            begun = time.perf_counter()
            answers = team.generate([{"input_ids": ids} for ids in prompts], settings=wanted)
            whole = time.perf_counter() - begun
            announce("first token")
            _, first, _ = _ask(client, [{**bodies[0], "max_tokens": 1}])
            step = _first_step(server.service, prompts[0], strategy)
            if texts != [answer.text for answer in answers]:
                raise RuntimeError("an answer of the server is not that of generate")
            if turn:
                for name, value in zip(rounds, (served, whole, first, step), strict=True):
                    rounds[name].append(value)
        assert client.stdin is not None
        client.stdin.close()
    tokens = sum(len(answer.tokens) for answer in answers)
    figures = [
        Figure("tokens/s of 8 streams", tokens / median(rounds["served"])),
        Figure("tokens/s of generate", tokens / median(rounds["generate"])),
        Figure("streams / generate, tokens/s", ratio(rounds["generate"], rounds["served"]), at_least=0.9),
        Figure(f"first token of {settings.prompt_tokens} tokens, served", 1000 * median(rounds["first token"]), "ms"),
        Figure("likewise, the engine alone", 1000 * median(rounds["first step"]), "ms"),
        Figure(
            "first token, served / the engine alone", ratio(rounds["first token"], rounds["first step"]), at_most=1.2
        ),
    ]
    details = {"left_out": {}, "rounds": settings.repeats, "strategy": strategy, **machine(has_torch=False)}
    return figures, details


def pieces(settings: ServingBench) -> int:
    """Return how many pieces of work `measure` announces."""
    return 1 + 3 * (settings.repeats + 1)


def _prompts(team: CoLM, length: int) -> list[list[int]]:
    """Return a prompt of so many tokens for each client."""
    ids = team.tokenizer.encode_plain("Once upon a time there was a girl named Lily. She liked to play in the park. ")
    opening = list(team.tokenizer.encode_prompt(""))
    return [[*opening, *(ids[number % len(ids) :] + ids * length)][:length] for number in range(CLIENTS)]


def _ask(client: "subprocess.Popen[str]", bodies: Sequence[dict[str, Any]]) -> tuple[float, float, list[str]]:
    assert client.stdin is not None and client.stdout is not None
    client.stdin.write(json.dumps(bodies) + "\n")
    client.stdin.flush()
    took, first, texts = json.loads(client.stdout.readline())
    return took, first, texts


def _first_step(service: Service, prompt: list[int], strategy: str) -> float:
    """Return the seconds until the engine has the first token of a prompt, in a batch as the server's."""
    team = service.team
    settings = team.settings(strategy=strategy, max_new_tokens=1)
    session = team.session(settings, fixed=service.fixed)
    session.keeps_caches = True
    session.submit(Request(prompt, settings))
    for _ in session.drain():
        pass
    begun = time.perf_counter()
    session.submit(Request(prompt, settings))
    for _ in session.drain():
        pass
    return time.perf_counter() - begun
