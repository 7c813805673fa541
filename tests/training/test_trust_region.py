"""Newton steps in a trust region: each is the best within its radius, and they end where SciPy's end."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.optimize import minimize, rosen, rosen_der, rosen_hess

from colm_jax.training.trust_region import minimise_in_trust_region, trust_region_step


def model(curvatures, slopes, steps):
    """The change that a quadratic function of these axes promises for each step."""
    return steps @ slopes + 0.5 * steps**2 @ curvatures


@pytest.mark.parametrize(
    "curvatures, slopes",
    [
        ([0.5, 1.0, 3.0], [0.3, -2.0, 1.0]),
        ([-2.0, -0.5, 1.0], [0.3, -2.0, 1.0]),
        ([0.0, 0.0, 1.0], [0.0, 0.0, 1.0]),  # nothing to gain along two axes
        ([0.0, 1.0, 2.0], [0.1, 0.2, 0.3]),
        ([-2.0, 1.0, 3.0], [0.0, 0.5, 0.1]),  # the "hard case": no slope along the axis of negative curvature
        ([-1.0, -1.0, 3.0], [0.0, 0.0, 0.1]),
        ([-1.0, 2.0, 3.0], [0.0, 0.0, 0.0]),
        ([-1e-9, 1e-9, 1.0], [1e-3, 1e-3, 1e-3]),  # rounding's curvatures
    ],
)
@pytest.mark.parametrize("radius", [1e-3, 0.3, 1.0, 50.0])
def test_no_step_within_the_radius_promises_more(curvatures, slopes, radius):
    curvatures, slopes = np.array(curvatures), np.array(slopes)
    step, at_edge = trust_region_step(curvatures, slopes, radius)
    rng = np.random.default_rng(0)
    others = rng.normal(size=(200_000, 3))
    others *= radius * rng.random((200_000, 1)) ** (1 / 3) / np.linalg.norm(others, axis=1, keepdims=True)
    others = np.concatenate([others, others / np.linalg.norm(others, axis=1, keepdims=True) * radius])
    best = model(curvatures, slopes, others).min()
    assert np.linalg.norm(step) <= radius * (1 + 1e-9)
    assert model(curvatures, slopes, step[None])[0] <= best + 1e-9 * abs(best)
    if at_edge and slopes.any():
        assert np.linalg.norm(step) == pytest.approx(radius)


@pytest.mark.parametrize("size", [2, 10, 60])
def test_the_way_over_a_curved_valley_ends_in_its_minimum(size):
    function = SimpleNamespace(value=rosen, gradient=rosen_der, hessian=rosen_hess)
    start = np.where(np.arange(size) % 2, 1.0, -1.2)
    values = []
    x, steps = minimise_in_trust_region(function, start, 200, 1e-5, values.append)
    theirs = minimize(rosen, start, method="trust-exact", jac=rosen_der, hess=rosen_hess, options={"gtol": 1e-5})
    assert rosen(x) <= theirs.fun + 1e-8
    assert len(values) == steps <= theirs.nit + 5
    assert (np.diff(values) <= 0).all()


def test_from_a_ridge_it_walks_down():
    """Where the slope along the negative curvature is zero, as where a gate starts from nothing."""

    def value(x):
        return 0.25 * x[0] ** 4 - 0.5 * x[0] ** 2 + 0.5 * (x[1] - 1) ** 2

    function = SimpleNamespace(
        value=value,
        gradient=lambda x: np.array([x[0] ** 3 - x[0], x[1] - 1]),
        hessian=lambda x: np.diag([3 * x[0] ** 2 - 1, 1.0]),
    )
    x, _ = minimise_in_trust_region(function, np.zeros(2), 100, 1e-8)
    np.testing.assert_allclose(np.abs(x), 1.0, atol=1e-4)


def test_a_value_that_is_no_number_is_a_step_too_far():
    function = SimpleNamespace(
        value=lambda x: float(x[0] - np.log(x[0])) if x[0] > 0 else float("nan"),
        gradient=lambda x: 1 - 1 / x,
        hessian=lambda x: np.diag(1 / x**2),
    )
    x, steps = minimise_in_trust_region(function, np.array([1.9]), 100, 1e-6)
    assert x[0] == pytest.approx(1.0, abs=1e-4)
    assert steps < 20


def test_steps_are_bounded():
    function = SimpleNamespace(value=rosen, gradient=rosen_der, hessian=rosen_hess)
    assert minimise_in_trust_region(function, np.array([-1.2, 1.0]), 3, 1e-9)[1] == 3
