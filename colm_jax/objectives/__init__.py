"""Training objectives. Each returns a sum and a count, to be reduced over devices and batches and divided once.

Example:
  >>> import jax.numpy as jnp
  >>> from colm_jax import objectives
  >>> scores, mask = jnp.log(jnp.array([[0.5, 0.25]])), jnp.ones((1, 2), bool)
  >>> parts = [objectives.sft_loss(scores[:, t : t + 1], mask[:, t : t + 1]) for t in range(2)]
  >>> print(f"{sum(total for total, _ in parts) / sum(count for _, count in parts):.4f}")  # nats per token
  1.0397
"""

from colm_jax.objectives.latent import em_loss, latent_objective, marginal_nll, responsibilities
from colm_jax.objectives.supervised import sft_loss, weak_loss, weighted_bce

__all__ = ["em_loss", "latent_objective", "marginal_nll", "responsibilities", "sft_loss", "weak_loss", "weighted_bce"]
