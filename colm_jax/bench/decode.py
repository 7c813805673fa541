"""`colm bench decode`: the time of collaborative decoding compared with its parts, the expert alone and PyTorch.

Whole requests run through the engine, with random weights and prompts, in one process; measurements are interleaved.
Strategy `random` forces the deferred tokens, which depend only on seed, request and position. There is no end-of-text
token, so that every request has its full length.

The parts are measured with each model alone, in the same round and batch: *prefill*, a request of one token; and a
*base step* and an *expert pass*, the difference between a request of all new tokens and one of a single token. A
request of n tokens with c expert calls is expected to take

    base prefill + (n − 1) · base step + expert prefill + (c − 1) · expert pass

and, after both prefills, (n − 1) · base step + (c − 1) · expert pass: at batch 1 that is base step + rate · expert pass
per token, with the actual deferral rate. In a batch, c counts the steps at which any request is deferred.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from statistics import median
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Bool, Int

from colm_jax.bench.bounds import Limits, ModelSize, Traffic
from colm_jax.bench.memory import PeakMemory, live_bytes
from colm_jax.bench.models import dtype_of, pair_of
from colm_jax.bench.passes import TIMES, TOKENS, pass_works
from colm_jax.bench.timing import Announce, Figure, machine, matrix_products, memory_reads, ratio, take_turns
from colm_jax.bench.torch_decode import CACHES, TorchPair, same_tokens
from colm_jax.bench.torch_model import thread_counts, why_not
from colm_jax.checkpoints.huggingface import DTYPES
from colm_jax.decoding.engine import Engine
from colm_jax.decoding.requests import Generation, Request
from colm_jax.decoding.session import Session
from colm_jax.models.decoder import Decoder
from colm_jax.models.gate import Gate
from colm_jax.seeds import random_key
from colm_jax.settings.bench import DecodeBench
from colm_jax.settings.generation import GenerationSettings

MODELS = ("base", "expert")
_TORCH = "PyTorch's loop"


@dataclass(frozen=True)
class EngineRun:
    """The answers of one run of the engine."""

    tokens: Int[np.ndarray, "B N"]
    deferred: Bool[np.ndarray, "B N"]
    passes: int  # expert passes, prefill included

    @property
    def calls(self) -> int:
        """The number of steps at which any request was deferred."""
        return int(self.deferred.any(axis=0).sum())


@dataclass(frozen=True)
class Ours:
    """The engine with the benchmark's prompts."""

    engine: Engine
    prompts: Int[np.ndarray, "B T"]
    new_tokens: int
    seed: int

    def __call__(
        self,
        strategy: str,
        batch: int,
        rate: float = 0.0,
        new_tokens: int | None = None,
        look: Callable[[], None] | None = None,
    ) -> EngineRun:
        """Decode the first `batch` prompts together, at threshold 1, so that the gate never defers."""
        new = self.new_tokens if new_tokens is None else new_tokens
        settings = GenerationSettings(strategy, 1.0, new, rate=rate, seed=self.seed, batch_size=batch, speculate=False)
        session, before = Session(self.engine, settings), self.engine.expert_passes.sum()
        for key, prompt in enumerate(self.prompts[:batch]):
            # A streamed scan is one base step, so that memory is observed while the caches exist.
            session.submit(Request(prompt.tolist(), settings, key, stream=look is not None))
        found: dict[int, Generation] = {}
        while not session.idle:
            for update in session.step():
                if update.generation is not None:
                    found[update.request] = update.generation
            if look is not None:
                look()
        rows = [found[number] for number in range(batch)]
        return EngineRun(
            tokens=np.array([row.tokens for row in rows]),
            deferred=np.array([row.sources for row in rows]) > 0,
            passes=int(self.engine.expert_passes.sum() - before),
        )


@dataclass(frozen=True)
class Parts:
    """Seconds of each part for one batch, in one round."""

    base_prefill: float
    base_step: float
    expert_prefill: float
    expert_pass: float

    @classmethod
    def of_round(cls, seconds: Mapping[str, float], batch: int, new_tokens: int) -> "Parts":
        """Compute the parts from the times of requests of all new tokens and of one token."""
        numbers = []
        for model in MODELS:
            first, all_ = seconds[_name(f"{model}, 1 token", batch)], seconds[_name(model, batch)]
            numbers += [first, (all_ - first) / (new_tokens - 1)]
        return cls(*numbers)

    def prefill(self, calls: int) -> float:
        """Return the seconds of prefill with the given number of expert calls; the first call is the prefill."""
        return self.base_prefill + (self.expert_prefill if calls else 0.0)

    def decoding(self, new_tokens: int, calls: int) -> float:
        """Return the seconds of the steps after prefill."""
        return (new_tokens - 1) * self.base_step + max(calls - 1, 0) * self.expert_pass


