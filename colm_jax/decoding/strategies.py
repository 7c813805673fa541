"""Decoding strategies: which models a step needs, and what the next token is sampled from.

A strategy turns the models' logits into logits over the vocabulary, from which the token is sampled (or the most
probable one chosen), and names the model that counts as its source. `register_strategy` adds one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from colm_jax.errors import UserError
from colm_jax.models.arrays import pytree
from colm_jax.models.gate import log_writers
from colm_jax.settings.references import describe
from colm_jax.settings.run import UNTRAINED
from colm_jax.settings.strategies import STRATEGIES, Strategy

__all__ = ["CHOOSE", "Choice", "Step", "Strategy", "called", "definitions", "register_strategy"]

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
_OURS = frozenset(CHOOSE)


def register_strategy(strategy: Strategy, choose: Callable[[Step], Choice]) -> None:
    """Add a strategy, which settings, flags and requests then name like any other.

    Args:
      strategy: its name and what it needs. `mixes` must be true where a deferred token depends on the base's logits,
        since these are not kept for it otherwise. It must be for resident experts (`by_units` false) and must not
        retract tokens (`corrects` false).
      choose: a traceable function. It gets the logits of every model for one position of each sequence, float32, and
        returns float32 logits [B, V], from which the token is sampled, and the number of the model that counts as its
        source, [B] int32. What it returns for a sequence must depend on that sequence alone.

    Raises:
      UserError: the name is taken, `strategy` is not as described, or `choose` fails or returns other shapes or types.

    Example:
      >>> import jax.numpy as jnp
      >>> from colm_jax import GenerationSettings, register_strategy
      >>> from colm_jax.settings import Strategy
      >>> def mean(step):
      ...     logits = (step.base + step.experts[0]) / 2
      ...     return logits, jnp.zeros(logits.shape[0], jnp.int32)
      >>> register_strategy(Strategy("mean", calls="always", experts=(1, 1), mixes=True), mean)
      >>> GenerationSettings(strategy="mean").strategy
      'mean'
    """
    name = strategy.name
    if not isinstance(name, str) or not name.isidentifier():
        raise UserError(f"strategy {name!r:.60}: a name is made of letters, digits and underscores")
    if name in STRATEGIES or name == UNTRAINED:
        raise UserError(f"strategy {name!r} exists already; choose another name")
    if strategy.calls not in ("never", "deferred", "always"):
        raise UserError(f"strategy {name!r}: calls must be never, deferred or always, got {strategy.calls!r:.60}")
    if strategy.by_units or strategy.corrects:
        raise UserError(f"strategy {name!r}: by_units and corrects are of built-in strategies; leave them false")
    _check_choice(name, strategy.experts[0], choose)
    STRATEGIES[name], CHOOSE[name] = strategy, choose


def _check_choice(name: str, experts: int, choose: Callable[[Step], Choice]) -> None:
    """Raise UserError where the function's result for the fewest experts is not a `Choice`."""
    batch, size = 2, 5
    logits = jax.ShapeDtypeStruct((batch, size), jnp.float32)
    gate = jax.ShapeDtypeStruct((batch, max(experts, 1)), jnp.float32)
    deferred = jax.ShapeDtypeStruct((batch,), jnp.bool_)
    try:
        found = jax.eval_shape(lambda *step: choose(Step(*step)), logits, (logits,) * experts, gate, deferred)
    except Exception as error:  # whatever the user's function raises
        said = " ".join(str(error).split())[:200]
        raise UserError(f"strategy {name!r}: its function fails: {type(error).__name__}: {said}") from error
    wanted = ((batch, size), jnp.float32), ((batch,), jnp.int32)
    shapes = tuple((each.shape, each.dtype) for each in jax.tree.leaves(found))
    if not isinstance(found, tuple) or shapes != wanted:
        shown = ", ".join(f"{dtype}{list(shape)}" for shape, dtype in shapes) or "nothing"
        raise UserError(f"strategy {name!r}: its function must return float32 [B, V] and int32 [B], got {shown}")


def definitions(*names: str) -> dict[str, Any]:
    """Return what identifies those of these strategies that were registered: results depend on their code.

    Args:
      names: of strategies; others are left out, as are the built-in ones.
    """
    return {name: describe([STRATEGIES[name], CHOOSE[name]]) for name in names if name in {*CHOOSE} - _OURS}
