"""`colm bench speculation`: decoding with drafts against the plain loop, by how often base and expert agree.

The expert is the base with further layers, whose outputs are scaled down until it chooses the base's token with the
wanted frequency. Requests run one at a time through the engine, with `speculate="auto"` and with False; their tokens
must be equal in float32, or the command fails; in fewer bits, where a pass over several tokens rounds otherwise, the
share of equal answers is shown. Strategy `random` forces which tokens are deferred; `expert` defers all of them,
and is ordinary speculative decoding with the base as draft model.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from colm_jax.bench.models import alike_pair_of, dtype_of
from colm_jax.bench.timing import Announce, Figure, machine, ratio, take_turns
from colm_jax.checkpoints.huggingface import DTYPES
from colm_jax.decoding.engine import Engine
from colm_jax.decoding.requests import Generation, Request
from colm_jax.decoding.session import Session
from colm_jax.models.decoder import Decoder
from colm_jax.seeds import random_key
from colm_jax.settings.bench import SpeculationBench
from colm_jax.settings.generation import GenerationSettings

STRATEGIES = ("random", "expert")
MODES: dict[str, str | bool] = {"plain": False, "speculative": "auto"}
# At the frequencies of the defaults: how many times as fast as the plain loop, at least.
_TARGETS = {("random", 0.9): 1.4, ("expert", 0.9): 1.5, ("random", 0.25): 0.98, ("expert", 0.25): 0.98}
_SEARCH = 12  # halvings of the scale's exponent


@dataclass(frozen=True)
class Requests:
    """The requests of the benchmark, one at a time."""

    engine: Engine
    prompts: Int[np.ndarray, "N T"]
    settings: GenerationSettings

    def __call__(self, strategy: str, speculate: str | bool) -> list[Generation]:
        """Return the answers."""
        settings = replace(self.settings, strategy=strategy, speculate=speculate)
        found = []
        for key, prompt in enumerate(self.prompts):
            session = Session(self.engine, settings)
            session.submit(Request(prompt.tolist(), settings, key))
            found += [answer for _, answer in session.drain()]
        return found


def measure(settings: SpeculationBench, announce: Announce = lambda name: None) -> tuple[list[Figure], dict[str, Any]]:
    """Run the benchmark; return the figures and the measurements.

    Args:
      settings: models and amount of work.
      announce: callback(name), called before each piece of work; `pieces` is their number.

    Raises:
      RuntimeError: the speculative loop's tokens differ from the plain loop's.
    """
    base_config, expert_config = alike_pair_of(settings)
    dtype, rng = DTYPES[dtype_of(settings)], np.random.default_rng(settings.seed)
    base = Decoder(base_config, nnx.Rngs(random_key(settings.seed)), dtype)
    deep = Decoder(expert_config, nnx.Rngs(random_key(settings.seed + 1)), dtype)
    prompts = rng.integers(0, settings.vocab_size, (settings.requests, settings.prompt_tokens))
    own = GenerationSettings(max_new_tokens=settings.new_tokens, rate=settings.rate, seed=settings.seed, batch_size=1)
    allowed, context = np.ones(settings.vocab_size, bool), base_config.context
    figures, details = [], {}
    for agreement in settings.agreements:
        announce(f"a pair that agrees on {agreement:g}")
        expert = agreeing(base, deep, agreement, jnp.asarray(prompts))
        requests = Requests(Engine(base, None, [expert], allowed, (), context), prompts, own)
        works: dict[str, Callable[[], Any]] = {}
        counts = {}
        for strategy in STRATEGIES:
            announce(f"{strategy}, agreement {agreement:g}: counts")
            counts[strategy] = _counts(requests, strategy, exact=dtype == np.float32)
            works |= {
                f"{strategy}, {mode}": partial(requests, strategy, speculate) for mode, speculate in MODES.items()
            }
        seconds = take_turns(works, settings.repeats, announce)
        for strategy in STRATEGIES:
            name = f"{_label(strategy, settings.rate)}, agreement {agreement:g}"
            gain = ratio(seconds[f"{strategy}, plain"], seconds[f"{strategy}, speculative"])
            figures.append(Figure(f"{name}: plain loop / ours", gain, at_least=_TARGETS.get((strategy, agreement))))
            passes = counts[strategy]["passes"]["speculative"] / counts[strategy]["deferred"]
            figures.append(Figure(f"{name}: expert passes a deferred token", passes))
            if dtype != np.float32:
                figures.append(Figure(f"{name}: equal answers", 100 * counts[strategy]["equal"], "%"))
        details[f"{agreement:g}"] = {"seconds": seconds, "counts": counts}
    weights = {
        name: sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(m)))
        for name, m in (("base", base), ("expert", deep))
    }
    facts = {
        "machine": machine(False),
        "settings": vars(settings) | {"dtype": dtype_of(settings)},
        "weight_bytes": weights,
    }
    return figures, facts | {"by_agreement": details, "left_out": {}}


def pieces(settings: SpeculationBench) -> int:
    """Return the number of pieces of work of `measure`."""
    turns = len(STRATEGIES) * len(MODES) * (settings.repeats + 1)
    return len(settings.agreements) * (1 + len(STRATEGIES) + turns)


def _label(strategy: str, rate: float) -> str:
    return f"{100 * rate:g} % deferred" if strategy == "random" else "strategy expert"


def _counts(requests: Requests, strategy: str, exact: bool) -> dict[str, Any]:
    """Return what both loops count; check that they write the same, if they are to be `exact`."""
    answers, passes, steps = {}, {}, {}
    for mode, speculate in MODES.items():
        engine = requests.engine
        before = int(engine.expert_passes.sum()), engine.base_steps
        answers[mode] = requests(strategy, speculate)
        passes[mode] = int(engine.expert_passes.sum()) - before[0]
        steps[mode] = engine.base_steps - before[1]
    plain, speculative = answers.values()
    equal = [(a.tokens, a.sources) == (b.tokens, b.sources) for a, b in zip(plain, speculative, strict=True)]
    if exact and not all(equal):
        raise RuntimeError(
            f"strategy {strategy}: speculation changed the tokens; two may be equally probable: try another seed"
        )
    return {
        "deferred": sum(a.expert_calls for a in plain),
        "equal": sum(equal) / len(equal),
        "passes": passes,
        "base_steps": steps,
        "guesses": sum(a.guesses for a in speculative),
        "hits": sum(a.hits for a in speculative),
    }


def agreeing(base: Decoder, deep: Decoder, agreement: float, texts: Int[Array, "B T"]) -> Decoder:
    """Return an expert with the base's layers, embeddings and head, and the last layers of `deep`, scaled down.

    Args:
      base: the base, with stacked layers.
      deep: a deeper model of the same width.
      agreement: the frequency with which the expert shall choose the base's token, on `texts`.
      texts: token ids.
    """
    graph, state = nnx.split(deep)
    own, depth = nnx.to_pure_dict(nnx.state(base)), base.config.depth

    def scaled(scale: Float[Array, ""]) -> Decoder:
        values = nnx.to_pure_dict(state)
        for part in ("attention", "feed_forward"):
            name = {"attention": "out", "feed_forward": "down"}[part]
            kernel = values["layers"][part][name]["kernel"]
            values["layers"][part][name]["kernel"] = (kernel * scale).astype(kernel.dtype)
        layers = jax.tree.map(lambda new, old: new.at[:depth].set(old), values["layers"], own["layers"])
        filled = jax.tree.map(lambda leaf: leaf, state)
        nnx.replace_by_pure_dict(filled, own | {"layers": layers})
        return nnx.merge(graph, filled)

    def choices(decoder: Decoder) -> Int[Array, "B T"]:
        return jnp.argmax(decoder.logits(decoder(texts)[0]), axis=-1)

    wanted = jax.jit(choices)(base)
    agrees = jax.jit(lambda scale: jnp.mean((choices(scaled(scale)) == wanted).astype(jnp.float32)))
    low, high = -12.0, 4.0  # exponents of the scale: nearly the same model, and another one
    for _ in range(_SEARCH):
        middle = (low + high) / 2
        low, high = (middle, high) if float(agrees(jnp.float32(2.0**middle))) > agreement else (low, middle)
    return scaled(jnp.float32(2.0**low))
