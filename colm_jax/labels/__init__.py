"""Weak labels: a first guess at where an expert should write, from scores alone; they start the gate."""

from colm_jax.labels.weak import weak_labels

__all__ = ["weak_labels"]
