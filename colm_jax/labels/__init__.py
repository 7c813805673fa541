"""Weak labels: a first guess at where an expert should write, from scores alone; they start the gate."""

from colm_jax.labels.weak import METHODS, weak_labels

__all__ = ["METHODS", "weak_labels"]
