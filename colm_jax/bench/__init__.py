"""Benchmarks: the figures of docs/benchmarks.md, each measured in one run together with its baseline."""
