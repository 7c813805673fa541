"""A tiny team for the tests of decoding: base, two experts that differ from it in shape, and a gate for each number."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np

from colm_jax.checkpoints.team import make_gate
from colm_jax.decoding.engine import Engine
from colm_jax.decoding.requests import Generation, Request
from colm_jax.decoding.session import Session
from colm_jax.models.decoder import Decoder
from colm_jax.settings.generation import GenerationSettings
from tests.decoding.oracle import decode
from tests.tiny import tiny_decoder

EOS = (2, 11)
CONTEXT = 128
WORDS = 30  # the shared vocabulary is smaller than either head


@cache
def decoders() -> tuple[Decoder, ...]:
    """Base and experts."""
    first = tiny_decoder(seed=1, width=48, heads=6, kv_heads=3, depth=3, vocab_size=34)
    return tiny_decoder(seed=0), first, tiny_decoder(seed=2)


def kernel(experts: int) -> np.ndarray:
    """The gate of a team with so many experts."""
    return 0.4 * np.random.default_rng(experts).normal(size=(32, experts)).astype(np.float32)


@cache
def engine_of(experts: int) -> Engine:
    """An engine with so many experts. Compiled programs are its own: one for each batch, size and strategy."""
    base, *others = decoders()
    allowed = np.arange(32) < WORDS
    return Engine(base, make_gate(kernel(experts)), others[:experts], allowed, EOS, CONTEXT)


def prompts(lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    """Random texts."""
    rng = np.random.default_rng(seed)
    return [[1, *rng.integers(3, WORDS, n - 1).tolist()] for n in lengths]


def request(prompt, strategy="defer", threshold=0.5, new=40, key=0, sample=0, stream=False, **settings) -> Request:
    """A request with settings of its own."""
    own = GenerationSettings(strategy, threshold, new, **settings)
    return Request(prompt, own, key, sample, stream)


def run(engine: Engine, requests: Sequence[Request], batch_size: int = 8, **shared) -> list[Generation]:
    """Answers in the order of the requests; `shared`: correction, expert_batching, speculate."""
    settings = replace(requests[0].settings, batch_size=batch_size, **shared)
    session = Session(engine, settings)
    numbers = [session.submit(each) for each in requests]
    found = dict(session.drain())
    assert sorted(found) == sorted(numbers) and session.idle
    return [found[number] for number in numbers]


def answers(engine, texts, strategy, threshold=0.5, new=40, batch_size=8, **settings) -> list[Generation]:
    """Greedy answers to texts that want the same."""
    requests = [request(p, strategy, threshold, new, i, **settings) for i, p in enumerate(texts)]
    return run(engine, requests, batch_size)


def limit(request: Request) -> int:
    """The length at which a text ends."""
    return min(len(request.prompt) + request.settings.max_new_tokens, CONTEXT)


def by_oracle(request: Request, experts: int = 1) -> tuple[list[int], list[int], list[float]]:
    """Tokens, sources and p_defer as the slow decoder has them."""
    (base, *others), settings = decoders(), request.settings
    return decode(
        base,
        kernel(experts),
        others[:experts],
        request.prompt,
        strategy=settings.strategy,
        threshold=settings.threshold,
        new=limit(request) - len(request.prompt),
        eos=EOS,
        words=WORDS,
        schedule=settings.schedule,
        warmup=settings.warmup,
    )


def same(one: Sequence[Generation], two: Sequence[Generation]) -> bool:
    """Whether answers agree in tokens, sources, calls, and why they ended."""

    def key(answer: Generation):
        return answer.tokens, answer.sources, answer.expert_calls, answer.finish_reason

    return list(map(key, one)) == list(map(key, two))
