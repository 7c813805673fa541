"""Decoding strategies: which models a step needs, and what the next token is sampled from.

A strategy turns the models' logits into logits over the vocabulary, from which the token is sampled (or the most
probable one chosen), and names the model that counts as its source.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from colm_jax.models.arrays import pytree
from colm_jax.models.gate import log_writers
from colm_jax.settings.strategies import Strategy

ALPHA, BETA = 0.1, 0.5  # contrastive_v2 (O'Brien & Lewis 2023, arXiv 2309.09117)


@pytree
@dataclass(frozen=True)
class Step:
    """What the next token is decided from. Logits are float32, -inf outside the shared vocabulary."""

    base: Float[Array, "B V"]
    experts: tuple[
        Float[Array, "B V"], ...
    ]  # of an earlier call, or zeros, where an expert was not called for this token
    gate_logits: Float[Array, "B G"]  # zeros without a gate
    deferred: Bool[Array, "B"]  # p_defer > threshold (strategy `random`: at its rate)


Choice = tuple[Float[Array, "B V"], Int[Array, "B"]]  # logits to sample the token from; source 0..M


def _writer(step: Step) -> Int[Array, "B"]:
    """Return the most probable expert where deferred (1..M), else the base (0)."""
    return jnp.where(step.deferred, 1 + jnp.argmax(step.gate_logits, axis=-1), 0)


def _of_writer(step: Step, writer: Int[Array, "B"]) -> Float[Array, "B V"]:
    """Return the logits of each slot's writer."""
    logits = step.base
    for m, expert in enumerate(step.experts):
        logits = jnp.where((writer == m + 1)[:, None], expert, logits)
    return logits


def called(
    strategy: Strategy, gate_logits: Float[Array, "B G"], deferred: Bool[Array, "B"], expert: int
) -> Bool[Array, "B"]:
    """Return which slots call this expert (0-based)."""
    if strategy.calls == "never":
        return jnp.zeros_like(deferred)
    if strategy.calls == "always":
        return jnp.ones_like(deferred)
    return deferred & (jnp.argmax(gate_logits, axis=-1) == expert) if strategy.one_expert else deferred


def _defer(step: Step) -> Choice:
    writer = _writer(step)
    return _of_writer(step, writer), writer


def _compose(step: Step) -> Choice:
    """Return the mixture Σ_z P(Z=z) p_z where deferred; the source is the model that contributes most to the token."""
    models = jnp.stack([step.base, *step.experts], axis=1)  # [B, M+1, V]
    joint = log_writers(step.gate_logits)[..., None] + jax.nn.log_softmax(models, axis=-1)
    mixture = jax.nn.logsumexp(joint, axis=1)
    best = jnp.argmax(mixture, axis=-1)
    source = jnp.argmax(jnp.take_along_axis(joint, best[:, None, None], axis=2)[..., 0], axis=-1)
    return jnp.where(step.deferred[:, None], mixture, step.base), jnp.where(step.deferred, source, 0)


def _base(step: Step) -> Choice:
    return step.base, jnp.zeros(step.base.shape[:1], jnp.int32)


def _expert(step: Step) -> Choice:
    return step.experts[0], jnp.ones(step.base.shape[:1], jnp.int32)


def _confidence(step: Step) -> Choice:
    models = (step.base, *step.experts)
    top = jnp.stack([jnp.max(jax.nn.log_softmax(model, axis=-1), axis=-1) for model in models])  # [M+1, B]
    expert = 1 + jnp.argmax(top[1:], axis=0)
    writer = jnp.where(jnp.max(top[1:], axis=0) >= top[0], expert, 0)  # a tie goes to the expert
    return _of_writer(step, writer), writer


def _difference(high: Float[Array, "B V"], low: Float[Array, "B V"], high_factor: float, low_factor: float):
    """high_factor · high − low_factor · low, -inf where an id is not allowed (rather than inf − inf)."""
    allowed = jnp.isfinite(high)
    return jnp.where(
        allowed, high_factor * jnp.where(allowed, high, 0) - low_factor * jnp.where(allowed, low, 0), -jnp.inf
    )


def _contrastive(step: Step) -> Choice:
    expert, base = jax.nn.log_softmax(step.experts[0]), jax.nn.log_softmax(step.base)
    return _difference(expert, base, 1.0, 1.0), jnp.ones(step.base.shape[:1], jnp.int32)


def _contrastive_v2(step: Step) -> Choice:
    value = _difference(step.experts[0], step.base, 1 + BETA, BETA)
    bound = jnp.log(ALPHA) + jnp.max(step.experts[0], axis=-1, keepdims=True)
    return jnp.where(value < bound, -jnp.inf, value), jnp.ones(step.base.shape[:1], jnp.int32)


def _proxy(step: Step) -> Choice:
    """Expert 1 is the large model, the base the tuned small one, expert 2 the small one before tuning."""
    shifted = _difference(step.base, step.experts[1], 1.0, 1.0)
    return _difference(step.experts[0], -shifted, 1.0, 1.0), jnp.ones(step.base.shape[:1], jnp.int32)


CHOOSE: dict[str, Callable[[Step], Choice]] = {
    "defer": _defer,
    "compose": _compose,
    "backtrack": _defer,
    "lookahead": _defer,
    "base": _base,
    "expert": _expert,
    "random": _defer,
    "confidence": _confidence,
    "contrastive": _contrastive,
    "contrastive_v2": _contrastive_v2,
    "proxy": _proxy,
}
