"""Sampling: at the ends of every setting's range, equal to a static oracle, and sorted only where a slot asks."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from colm_jax.models.sampling import SamplingParams, sample
from colm_jax.settings.generation import GenerationSettings

LOGITS = jnp.array([[-40.0, 12.5, 12.0, -jnp.inf], [3e4, -3e4, 3.0002e4, -jnp.inf], [-7.0, -7.5, -jnp.inf, -9.0]])
BEST = [1, 2, 0]


def of(*settings: dict) -> SamplingParams:
    """Each slot's parameters."""
    return jax.tree.map(
        lambda *leaves: jnp.stack(leaves), *(SamplingParams.of(GenerationSettings(**s)) for s in settings)
    )


def drawn(draws: int = 1, **settings) -> np.ndarray:
    """[draws, 3] tokens."""
    keys = jax.random.split(jax.random.key(3), (draws, len(LOGITS)))
    params, active = of(*[settings] * len(LOGITS)), jnp.ones(len(LOGITS), bool)
    return np.asarray(jax.jit(jax.vmap(lambda keys: sample(LOGITS, keys, params, active)))(keys))


def by_oracle(logits, key, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0) -> int:
    """The token of one slot, step by step: only what the settings ask for is done at all."""
    if temperature == 0:
        return int(jnp.argmax(logits))
    logits = (logits - logits.max()) / jnp.float32(temperature)
    if top_k:
        logits = jnp.where(logits < jax.lax.top_k(logits, min(top_k, len(logits)))[0][-1], -jnp.inf, logits)
    if top_p < 1:
        ordered = jnp.sort(logits, descending=True)
        before = jnp.cumsum(jax.nn.softmax(ordered)) - jax.nn.softmax(ordered)
        logits = jnp.where(logits < jnp.min(ordered[(before < top_p).at[0].set(True)]), -jnp.inf, logits)
    if min_p > 0:
        logits = jnp.where(logits < logits.max() + math.log(min_p), -jnp.inf, logits)
    return int(jax.random.categorical(key, logits))


@pytest.mark.parametrize("temperature", [1e-4, 1e-30, 1e-38, 1e-45, 5e-324])
def test_a_tiny_temperature_gives_the_most_probable_token(temperature):
    assert (drawn(50, temperature=temperature) == BEST).all()


@pytest.mark.parametrize("temperature", [1e12, 1e30, 1e38, 1e308])
def test_a_huge_temperature_is_uniform_over_allowed_tokens(temperature):
    found = drawn(400, temperature=temperature)
    for row, logits in zip(found.T, np.asarray(LOGITS)):
        counts = np.bincount(row, minlength=4)
        assert (counts[np.isfinite(logits)] > 90).all()
        assert counts[~np.isfinite(logits)].sum() == 0


@pytest.mark.parametrize("top_p", [1e-7, 1e-38, 1e-45, 5e-324])
def test_a_tiny_top_p_keeps_the_most_probable_token(top_p):
    assert (drawn(50, temperature=1.0, top_p=top_p) == BEST).all()


def test_top_k_above_the_vocabulary_and_a_tiny_min_p_exclude_nothing():
    plain = drawn(100, temperature=2.0)
    for more in ({"top_k": 2**40}, {"min_p": 1e-45}, {"min_p": 5e-324}):
        np.testing.assert_array_equal(drawn(100, temperature=2.0, **more), plain)


def test_each_slot_samples_by_its_own_parameters_as_the_oracle():
    settings = [
        {},
        {"temperature": 1.0},
        {"temperature": 0.7, "top_k": 5},
        {"temperature": 1.3, "top_p": 0.8},
        {"temperature": 2.0, "min_p": 0.1},
        {"temperature": 1.1, "top_k": 7, "top_p": 0.9, "min_p": 0.05},
        {"top_k": 3, "top_p": 0.1},
        {"temperature": 3.0, "top_k": 1},
    ]
    rng, function, seen = np.random.default_rng(0), jax.jit(sample), set()
    for draw in range(40):
        # Equal logits too, as bfloat16 has them: all at the bound are kept.
        logits = jnp.asarray(np.round(4 * rng.normal(size=(len(settings), 50))) / 2, jnp.float32)
        keys = jax.random.split(jax.random.key(draw), len(settings))
        found = function(logits, keys, of(*settings), jnp.ones(len(settings), bool))
        expected = [by_oracle(logits[i], keys[i], **own) for i, own in enumerate(settings)]
        assert found.tolist() == expected
        seen.add(tuple(expected))
    assert len(seen) == 40
    assert function._cache_size() == 1


def test_inactive_slots_are_not_sampled():
    keys = jax.random.split(jax.random.key(0), 3)
    hot = of({"temperature": 1e6}, {"temperature": 1e6}, {"temperature": 1e6})
    found = [sample(LOGITS, keys, hot, jnp.array([i == 0, False, False])).tolist() for i in range(2)]
    assert found[1] == BEST and found[0][1:] == BEST[1:]


def computations(text: str) -> dict[str, str]:
    """The bodies of a compiled program's computations, by name."""
    parts = re.split(r"\n(?=(?:ENTRY )?%[\w.\-]+ \()", text)
    return {match[1]: part for part in parts if (match := re.match(r"(?:ENTRY )?%([\w.\-]+) \(", part))}


def reached(bodies: dict[str, str], conditional: bool) -> set[str]:
    """Computations that run with the entry; with branches of conditionals or without."""
    (entry,) = [name for name, body in bodies.items() if body.startswith("ENTRY")]
    found, left = set(), [entry]
    while left:
        name = left.pop()
        if name in found:
            continue
        found.add(name)
        for line in bodies[name].splitlines()[1:]:
            if conditional or " conditional(" not in line:
                left += [other for other in re.findall(r"%([\w.\-]+)", line) if other in bodies]
    return found


def test_greedy_slots_neither_sort_nor_draw():
    keys = jax.random.split(jax.random.key(0), 3)
    lowered = jax.jit(sample).lower(LOGITS, keys, of({}, {}, {}), jnp.ones(3, bool))
    bodies = computations(lowered.compile().as_text())
    always, ever = reached(bodies, conditional=False), reached(bodies, conditional=True)
    sorts = {name for name, body in bodies.items() if re.search(r" (sort|topk)\(|TopK", body)}
    draws = {name for name, body in bodies.items() if " shift-right-logical(" in body}  # random bits
    assert sorts and sorts <= ever and not sorts & always
    assert draws and draws <= ever and not draws & always
