"""Weak labels: an estimate of where an expert should write, from scores only; used to initialise the gate."""

from colm_jax.labels.weak import weak_labels

__all__ = ["weak_labels"]
