"""Tiny models whose layers differ: several runs of alike layers, latent attention, chunks, sinks."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from colm_jax.models.config import Latent, Mixture, Temperature
from colm_jax.models.decoder import Decoder
from colm_jax.models.rope_config import Rope
from tests.tiny import tiny_decoder

KINDS: dict[str, dict[str, Any]] = {
    "latent attention, two runs": {
        "depth": 2,
        "kv_heads": 4,
        "head_dim": 10,
        "latent": Latent(rank=12, query_rank=14, plain=6, rotary=4, value=5, rms_eps=1e-6),
        "rope": Rope(500.0, interleaved=True),
        "qkv_bias": True,
        "out_bias": True,
        "mixture": Mixture(
            6,
            2,
            ff=16,
            scoring="sigmoid",
            bias="choice",
            groups=3,
            active_groups=2,
            group_score="two_best",
            shared_ff=16,
        ),
        "mixture_layers": (False, True),
    },
    "chunks, three runs": {
        "depth": 3,
        "rope": Rope(500.0, interleaved=True),
        "qk_norm": "unit",
        "windows": (8, None, 8),
        "chunked": True,
        "rope_layers": (True, False, True),
        "temperature": Temperature(0.3, 5, offset=1, unrotated_only=True),
        "mixture": Mixture(4, 2, ff=16, scoring="sigmoid", normalised=False, on_input=True, shared_ff=16),
        "mixture_layers": (False, True, False),
    },
    "sinks and windows": {
        "windows": (8, None),
        "sinks": True,
        "qkv_bias": True,
        "out_bias": True,
        "activation": "clamped_swish",
        "activation_limit": 0.9,
        "activation_slope": 1.3,
        "mixture": Mixture(4, 2, bias="router", network_bias=True),
    },
}


def mixed_decoder(kind: str, **fields: Any) -> Decoder:
    """A random model of KINDS, some fields changed; biases, sinks and norms are not at their start."""
    graph, state = nnx.split(tiny_decoder(**{**KINDS[kind], **fields}))
    leaves, structure = jax.tree.flatten(state)
    keys = jax.random.split(jax.random.key(5), len(leaves))
    moved = [leaf + 0.1 * jax.random.normal(key, leaf.shape, jnp.float32) for leaf, key in zip(leaves, keys)]
    return nnx.merge(graph, jax.tree.unflatten(structure, moved))
