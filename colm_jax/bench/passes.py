"""Expert passes of several tokens, by themselves: what a call costs that reads more than one token."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from colm_jax.decoding.engine import Engine
from colm_jax.decoding.slots import ROOM
from colm_jax.models.cache import KVCache, KVRows
from colm_jax.models.ragged import Ragged

TOKENS = (1, 2, 4, 8)
TIMES = 5  # passes in a row, of which one measurement consists


def one_pass(
    graph: nnx.GraphDef, weights: nnx.State, cache: KVCache, tokens: Int[Array, "1 T"]
) -> tuple[Float[Array, "1 V"], KVRows]:
    """Return the logits after the last token, and the rows for the cache, as a pass of the decoding loop does."""
    decoder, count = nnx.merge(graph, weights), tokens.shape[1]
    ragged = Ragged.of(jnp.array([count]), count, count)
    hidden, rows = decoder(tokens, cache, ragged=ragged)
    return decoder.logits(ragged.at(hidden, ragged.counts[:, None] - 1)[:, 0]), rows


def pass_works(engine: Engine, positions: int) -> dict[int, Callable[[], Any]]:
    """Return, by number of tokens, TIMES passes of the first expert over a cache of one sequence's positions."""
    graph, weights = engine.graphs.experts[0], engine.models.experts[0]
    decoder, program = nnx.merge(graph, weights), jax.jit(partial(one_pass, graph))
    empty = KVCache.empty(decoder.config, 1, positions + ROOM, decoder.dtype)
    cache = replace(empty, lengths=jnp.array([positions], jnp.int32))

    def run(tokens: Int[Array, "1 T"]) -> None:
        for _ in range(TIMES):  # one after the other: programs without dependencies may overlap
            jax.block_until_ready(program(weights, cache, tokens))

    return {count: partial(run, jnp.zeros((1, count), jnp.int32)) for count in TOKENS}
