"""Objectives in which nobody says who writes a token: the exact marginal likelihood, and its EM form.

Source: arXiv 2403.03870, section 2.2, generalised to M experts. Shapes: B batch, T predicted positions, M experts.
Scores under the base are log-probabilities over the vocabulary *without* any deferral column.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from colm_jax.models.arrays import AnyArray
from colm_jax.models.gate import log_writers
from colm_jax.settings.references import object_of


def _joint(
    gate_logits: Float[AnyArray, "B T M"],
    base_log_prob: Float[AnyArray, "B T"],
    expert_log_probs: Float[AnyArray, "B T M"],
    mask: Bool[AnyArray, "B T"],
) -> tuple[Float[Array, "B T M+1"], Float[Array, "B T M+1"]]:
    """Return log P(Z = z) and log P(Z = z) + log p_z(x), with masked positions replaced by zeros before any arithmetic.

    Replacing at the input, not the output, is what keeps gradients there zero even where scores are infinite.
    """
    kept = mask.astype(bool)
    writers = log_writers(jnp.where(kept[..., None], gate_logits, 0.0))
    scores = jnp.concatenate([base_log_prob[..., None], expert_log_probs], axis=-1)
    return writers, writers + jnp.where(kept[..., None], scores, 0.0)


def marginal_nll(
    gate_logits: Float[AnyArray, "B T M"],
    base_log_prob: Float[AnyArray, "B T"],
    expert_log_probs: Float[AnyArray, "B T M"],
    mask: Bool[AnyArray, "B T"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return −Σ mask · log Σ_z P(Z=z) p_z(x).

    Args:
      gate_logits: logits g of P(Z) = softmax(0, g).
      base_log_prob: log p_0 of the text's own token, in nats.
      expert_log_probs: the same under each expert.
      mask: true where the token counts.

    Returns:
      (sum, count), two scalars; their quotient is nats per token.

    Example:
      >>> import jax.numpy as jnp
      >>> from colm_jax.objectives import marginal_nll
      >>> base, expert = jnp.log(jnp.array([[0.5, 0.1]])), jnp.log(jnp.array([[[0.1], [0.7]]]))
      >>> gate_logits = jnp.zeros((1, 2, 1))  # each writes with probability 1/2
      >>> total, count = marginal_nll(gate_logits, base, expert, jnp.ones((1, 2), bool))
      >>> print(f"{total / count:.4f}")  # −(log 0.3 + log 0.4) / 2
      1.0601
    """
    _, joint = _joint(gate_logits, base_log_prob, expert_log_probs, mask)
    kept = mask.astype(joint.dtype)
    return -jnp.sum(kept * jax.nn.logsumexp(joint, axis=-1)), jnp.sum(kept)


def responsibilities(
    gate_logits: Float[AnyArray, "B T M"],
    base_log_prob: Float[AnyArray, "B T"],
    expert_log_probs: Float[AnyArray, "B T M"],
    mask: Bool[AnyArray, "B T"],
) -> Float[Array, "B T M+1"]:
    """Return P(Z = z | text) at each position, the base first: the E step. Rows where mask is false are zero.

    Example:
      >>> import jax.numpy as jnp
      >>> from colm_jax.objectives import responsibilities
      >>> base, expert = jnp.log(jnp.array([[0.2]])), jnp.log(jnp.array([[[0.6]]]))
      >>> found = responsibilities(jnp.zeros((1, 1, 1)), base, expert, jnp.ones((1, 1), bool))
      >>> [round(float(each), 2) for each in found[0, 0]]
      [0.25, 0.75]
    """
    _, joint = _joint(gate_logits, base_log_prob, expert_log_probs, mask)
    return jax.nn.softmax(joint, axis=-1) * mask[..., None].astype(joint.dtype)


def em_loss(
    gate_logits: Float[AnyArray, "B T M"],
    base_log_prob: Float[AnyArray, "B T"],
    expert_log_probs: Float[AnyArray, "B T M"],
    mask: Bool[AnyArray, "B T"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return −Σ mask · Σ_z r_z (log P(Z=z) + [z=0] log p_0(x)), r the responsibilities under stop_gradient.

    Arguments and result as `marginal_nll`; the value differs, the gradient is the same (Fisher's identity).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from colm_jax.objectives import em_loss, marginal_nll
      >>> base, expert = jnp.log(jnp.array([[0.2]])), jnp.log(jnp.array([[[0.6]]]))
      >>> def gradient(loss):
      ...     of_gate = jax.grad(lambda g: loss(g, base, expert, jnp.ones((1, 1), bool))[0])
      ...     return round(float(of_gate(jnp.zeros((1, 1, 1)))[0, 0, 0]), 4)
      >>> gradient(em_loss), gradient(marginal_nll)
      (-0.25, -0.25)
    """
    writers, joint = _joint(gate_logits, base_log_prob, expert_log_probs, mask)
    kept = mask.astype(joint.dtype)
    r = jax.lax.stop_gradient(jax.nn.softmax(joint, axis=-1))
    base = jnp.where(mask.astype(bool), base_log_prob, 0.0)
    expected = jnp.sum(r * writers, axis=-1) + r[..., 0] * base
    return -jnp.sum(kept * expected), jnp.sum(kept)


def latent_objective(objective: Any) -> Callable:
    """Return the function of "marginal", "em", or of a reference to one of the user's with the same arguments and
    result.

    Example:
      >>> from colm_jax.objectives import latent_objective
      >>> latent_objective("em").__name__
      'em_loss'
    """
    return {"marginal": marginal_nll, "em": em_loss}[objective] if isinstance(objective, str) else object_of(objective)
