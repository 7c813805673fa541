"""Fitting the gate alone, the base frozen: its start on weak labels, and `--trainable gate` by an objective.

Both read hidden states that were computed once, so that a fit costs seconds; full-batch L-BFGS takes it to its
optimum with no learning rate to choose. The first problem is convex. `reference` follows the original's start instead:
AdamW at 2e-5, batch 8, one pass, from the mean row of the LM head.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from colm_jax.errors import UserError
from colm_jax.models.gate import log_writers
from colm_jax.objectives import marginal_nll, responsibilities, weighted_bce

SOLVERS = ("lbfgs", "reference", "zero")


@dataclass(frozen=True)
class GateInit:
    """How the gate starts."""

    solver: str = "lbfgs"
    label_method: str = "a"
    positive_weight: float = 8.0
    ridge: float = 1e-4  # L2 penalty in nats per token; keeps the fit of separable labels finite
    max_steps: int = 100
    seed: int = 0  # order of the reference solver's pass

    def __post_init__(self):
        """Rejects settings that cannot be meant."""
        if self.solver not in SOLVERS:
            raise UserError(f"gate initialisation: solver must be one of {', '.join(SOLVERS)}, got {self.solver!r}")
        if not self.positive_weight > 0:
            raise UserError(f"gate initialisation: positive_weight must be above 0, got {self.positive_weight}")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Positions:
    """The positions that count, of all texts in a row."""

    hidden: Float[Array, "N D"]  # the base's final hidden states
    base_log_prob: Float[Array, "N"]  # nats
    expert_log_probs: Float[Array, "N M"]
    labels: Bool[Array, "N M"]  # weak labels


class Minimiser:
    """Full-batch L-BFGS on one loss, compiled once for however many data it is run on."""

    def __init__(self, loss: Callable[[Array, Any], Array]):
        optimizer = optax.lbfgs()

        @jax.jit
        def step(x, state, data):
            def value_of(x):
                return loss(x, data)

            value, gradient = optax.value_and_grad_from_state(value_of)(x, state=state)
            updates, state = optimizer.update(gradient, state, x, value=value, grad=gradient, value_fn=value_of)
            return optax.apply_updates(x, updates), state, value

        self._start, self._step = optimizer.init, step

    def __call__(self, x: Array, data: Any, max_steps: int, tolerance: float = 1e-7) -> tuple[Array, list[float]]:
        """The minimiser found from `x`, and the loss at each step's beginning.

        Stops when five steps together lower the loss by less than `tolerance`.
        """
        state, losses = self._start(x), []
        for _ in range(max_steps):
            moved, state, value = self._step(x, state, data)
            losses.append(float(value))
            if len(losses) > 5 and losses[-6] - losses[-1] < tolerance:
                break
            x = moved
        return x, losses


def _all(positions: Positions) -> Bool[Array, "N"]:
    return jnp.ones(positions.hidden.shape[:1], bool)


def _label_loss(kernel, data, positive_weight, ridge):
    total, count = weighted_bce(data.hidden @ kernel, data.labels, _all(data), positive_weight)
    return total / count + 0.5 * ridge * jnp.sum(kernel**2)


def initial_gate(positions: Positions, settings: GateInit, head_mean: np.ndarray) -> tuple[Array, list[float]]:
    """The gate's kernel [D, M] fitted to weak labels, and the loss by step (nats per token).

    Args:
      positions: what to fit.
      settings: solver and weights.
      head_mean: [D], mean row of the base's LM head, where the reference solver starts.
    """
    shape = (positions.hidden.shape[1], positions.labels.shape[1])
    if settings.solver == "zero":
        return jnp.zeros(shape, jnp.float32), []
    if settings.solver == "lbfgs":
        loss = partial(_label_loss, positive_weight=settings.positive_weight, ridge=settings.ridge)
        return Minimiser(loss)(jnp.zeros(shape, jnp.float32), positions, settings.max_steps)
    start = jnp.broadcast_to(jnp.asarray(head_mean, jnp.float32)[:, None], shape)
    return _reference(positions, settings, start)


def _reference(positions: Positions, settings: GateInit, kernel: Array) -> tuple[Array, list[float]]:
    """One pass of AdamW at 2e-5 in batches of 1024 positions (the original: 8 sequences)."""
    size, count = 1024, len(positions.hidden)
    optimizer = optax.adamw(2e-5, weight_decay=0.0)
    order = np.random.default_rng(settings.seed).permutation(count)

    @jax.jit
    def step(kernel, state, batch):
        loss, gradient = jax.value_and_grad(_label_loss)(kernel, batch, settings.positive_weight, 0.0)
        updates, state = optimizer.update(gradient, state, kernel)
        return optax.apply_updates(kernel, updates), state, loss

    state, losses = optimizer.init(kernel), []
    for first in range(0, max(count - size, 0) + 1, size):
        rows = order[first : first + size]
        kernel, state, loss = step(kernel, state, jax.tree.map(lambda leaf, rows=rows: leaf[rows], positions))
        losses.append(float(loss))
    return kernel, losses


def _objective_loss(kernel, data, objective, positive_weight):
    """Nats per token of the positions; `em` reads its responsibilities from `data`."""
    positions, r = data
    logits = positions.hidden @ kernel
    if objective == "weak":
        total, count = weighted_bce(logits, positions.labels, _all(positions), positive_weight)
    elif objective == "em":
        return -jnp.mean(jnp.sum(r * log_writers(logits), axis=-1))
    else:
        total, count = marginal_nll(logits, positions.base_log_prob, positions.expert_log_probs, _all(positions))
    return total / count


def train_gate(
    positions: Positions,
    kernel: Array,
    objective: str,
    positive_weight: float,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> tuple[Array, list[float]]:
    """Trains the gate's kernel [D, M] to the optimum of an objective; returns it and the loss (nats per token).

    `marginal` and `weak` are one L-BFGS run. `em` alternates: responsibilities (E), then ten L-BFGS steps on the
    expected log-likelihood with them fixed (M), until the marginal no longer falls; its losses are the marginal's.
    """
    nothing = jnp.zeros((*positions.labels.shape[:1], 1))
    if objective != "em":
        loss = partial(_objective_loss, objective=objective, positive_weight=positive_weight)
        kernel, values = Minimiser(loss)(kernel, (positions, nothing), max_steps=200)
        report(len(values), values[-1])
        return kernel, values

    @jax.jit
    def expectation(kernel, positions):
        arguments = (positions.hidden @ kernel, positions.base_log_prob, positions.expert_log_probs, _all(positions))
        total, count = marginal_nll(*arguments)
        return responsibilities(*arguments), total / count

    losses: list[float] = []
    maximise = Minimiser(partial(_objective_loss, objective="em", positive_weight=positive_weight))
    for round_ in range(200):
        r, value = expectation(kernel, positions)
        losses.append(float(value))
        report(round_ + 1, losses[-1])
        if len(losses) > 5 and losses[-6] - losses[-1] < 1e-6:
            break
        kernel, _ = maximise(kernel, (positions, r), max_steps=10)
    return kernel, losses