def measure(settings: DecodeBench, announce: Announce = lambda name: None) -> tuple[list[Figure], dict[str, Any]]:
    """Run the benchmark; return the figures and the measurements (`left_out` has the missing figures and reasons).

    Args:
      settings: models and amount of work.
      announce: callback(name), called before each piece of work; `pieces` is their number.

    Raises:
      RuntimeError: PyTorch's tokens differ, so that times would compare different work.
    """
    base_config, expert_config = pair_of(settings)
    dtype, batches = dtype_of(settings), (1, settings.batch_size)
    foreign = live_bytes()
    base = Decoder(base_config, nnx.Rngs(random_key(settings.seed)), DTYPES[dtype])
    expert = Decoder(expert_config, nnx.Rngs(random_key(settings.seed + 1)), DTYPES[dtype])
    gate = Gate(settings.base_width, 1)
    parameters = {name: _leaves(decoder, "size") for name, decoder in (("base", base), ("expert", expert))}
    weights = {name: _leaves(decoder, "nbytes") for name, decoder in (("base", base), ("expert", expert))}
    sizes = {"base": ModelSize.of(base), "expert": ModelSize.of(expert)}
    reason = why_not(dtype)
    pair = TorchPair(base, expert) if reason is None else None

    prompts = np.random.default_rng(settings.seed).integers(
        0, settings.vocab_size, (settings.batch_size, settings.prompt_tokens)
    )
    allowed, context = np.ones(settings.vocab_size, bool), settings.prompt_tokens + settings.new_tokens
    engine = Engine(base, gate, [expert], allowed, (), context)
    ours = Ours(engine, prompts, settings.new_tokens, settings.seed)
    del base, expert  # the engine has its own copies of the layers

    peaks, memory = PeakMemory(foreign), {}
    for batch in batches:
        announce(_name("memory", batch))
        peak = peaks.of(partial(ours, "random", batch, max(settings.rates), None))
        caches = sum(_cache_bytes(model, batch, context, dtype) for model in (base_config, expert_config))
        needed = sum(weights.values()) + _leaves(gate, "nbytes") + caches
        memory[batch] = {"peak_bytes": peak, "weights_and_caches_bytes": needed}
    runs = {}
    for rate in settings.rates:
        for batch in batches:
            announce(_name(_deferred(rate), batch))
            runs[rate, batch] = ours("random", batch, rate)

    works, trials = _engine_works(ours, settings.rates, batches), dict[str, float]()
    if pair is not None:
        others, trials = _baselines(pair, ours, runs, settings, announce)
        works |= others
    works |= {_tokens(n): work for n, work in pass_works(engine, settings.prompt_tokens).items()}
    works["memory reads"], read = memory_reads(dtype)
    works["matrix products"], flops = matrix_products(dtype)
    seconds = take_turns(works, settings.repeats, announce)

    # The best round of each: a bound is what the machine can do.
    limits = Limits(read / min(seconds["memory reads"]), flops / min(seconds["matrix products"]))
    figures = _figures(settings, seconds, runs, memory, sizes, limits)
    return figures, {
        "machine": machine(pair is not None),
        "settings": vars(settings) | {"dtype": dtype},
        "parameters": parameters,
        "seconds": seconds,
        "requests": {
            _name(_deferred(rate), batch): {
                "tokens": run.tokens.size,
                "deferred": int(run.deferred.sum()),
                "steps_with_deferral": run.calls,
                "expert_passes": run.passes,
            }
            for (rate, batch), run in runs.items()
        },
        "torch_trials": trials,
        "memory": {str(batch): sizes for batch, sizes in memory.items()},
        "sizes": {name: vars(size) for name, size in sizes.items()},
        "limits": vars(limits),
        "left_out": {} if reason is None else {f"{_TORCH} and transformers' generate": reason},
    }


