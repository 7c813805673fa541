"""Training objectives. Each returns a sum and a count, to be reduced over devices and batches and divided once."""

from colm_jax.objectives.latent import em_loss, latent_objective, marginal_nll, responsibilities
from colm_jax.objectives.supervised import sft_loss, weak_loss, weighted_bce

__all__ = ["em_loss", "latent_objective", "marginal_nll", "responsibilities", "sft_loss", "weak_loss", "weighted_bce"]
