"""Decoding: the collaborative loop, its strategies, and the engine that runs requests through it."""
