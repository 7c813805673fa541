"""Seeds to JAX's random keys: every whole number from 0 to 2^64 − 1 is a stream of its own."""

import jax


def random_key(seed: int) -> jax.Array:
    """The key of a seed. Below 2^32 it is `jax.random.key(seed)`, which reads no more than 32 bits."""
    low, high = seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF
    key = jax.random.key(low)
    return jax.random.fold_in(key, high) if high else key
