"""Objectives with labels: plain fine-tuning of the base, and weak supervision of the gate (the paper's baseline)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from colm_jax.models.arrays import AnyArray


def sft_loss(
    base_log_prob: Float[AnyArray, "B T"], mask: Bool[AnyArray, "B T"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return −Σ mask · log p_0(x): plain cross-entropy of the base, as (sum, count).

    Example:
      >>> import jax.numpy as jnp
      >>> from colm_jax.objectives import sft_loss
      >>> total, count = sft_loss(jnp.log(jnp.array([[0.5, 0.25]])), jnp.array([[True, False]]))
      >>> print(f"{total:.4f} {count:.0f}")
      0.6931 1
    """
    kept = mask.astype(base_log_prob.dtype)
    return -jnp.sum(kept * jnp.where(mask.astype(bool), base_log_prob, 0.0)), jnp.sum(kept)


def weighted_bce(
    gate_logits: Float[AnyArray, "B T M"],
    labels: Shaped[AnyArray, "B T M"] | Shaped[AnyArray, "B T"],
    mask: Bool[AnyArray, "B T"],
    positive_weight: float,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return binary cross-entropy of each expert's logit against its weak label, positives weighted; (sum, count).

    Args:
      gate_logits: of each expert.
      labels: 1 where that expert should write; of one expert also without an axis for experts.
      mask: true where the token counts.
      positive_weight: factor on the positive term, > 0.

    Returns:
      The sum over positions of the mean over experts, and the number of positions (not of weights), as in PyTorch's
      `binary_cross_entropy_with_logits(pos_weight=...)`.

    Example:
      >>> import jax.numpy as jnp
      >>> from colm_jax.objectives import weighted_bce
      >>> labels, mask = jnp.array([[1, 0]]), jnp.ones((1, 2), bool)
      >>> total, count = weighted_bce(jnp.zeros((1, 2, 1)), labels, mask, positive_weight=3.0)
      >>> print(f"{total / count:.4f}")  # (3 + 1) / 2 · log 2
      1.3863
    """
    if labels.ndim == gate_logits.ndim - 1:
        labels = labels[..., None]
    kept = mask.astype(bool)[..., None]
    logits = jnp.where(kept, gate_logits, 0.0)
    labels = jnp.where(kept, labels.astype(logits.dtype), 0.0)
    losses = -positive_weight * labels * jax.nn.log_sigmoid(logits) - (1 - labels) * jax.nn.log_sigmoid(-logits)
    count = mask.astype(logits.dtype)
    return jnp.sum(count * jnp.mean(losses, axis=-1)), jnp.sum(count)


def weak_loss(
    gate_logits: Float[AnyArray, "B T M"],
    base_log_prob: Float[AnyArray, "B T"],
    labels: Shaped[AnyArray, "B T M"] | Shaped[AnyArray, "B T"],
    mask: Bool[AnyArray, "B T"],
    positive_weight: float = 5.0,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return 2/3 · cross-entropy of the base + 1/3 · weighted BCE of the gate against weak labels; (sum, count).

    Example:
      >>> import jax.numpy as jnp
      >>> from colm_jax.objectives import weak_loss
      >>> base, mask = jnp.log(jnp.array([[0.5]])), jnp.ones((1, 1), bool)
      >>> total, count = weak_loss(jnp.zeros((1, 1, 1)), base, jnp.array([[1]]), mask)
      >>> print(f"{total / count:.4f}")  # (2 + 5) / 3 · log 2
      1.6173
    """
    nll, count = sft_loss(base_log_prob, mask)
    bce, _ = weighted_bce(gate_logits, labels, mask, positive_weight)
    return (2.0 * nll + bce) / 3.0, count
