"""Random keys of seeds."""

import jax
import numpy as np

from colm_jax.seeds import random_key


def test_small_seeds_have_the_keys_of_jax():
    for seed in (0, 7, 2**31, 2**32 - 1):
        np.testing.assert_array_equal(*map(jax.random.key_data, (random_key(seed), jax.random.key(seed))))


def test_every_seed_has_a_key_of_its_own():
    seeds = [5, 2**32 + 5, 2**33 + 5, 2**63 + 5, 2**64 - 1, 2**32 - 1]
    assert len({tuple(jax.random.key_data(random_key(seed)).tolist()) for seed in seeds}) == len(seeds)