def pieces(settings: DecodeBench) -> int:
    """Return the number of pieces of work of `measure`."""
    rates, turns = len(settings.rates), 2 * (5 + len(settings.rates)) + len(TOKENS) + 2
    if why_not(dtype_of(settings)) is not None:
        return 2 + 2 * rates + (settings.repeats + 1) * turns
    trials = 2 * len(CACHES) * len(thread_counts()) + 2 * rates + 2 * len(MODELS)
    turns += 2 * (rates + len(MODELS))
    return 2 + 2 * rates + trials + (settings.repeats + 1) * turns


def _name(what: str, batch: int) -> str:
    return f"{what}, batch {batch}"


def _tokens(count: int) -> str:
    return f"expert pass of {count} token{'s' * (count > 1)}"


def _deferred(rate: float) -> str:
    return f"{100 * rate:g} % deferred"


def _leaves(module: nnx.Module, what: str) -> int:
    return sum(getattr(leaf, what) for leaf in jax.tree.leaves(nnx.state(module)))


def _cache_bytes(model, batch: int, positions: int, dtype: str) -> int:
    """Return the bytes of keys and values of all positions of a batch, without padding."""
    return batch * model.cache_width * positions * DTYPES[dtype].dtype.itemsize


def _engine_works(ours: Ours, rates: Sequence[float], batches: Sequence[int]) -> dict[str, Callable[[], Any]]:
    """Return the runs of the engine that are timed, by name."""
    works: dict[str, Callable[[], Any]] = {}
    for batch in batches:
        for model in MODELS:
            works[_name(model, batch)] = partial(ours, model, batch)
            works[_name(f"{model}, 1 token", batch)] = partial(ours, model, batch, new_tokens=1)
        works[_name("no deferral", batch)] = partial(ours, "defer", batch)
        for rate in rates:
            works[_name(_deferred(rate), batch)] = partial(ours, "random", batch, rate)
    return works


