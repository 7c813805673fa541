"""Rotary positions (RoPE): frequencies by kind of scaling, angles of positions, and the rotation itself.

The kinds compute what `modeling_rope_utils` of transformers computes, in float32. Those that depend on a text's length
take it as a static number: the longest text that a pass can hold. All tokens of a pass have the same frequencies.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from colm_jax.models.arrays import pytree
from colm_jax.models.rope_config import Bands, DynamicNTK, LongRope, Rope, Yarn


@pytree
@dataclass(frozen=True)
class Angles:
    """Cosines and sines of each position's rotation of each pair of dimensions, times the rope's attention factor."""

    cos: Float[Array, "B T h2"]
    sin: Float[Array, "B T h2"]
    interleaved: bool  # dimensions 2i and 2i + 1 turn together; else i and i + h2


def rope_frequencies(head_dim: int, rope: Rope, longest: int) -> Float[np.ndarray, "h2"]:
    """Return radians per token of each pair of dimensions that turns, float32 (Su et al. 2021, eq. 15).

    Args:
      head_dim: dimensions of a head.
      rope: its rotary positions.
      longest: tokens of the longest text that the pass can hold.

    Raises:
      UserError: the rope does not fit the head.
    """
    dim, scaling, theta = rope.turning(head_dim), rope.scaling, rope.theta
    if isinstance(scaling, DynamicNTK):
        growth = rope.factor * max(longest, scaling.context) / scaling.context - (rope.factor - 1)
        theta *= growth ** (dim / (dim - 2))
    waves = theta ** (np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim))  # tokens per radian
    if isinstance(scaling, DynamicNTK):
        return 1 / waves
    if isinstance(scaling, LongRope):
        factors = scaling.long if longest > scaling.original_context else scaling.short
        return 1 / (np.array(factors, np.float32) * waves)
    plain = 1 / waves
    stretched = (plain / rope.factor).astype(np.float32)
    if scaling is None:
        return stretched
    kept = _kept_bands(plain, scaling) if isinstance(scaling, Bands) else _kept_yarn(dim, theta, scaling)
    return (kept * plain + (1 - kept) * stretched).astype(np.float32)


def _kept_bands(plain: Float[np.ndarray, "h2"], bands: Bands) -> Float[np.ndarray, "h2"]:
    """Return how much of each plain frequency is kept, 0 to 1, by Llama 3.1's bands."""
    turns = bands.original_context * plain / (2 * math.pi)  # within the original context
    if bands.low == bands.high:
        return np.where(turns < bands.low, np.float32(0), np.float32(1))
    return np.clip((turns - bands.low) / (bands.high - bands.low), 0, 1)


def _kept_yarn(dim: int, theta: float, yarn: Yarn) -> Float[np.ndarray, "h2"]:
    """Return how much of each plain frequency is kept, 0 to 1, by YaRN (Peng et al. 2023, eq. 18, over dimensions)."""

    def border(turns: float) -> float:
        """Return the pair of dimensions, as a fraction, that turns so often in the original context."""
        return dim * math.log(yarn.original_context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = border(yarn.beta_fast), border(yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001  # a step, as in transformers
    return 1 - np.clip((np.arange(dim // 2, dtype=np.float32) - low) / (high - low), 0, 1)


def yarn_mscale(factor: float, mscale: float) -> float:
    """Return YaRN's scale of attention for a stretch by `factor` (Peng et al. 2023, eq. 22; DeepSeek weighs it)."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def attention_factor(rope: Rope) -> float:
    """Return the factor of cosines and sines; scores grow by its square."""
    scaling = rope.scaling
    if not isinstance(scaling, Yarn | LongRope):
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if isinstance(scaling, LongRope):
        if rope.factor <= 1:
            return 1.0
        return math.sqrt(1 + math.log(rope.factor) / math.log(scaling.original_context))
    if scaling.mscale is None or scaling.mscale_all_dim is None:
        return yarn_mscale(rope.factor, 1.0)
    return yarn_mscale(rope.factor, scaling.mscale) / yarn_mscale(rope.factor, scaling.mscale_all_dim)


def score_factor(rope: Rope) -> float:
    """Return the factor by which DeepSeek's attention multiplies its scores: the square of `mscale_all_dim`'s scale."""
    if not isinstance(rope.scaling, Yarn) or rope.scaling.mscale_all_dim is None:
        return 1.0
    return yarn_mscale(rope.factor, rope.scaling.mscale_all_dim) ** 2


def rope_angles(positions: Int[Array, "B T"], head_dim: int, rope: Rope, longest: int) -> Angles:
    """Return the rotation of each position, float32.

    Args:
      positions: of the tokens in their texts.
      head_dim: dimensions of a head.
      rope: its rotary positions.
      longest: tokens of the longest text that the pass can hold: all that it reads, or, with a cache, the model's
        context. Keys in a cache keep their rotation, so every pass over it must give the same.
    """
    radians = positions[..., None].astype(jnp.float32) * rope_frequencies(head_dim, rope, longest)
    factor = attention_factor(rope)
    cos, sin = jnp.cos(radians), jnp.sin(radians)
    if factor != 1.0:
        cos, sin = cos * factor, sin * factor
    return Angles(cos, sin, rope.interleaved)


def angles_where(chosen: Bool[Array, ""], first: Angles, second: Angles) -> Angles:
    """Return the first angles where chosen, else the second."""
    return jax.tree.map(lambda x, y: jnp.where(chosen, x, y), first, second)


def rotate(x: Float[Array, "B T heads h"], angles: Angles) -> Float[Array, "B T heads h"]:
    """Apply RoPE to the first dimensions of each head, twice as many as there are angles; the others stay.

    Dimension i turns with i + h2, the half-split layout of most Hugging Face checkpoints, or, interleaved, 2i with
    2i + 1 (GLM-4, Llama 4, DeepSeek).
    """
    cos, sin = angles.cos[:, :, None, :], angles.sin[:, :, None, :]
    turning, rest = jnp.split(x, [2 * cos.shape[-1]], axis=-1)
    pairs = turning.astype(jnp.float32).reshape(*x.shape[:-1], *((-1, 2) if angles.interleaved else (2, -1)))
    axis = -1 if angles.interleaved else -2
    first, second = (jax.lax.index_in_dim(pairs, i, axis, keepdims=False) for i in range(2))
    turned = jnp.stack([first * cos - second * sin, second * cos + first * sin], axis)
    turned = turned.reshape(turning.shape).astype(x.dtype)
    return turned if rest.shape[-1] == 0 else jnp.concatenate([turned, rest], axis=-1)
