"""The next position of each sequence: its number, its random key, its threshold, and whether it is deferred."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from colm_jax.decoding.schedule import threshold_at
from colm_jax.decoding.state import DecodingState
from colm_jax.models.gate import p_defer
from colm_jax.settings.strategies import Strategy


def next_token(tokens: Int[Array, "B S"], read: Int[Array, "B"]) -> Int[Array, "B 1"]:
    """Return the token of each sequence after those that were read."""
    return jnp.take_along_axis(tokens, jnp.minimum(read, tokens.shape[1] - 1)[:, None], axis=1)


def written(state: DecodingState) -> Int[Array, "B"]:
    """Return the number of tokens after each prompt."""
    return state.lengths - state.requests.prompt_lengths


def position_keys(state: DecodingState, ahead: Int[Array, "B"] | int = 0) -> Array:
    """Return the PRNG key of the token that each slot writes after `ahead` more, [B]."""
    return jax.vmap(jax.random.fold_in)(state.requests.keys, written(state) + ahead)


def position_threshold(state: DecodingState, ahead: Int[Array, "B"] | int = 0) -> Float[Array, "B"]:
    """Return the threshold of that token."""
    requests = state.requests
    return threshold_at(written(state) + ahead, requests.thresholds, requests.schedules, requests.warmups)


def is_deferred(
    strategy: Strategy, state: DecodingState, gate_logits: Float[Array, "B G"], ahead: Int[Array, "B"] | int = 0
) -> Bool[Array, "B"]:
    """Return whether the token that each slot writes after `ahead` more is deferred."""
    if strategy.name == "random":
        coins = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1)))(position_keys(state, ahead))
        return coins < state.requests.rates
    return p_defer(gate_logits) > position_threshold(state, ahead)