def _baselines(
    pair: TorchPair, ours: Ours, runs: Mapping[tuple[float, int], EngineRun], settings: DecodeBench, announce: Announce
) -> tuple[dict[str, Callable[[], Any]], dict[str, float]]:
    """Return the PyTorch baselines, each in its fastest variant on this machine, and the seconds of all variants.

    Cache and number of threads are chosen at the middle rate; then, at each rate, whether the requests of a batch are
    processed one after the other or in lockstep. Raises RuntimeError if a variant writes different tokens.
    """
    works: dict[str, Callable[[], Any]] = {}
    trials: dict[str, float] = {}

    def tried(name: str, work: Callable[[], np.ndarray], expected: np.ndarray, repeats: int = 1) -> float:
        """Return the shortest time of `runs` runs; the first is also the warm-up."""
        announce(name)
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            tokens = work()
            times.append(time.perf_counter() - start)
            same_tokens(expected, tokens, name)
        trials[name] = min(times)
        return trials[name]

    rates, many, setups = sorted(settings.rates), settings.batch_size, {}
    for batch in (1, many):
        run = runs[rates[len(rates) // 2], batch]
        times = {}
        for setup in product(CACHES, thread_counts()):
            name = _name(f"{_TORCH}, {setup[0]} cache, threads: {setup[1]}", batch)
            loop = partial(pair.write, ours.prompts[:batch], run.deferred, *setup)
            times[setup] = tried(name, loop, run.tokens, repeats=2)
        setups[batch] = min(times, key=lambda setup: times[setup])
    for rate in settings.rates:
        run = runs[rate, many]
        name = f"{_TORCH}, {_deferred(rate)}"
        in_turn = partial(pair.write_in_turn, ours.prompts, run.deferred, *setups[1])
        lockstep = partial(pair.write, ours.prompts, run.deferred, *setups[many])
        in_turn_seconds = tried(_name(f"{name}, in turn", many), in_turn, run.tokens)
        lockstep_seconds = tried(_name(f"{name}, lockstep", many), lockstep, run.tokens)
        alone = runs[rate, 1]
        same_tokens(alone.tokens, run.tokens[:1], f"{_deferred(rate)}, the engine's first request in a batch")
        works[_name(name, 1)] = partial(pair.write, ours.prompts[:1], alone.deferred, *setups[1])
        works[_name(name, many)] = in_turn if in_turn_seconds < lockstep_seconds else lockstep
    for model in MODELS:
        expected = ours(model, many).tokens
        for batch in (1, many):
            name = _name(f"transformers' {model}", batch)
            prompts, threads = ours.prompts[:batch], setups[batch][1]
            works[name] = partial(pair.generate, model, prompts, ours.new_tokens, threads)
            tried(name, works[name], expected[:batch])
    return works, trials


def _figures(
    settings: DecodeBench,
    seconds: Mapping[str, list[float]],
    runs: Mapping[tuple[float, int], EngineRun],
    memory: Mapping[int, Mapping[str, int]],
    sizes: Mapping[str, ModelSize],
    limits: Limits,
) -> list[Figure]:
    """Return the medians over rounds, with their bounds; ratios are computed within each round."""
    new, many, prompt = settings.new_tokens, settings.batch_size, settings.prompt_tokens
    rounds = [dict(zip(seconds, times, strict=True)) for times in zip(*seconds.values(), strict=True)]
    figures = []
    for batch in (1, many):
        at = partial(_name, batch=batch)
        parts = [Parts.of_round(turn, batch, new) for turn in rounds]
        idle = [(turn[at("no deferral")] - p.base_prefill) / (new - 1) for turn, p in zip(rounds, parts)]
        steps, passes = [p.base_step for p in parts], [p.expert_pass for p in parts]
        step, call = (sizes[model].reading(batch, batch * (prompt + new / 2)) for model in MODELS)
        prefills = [sizes[model].reading(batch * prompt, chosen=batch) for model in MODELS]
        for name, times, work in (
            ("base step", steps, step),
            ("expert pass", passes, call),
            ("base prefill", [p.base_prefill for p in parts], prefills[0]),
            ("expert prefill", [p.expert_prefill for p in parts], prefills[1]),
        ):
            figures.append(_milliseconds(at(name), median(times), limits.seconds(work)))
        if batch == 1:
            figures += _pass_figures(seconds, prompt, sizes["expert"], limits)
        figures.append(Figure(at("step without deferral / base step"), ratio(idle, steps), at_most=1.05))
        peak = memory[batch]["peak_bytes"] / memory[batch]["weights_and_caches_bytes"]
        figures.append(Figure(at("peak memory / weights and caches"), peak, at_most=1.1))
        for rate in settings.rates:
            run, label = runs[rate, batch], _deferred(rate)
            ours, named = seconds[at(label)], partial("{}: {}".format, at(label))
            decoding = [whole - p.prefill(run.calls) for whole, p in zip(ours, parts)]
            expected = [p.decoding(new, run.calls) for p in parts]
            expected_whole = [p.prefill(run.calls) + e for p, e in zip(parts, expected)]
            most = 1.1 if batch == 1 else None
            written = Traffic((new - 1) * step.moved + max(run.calls - 1, 0) * call.moved, (new - 1) * step.flops)
            least = limits.seconds(written) + sum(map(limits.seconds, prefills if run.calls else prefills[:1]))
            tokens = new * batch
            figures.append(_milliseconds(named("a token"), median(ours) / tokens, least / tokens))
            figures.append(Figure(named("decoding / its parts"), ratio(decoding, expected), at_most=most))
            figures.append(Figure(named("whole requests / their parts"), ratio(ours, expected_whole), at_most=most))
            figures.append(Figure(named("the expert alone / ours"), ratio(seconds[at("expert")], ours), at_least=1.0))
            for name, other, target in (
                (f"{_TORCH} / ours", f"{_TORCH}, {label}", 2.0 if batch == 1 else 4.0),
                ("transformers' expert alone / ours", "transformers' expert", 1.0),
            ):
                if at(other) in seconds:
                    figures.append(Figure(named(name), ratio(seconds[at(other)], ours), at_least=target))
            if batch > 1:
                alone = [batch * one for one in seconds[_name(label, 1)]]
                name = f"{label}: tokens/s, batch {batch} / batch 1"
                figures.append(Figure(name, ratio(alone, ours), at_least=4.0))
    return figures


def _milliseconds(name: str, seconds: float, bound: float) -> Figure:
    return Figure(name, 1000 * seconds, "ms", bound=1000 * bound)


def _pass_figures(seconds: Mapping[str, list[float]], positions: int, size: ModelSize, limits: Limits) -> list[Figure]:
    """Return the times of expert passes of several tokens, and what they are of a pass of one token."""
    figures = []
    for count in TOKENS:
        times = [time / TIMES for time in seconds[_tokens(count)]]
        figures.append(
            _milliseconds(_tokens(count), median(times), limits.seconds(size.reading(count, positions, chosen=1)))
        )
    for count in TOKENS[1:]:
        share = ratio(seconds[_tokens(count)], seconds[_tokens(1)])
        figures.append(Figure(f"{_tokens(count)} / of 1 token", share, at_most=1.35))
    return figures
