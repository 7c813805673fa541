"""JAX random keys from 64-bit seeds: every whole number from 0 to 2^64 − 1 gives a different stream."""

import jax


def random_key(seed: int) -> jax.Array:
    """Return the key of a seed. Below 2^32 it is `jax.random.key(seed)`, which uses only 32 bits."""
    low, high = seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF
    key = jax.random.key(low)
    return jax.random.fold_in(key, high) if high else key
