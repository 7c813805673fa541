"""Fits of the gate alone, the base frozen: its initialisation on weak labels, and `Training.trainable` "gate".

Both read hidden states that were computed once, a chunk at a time, so that a fit costs seconds and no more memory than
a chunk. One pass over the data gives value, gradient and Hessian; a second-order method then needs few passes and no
learning rate. The problem on labels is convex, the marginal's is not, which the trust region allows for. `reference`
follows the original's initialisation instead: AdamW at 2e-5, batch 8, one pass, from the mean row of the LM head.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Shaped
from scipy.optimize import OptimizeResult, minimize
from threadpoolctl import threadpool_limits

from colm_jax.models.arrays import AnyArray
from colm_jax.models.gate import log_writers
from colm_jax.objectives import latent_objective, marginal_nll, responsibilities, weighted_bce
from colm_jax.settings.training import GateInit, Objective
from colm_jax.training.positions import Positions, Rows
from colm_jax.training.trust_region import minimise_in_trust_region

DENSE = 2048  # weights of a gate, at most, whose Hessian is made; above it L-BFGS
_GRADIENT = 1e-5  # norm of the gradient, in nats per token and unit of a weight, below which values are mere rounding
_REFERENCE_BATCH = 1024  # positions; the original's 8 sequences

Loss = Callable[[Float[Array, "M"], Any], Float[Array, ""]]  # of one position's gate logits and its entry of `Rows`
Report = Callable[[int, float], None]  # step, nats per token


@dataclass(frozen=True)
class Fit:
    """A fitted gate, and how it got there."""

    kernel: Float[np.ndarray, "D M"]  # float32
    losses: tuple[float, ...]  # nats per token (with the penalty), at the start and after each step
    passes: int  # over the data


# Losses of one position. The objectives take texts, so a position is a text of one token in a batch of one.


def _one(values: Shaped[AnyArray, "..."]) -> Shaped[AnyArray, "1 1 ..."]:
    return values[None, None]


def _label_loss(logits: Float[Array, "M"], row: Rows, positive_weight: float) -> Float[Array, ""]:
    return weighted_bce(_one(logits), _one(row.labels), _one(row.mask), positive_weight)[0]


def _latent_loss(logits: Float[Array, "M"], row: Rows, objective: Callable = marginal_nll) -> Float[Array, ""]:
    assert row.expert_log_probs is not None
    return objective(_one(logits), _one(row.base_log_prob), _one(row.expert_log_probs), _one(row.mask))[0]


def _expected_loss(logits: Float[Array, "M"], row: Rows) -> Float[Array, ""]:
    """Return −Σ_z r_z log P(Z = z), the part of the M step's objective that the gate can change; r is 0 in filling
    rows.
    """
    assert row.responsibilities is not None
    return -jnp.sum(row.responsibilities * log_writers(logits))


# One pass over the data, and the minimisers that ask for it.


@jax.jit(static_argnames=("loss", "second_order"))
def _sums(
    kernel: Float[Array, "D M"], rows: Rows, loss: Loss, second_order: bool
) -> tuple[Float[Array, "N"], Float[Array, "D M"], Float[Array, "D M D M"] | None]:
    """Return losses, and the sums of gradients and (else None) Hessians of a chunk in the kernel."""
    exact = jax.lax.Precision.HIGHEST
    logits = jnp.dot(rows.hidden, kernel, precision=exact)
    losses, slopes = jax.vmap(jax.value_and_grad(loss))(logits, rows)
    gradient = jnp.einsum("nd,nm->dm", rows.hidden, slopes, precision=exact)
    if not second_order:
        return losses, gradient, None
    bends = jax.vmap(jax.hessian(loss))(logits, rows)
    return losses, gradient, jnp.einsum("nd,nmk,ne->dmek", rows.hidden, bends, rows.hidden, precision=exact)


class MeanLoss:
    """The mean of a loss over all positions plus ridge / 2 · |kernel|², as a function of the kernel's D · M weights.

    Chunks are summed in float32 on the device, chunks (and each chunk's losses) in float64 here. Value, gradient and
    Hessian at one point share a pass over the data.
    """

    def __init__(self, positions: Positions, loss: Loss, ridge: float, second_order: bool):
        self._positions, self._loss, self._ridge, self._second_order = positions, loss, ridge, second_order
        self._point: np.ndarray | None = None
        self.passes = 0

    def _visit(self, x: Float[np.ndarray, "DM"]) -> None:
        if self._point is not None and np.array_equal(x, self._point):
            return
        kernel = x.astype(np.float32).reshape(self._positions.shape)
        value, gradient = 0.0, np.zeros(x.size)
        bent = x.size if self._second_order else 0
        hessian = np.zeros((bent, bent))
        for _, rows in self._positions.chunks():
            losses, slopes, bends = _sums(kernel, rows, self._loss, self._second_order)
            value += np.asarray(losses, np.float64).sum()
            gradient += np.asarray(slopes).reshape(-1)
            if self._second_order:
                hessian += np.asarray(bends).reshape(hessian.shape)
        count = max(self._positions.counted, 1)
        self._value = value / count + 0.5 * self._ridge * x @ x
        self._gradient = gradient / count + self._ridge * x
        self._hessian = hessian / count + self._ridge * np.eye(bent)
        self._point, self.passes = x.copy(), self.passes + 1

    def value(self, x: Float[np.ndarray, "DM"]) -> float:
        """Return nats per token."""
        self._visit(x)
        return self._value

    def gradient(self, x: Float[np.ndarray, "DM"]) -> Float[np.ndarray, "DM"]:
        """Return the gradient of `value` at x."""
        self._visit(x)
        return self._gradient

    def hessian(self, x: Float[np.ndarray, "DM"]) -> Float[np.ndarray, "DM DM"]:
        """Return the Hessian of `value` at x; empty unless `second_order`."""
        self._visit(x)
        return self._hessian


def minimise(
    positions: Positions,
    loss: Loss,
    start: Float[np.ndarray, "D M"],
    ridge: float,
    max_steps: int,
    report: Report = lambda step, loss: None,
) -> Fit:
    """Return the kernel that minimises a loss over all positions: by Newton steps in a trust region, or L-BFGS above
    DENSE.

    Args:
      positions: the data.
      loss: of one position; not necessarily convex.
      start: where to begin.
      ridge: L2 penalty in nats per token.
      max_steps: to take at most.
      report: progress callback(step, loss after it).
    """
    dense = start.size <= DENSE
    mean, x = MeanLoss(positions, loss, ridge, dense), np.asarray(start, np.float64).reshape(-1)
    losses = [mean.value(x)]

    def arrived(value: float) -> None:
        losses.append(value)
        report(len(losses) - 1, value)

    if dense:
        # Threads of BLAS keep their cores busy while they wait; beside XLA's, several are far slower than one.
        with threadpool_limits(1, user_api="blas"):
            x, steps = minimise_in_trust_region(mean, x, max_steps, _GRADIENT, arrived)
            x = _polished(mean, x) if steps < max_steps else x
    else:

        def told(intermediate_result: OptimizeResult) -> None:  # the name is SciPy's
            arrived(float(intermediate_result.fun))

        options = {"maxiter": max_steps, "gtol": _GRADIENT, "ftol": 1e-9, "maxcor": 20}
        x = minimize(mean.value, x, method="L-BFGS-B", jac=mean.gradient, callback=told, options=options).x
    return Fit(x.astype(np.float32).reshape(positions.shape), tuple(losses), mean.passes)


def _polished(mean: MeanLoss, x: Float[np.ndarray, "DM"]) -> Float[np.ndarray, "DM"]:
    """Return Newton steps from beside the optimum, while each at least halves the gradient.

    The trust region judges a step by values, and rounding hides the last steps' gain; gradients show it for longer.
    """
    while True:
        gradient = mean.gradient(x)
        # rcond drops directions whose curvature is below float32 summation error; no step is taken along them.
        nearer = x - np.linalg.lstsq(mean.hessian(x), gradient, rcond=1e-6)[0]
        if not np.linalg.norm(mean.gradient(nearer)) < 0.5 * np.linalg.norm(gradient):
            return x
        x = nearer


# The gate's start, and its training.


def initial_gate(
    positions: Positions,
    settings: GateInit,
    head_mean: Float[np.ndarray, "D"],
    report: Report = lambda step, loss: None,
) -> Fit:
    """Return the gate fitted to weak labels.

    Args:
      positions: what to fit.
      settings: solver and weights.
      head_mean: mean row of the base's LM head, where the reference solver starts.
      report: progress callback(step, loss in nats per token).
    """
    loss = partial(_label_loss, positive_weight=settings.positive_weight)
    zero = np.zeros(positions.shape, np.float32)
    if settings.solver == "zero":
        return Fit(zero, (), 0)
    if settings.solver in (None, "newton"):
        return minimise(positions, loss, zero, settings.ridge, settings.max_steps, report)
    zero[: len(head_mean)] += np.asarray(head_mean, np.float32)[:, None]  # of what is read beside hidden states: 0
    return _reference(positions, loss, zero, settings.seed, report)


def _reference(positions: Positions, loss: Loss, kernel: Float[np.ndarray, "D M"], seed: int, report: Report) -> Fit:
    """Fit in one shuffled pass of AdamW at 2e-5 (the original's start); a loss is of its batch before the step."""
    size = min(_REFERENCE_BATCH, positions.count)
    optimizer = optax.adamw(2e-5, weight_decay=0.0)
    order = np.random.default_rng(seed).permutation(positions.count)

    @jax.jit
    def step(
        kernel: Float[Array, "D M"], state: optax.OptState, rows: Rows
    ) -> tuple[Float[Array, "D M"], optax.OptState, Float[Array, ""]]:
        losses, gradient, _ = _sums(kernel, rows, loss, second_order=False)
        updates, state = optimizer.update(gradient / size, state, kernel)
        return optax.apply_updates(kernel, updates), state, losses.mean()

    state, losses = optimizer.init(kernel), []
    for first in range(0, positions.count - size + 1, size):
        kernel, state, value = step(kernel, state, positions.take(order[first : first + size], size))
        losses.append(float(value))
        report(len(losses), losses[-1])
    return Fit(np.asarray(kernel), tuple(losses), 1)


def train_gate(
    positions: Positions,
    kernel: Float[np.ndarray, "D M"],
    objective: Objective,
    positive_weight: float,
    report: Report = lambda step, loss: None,
    ridge: float = 0.0,
) -> Fit:
    """Train the gate to the optimum of an objective.

    `marginal` and `weak` are one minimisation each. `em` alternates: responsibilities (E), then a Newton step (or ten
    of L-BFGS) on the expected log-likelihood with them fixed (M, convex), until the marginal no longer falls; its
    losses are the marginal's. Source: arXiv 2403.03870, section 2.2.

    Args:
      positions: the data.
      kernel: where to begin.
      objective: "marginal", "em", "weak" (of which the gate's part remains, the base being frozen), or the user's own.
      positive_weight: of "weak".
      report: progress callback(step, loss in nats per token).
      ridge: L2 penalty in nats per token, which all losses include.
    """
    if objective == "em":
        return _expectation_maximisation(positions, kernel, ridge, report)
    if objective == "weak":
        loss: Loss = partial(_label_loss, positive_weight=positive_weight)
    else:
        loss = partial(_latent_loss, objective=latent_objective(objective))
    return minimise(positions, loss, kernel, ridge, max_steps=200, report=report)


@jax.jit
def _expectation(kernel: Float[Array, "D M"], rows: Rows) -> tuple[Float[Array, "N M+1"], Float[Array, "N"]]:
    """Return responsibilities and the marginal's losses of a chunk."""
    logits = jnp.dot(rows.hidden, kernel, precision=jax.lax.Precision.HIGHEST)
    assert rows.expert_log_probs is not None
    text = logits, rows.base_log_prob, rows.expert_log_probs, rows.mask
    found = responsibilities(*(values[None] for values in text))[0]
    return found, jax.vmap(_latent_loss)(logits, rows)


def _expectation_maximisation(
    positions: Positions, kernel: Float[np.ndarray, "D M"], ridge: float, report: Report
) -> Fit:
    r = np.zeros((positions.count, positions.shape[1] + 1), np.float32)
    held, losses, passes = replace(positions, responsibilities=r), list[float](), 0
    for round_ in range(200):
        total = 0.0
        for place, rows in positions.chunks():
            found, values = _expectation(kernel, rows)
            r[place] = np.asarray(found)[: place.stop - place.start]
            total += np.asarray(values, np.float64).sum()
        losses.append(total / positions.count + 0.5 * ridge * float((kernel.astype(np.float64) ** 2).sum()))
        passes += 1
        report(round_, losses[-1])
        if len(losses) > 5 and losses[-6] - losses[-1] < 1e-6:
            break
        step = minimise(held, _expected_loss, kernel, ridge, max_steps=1 if kernel.size <= DENSE else 10)
        kernel, passes = step.kernel, passes + step.passes
    return Fit(np.asarray(kernel), tuple(losses), passes)
