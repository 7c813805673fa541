"""Benchmarks: the figures of docs/benchmarks.md, each measured in one run beside what it is compared with."""
