"""The networks: the decoder that is base and expert alike, its KV cache, and the gate.

`arrays` defines the letters of array shapes.
"""
