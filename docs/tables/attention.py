"""Times attention of long texts, and of decode steps over large caches, as ratios to the plain form with all scores.

    python -m docs.tables.attention [LENGTH ...]

One text of each length, alone or as packed texts of 200 tokens, 16 heads of 64 with 4 of keys, float32; forward pass,
and forward and backward pass. Then a decode step of a text, over caches that are full and filled to 10 %. Every line is
the best of rounds that interleave what is compared.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from colm_jax.models.attention import attend, plain

ROUNDS = 7
HEADS, KV_HEADS, WIDTH = 16, 4, 64


def ratio(forms: tuple[Callable[..., Any], Callable[..., Any]], arguments: tuple[Any, ...]) -> tuple[float, float]:
    """Return the milliseconds of the first form, and the second's time as a ratio to it."""
    times: list[list[float]] = [[], []]
    for round_ in range(ROUNDS + 1):
        for form, found in zip(forms, times):
            start = time.perf_counter()
            jax.block_until_ready(form(*arguments))
            if round_:  # the first compiles
                found.append(1000 * (time.perf_counter() - start))
    return min(times[0]), min(times[1]) / min(times[0])


def arrays(time: int) -> list[jax.Array]:
    """Return a text's queries, keys and values."""
    heads = (HEADS, KV_HEADS, KV_HEADS)
    return [jax.random.normal(jax.random.key(i), (1, time, n, WIDTH)) for i, n in enumerate(heads)]


def main() -> None:
    """Print a line for each measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lengths", nargs="*", type=int, default=[256, 512, 1024], metavar="LENGTH", help="tokens")
    lengths = parser.parse_args().lengths
    print("| tokens | texts | pass | plain, ms | ours / plain |\n| --- | --- | --- | --- | --- |")
    for length in lengths:
        packed = (jnp.arange(length, dtype=jnp.int32) // 200)[None]
        for texts, segments in (("one", None), ("packed", packed)):
            both = (
                partial(plain, segments=segments, precision="highest"),
                partial(attend, scale=1.0, segments=segments, precision="highest"),
            )
            slopes = [jax.grad(lambda *a, f=f: jnp.sum(f(*a)), argnums=(0, 1, 2)) for f in both]
            for name, forms in (("forward", both), ("both", slopes)):
                slow, share = ratio(tuple(map(jax.jit, forms)), tuple(arrays(length)))
                print(f"| {length} | {texts} | {name} | {slow:.1f} | {share:.2f} |", flush=True)
    print("| cache | filled | plain, ms | ours / plain |\n| --- | --- | --- | --- |")
    for size in (2048, 8192):
        cache = [jax.random.normal(jax.random.key(i), (1, KV_HEADS, size, WIDTH)) for i in range(2)]
        forms = (jax.jit(plain), jax.jit(partial(attend, scale=1.0)))
        for filled in (1.0, 0.1):
            past = (*cache, jnp.array([int(filled * size) - 1], jnp.int32))
            slow, share = ratio(forms, (*arrays(1), past))
            print(f"| {size} | {filled:.0%} | {slow:.2f} | {share:.2f} |", flush=True)


if __name__ == "__main__":
    main()
