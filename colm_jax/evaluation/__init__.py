"""Evaluation: nats per token on text, tasks on generated answers, files for judges, lm-evaluation-harness."""
