"""A tiny team for the tests of decoding: base, two experts that differ from it in shape, and a gate for each number."""

from collections.abc import Sequence
from functools import cache

import numpy as np

from colm_jax.checkpoints.team import make_gate
from colm_jax.decoding.engine import Answer, Engine, Options, Request
from colm_jax.decoding.sampling import Sampling
from colm_jax.decoding.schedule import SCHEDULES
from colm_jax.decoding.strategies import STRATEGIES
from colm_jax.models.decoder import Decoder
from tests.decoding.oracle import decode
from tests.tiny import tiny_decoder

EOS = (2, 11)
CONTEXT = 128
GREEDY = Sampling()
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


def run(engine: Engine, requests: Sequence[Request], strategy: str, sampling=GREEDY, **options) -> list[Answer]:
    """Answers in the order of the requests."""
    found = dict(engine.run(requests, Options(STRATEGIES[strategy], sampling, **options)))
    assert len(found) == len(requests)
    return [found[i] for i in range(len(requests))]


def answers(engine, texts, strategy, threshold=0.5, new=40, schedule="constant", warmup=0, **options) -> list[Answer]:
    """Greedy answers to texts that want the same."""
    number = SCHEDULES.index(schedule)
    requests = [Request(p, threshold, new, i, schedule=number, warmup=warmup) for i, p in enumerate(texts)]
    return run(engine, requests, strategy, **options)


def by_oracle(request: Request, strategy: str, experts: int = 1) -> tuple[list[int], list[int], list[float]]:
    """Tokens, sources and p_defer as the slow decoder has them."""
    base, *others = decoders()
    return decode(
        base,
        kernel(experts),
        others[:experts],
        request.prompt,
        strategy=strategy,
        threshold=request.threshold,
        new=min(request.max_new_tokens, CONTEXT - len(request.prompt)),
        eos=EOS,
        words=WORDS,
        schedule=SCHEDULES[request.schedule],
        warmup=request.warmup,
    )


def same(one: Sequence[Answer], two: Sequence[Answer]) -> bool:
    """Whether answers agree in tokens, writers, calls, and why they ended."""

    def key(answer: Answer):
        return answer.tokens, answer.sources, answer.expert_calls, answer.finish_reason

    return list(map(key, one)) == list(map(key, two))
