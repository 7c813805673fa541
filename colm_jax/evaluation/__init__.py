"""Evaluation: nats per token on text, and task metrics on generated answers."""
