"""The networks: the decoder that is base and expert alike, its KV cache, and the gate.

The letters of array shapes, repo-wide, stand in `arrays`.
"""
