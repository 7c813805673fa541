"""JAX random keys from 64-bit seeds: every whole number from 0 to 2^64 − 1 gives a different stream."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def random_key(seed: int) -> jax.Array:
    """Return the key of a seed. Below 2^32 it is `jax.random.key(seed)`, which uses only 32 bits."""
    low, high = seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF
    key = jax.random.key(low)
    return jax.random.fold_in(key, high) if high else key


def numbers_of_keys(keys: jax.Array) -> list[int]:
    """Return a whole number for each key, [B], from which `keys_of_numbers` makes the keys again."""
    words = np.asarray(jax.random.key_data(keys))
    return [sum(int(word) << 32 * i for i, word in enumerate(row)) for row in words]


def keys_of_numbers(numbers: Sequence[int]) -> jax.Array:
    """Return the keys, [B], that numbers of `numbers_of_keys` stand for."""
    words = jax.random.key_data(jax.random.key(0)).shape[0]
    data = [[number >> 32 * i & 0xFFFFFFFF for i in range(words)] for number in numbers]
    return jax.random.wrap_key_data(jnp.array(data, jnp.uint32))
