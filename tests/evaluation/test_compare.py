import numpy as np
import pytest

from colm_jax.evaluation.compare import mean_interval, paired_bootstrap, wilson


def test_wilson_interval_equals_values_by_hand():
    # (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n) with z = 1.96
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert mean_interval([1, 1, 0, 1, 1, 1, 1, 0, 1, 1]) == wilson(8, 10)


def test_bootstrap_interval_has_its_nominal_coverage():
    generator = np.random.default_rng(1)
    hits = 0
    for seed in range(200):
        low, high = mean_interval(generator.uniform(0, 1, 60), samples=500, seed=seed)
        hits += low <= 0.5 <= high
    assert 0.89 <= hits / 200 <= 0.99


def test_paired_bootstrap_agrees_with_the_normal_approximation():
    generator = np.random.default_rng(0)
    first = generator.random(400) < 0.6
    noise = np.where(generator.random(400) < 0.1, ~first, first)
    found = paired_bootstrap(first, noise)
    assert found.difference == pytest.approx(first.mean() - noise.mean())
    assert found.better - found.worse == round(found.difference * 400)
    assert found.low <= found.difference <= found.high
    # Normal approximation of the paired difference.
    deviation = (first.astype(float) - noise).std() / 20
    assert found.high - found.low == pytest.approx(2 * 1.96 * deviation, rel=0.05)
    back = paired_bootstrap(noise, first)
    assert (back.difference, back.low, back.high, back.p) == (-found.difference, -found.high, -found.low, found.p)


def test_p_is_small_only_for_a_difference():
    generator = np.random.default_rng(3)
    below = [
        paired_bootstrap(generator.random(80) < 0.5, generator.random(80) < 0.5, samples=400).p < 0.05
        for _ in range(200)
    ]
    assert 0.01 <= np.mean(below) <= 0.1
    assert paired_bootstrap([1] * 50, [0] * 50).p < 0.001
