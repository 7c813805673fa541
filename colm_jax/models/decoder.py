"""The decoder: a Llama-family network as Flax NNX modules, base and expert alike.

Layers are stored stacked (leading axis = layer) and scanned, so that compile time does not grow with depth; decoding
uses `unstacked()`, since on some back ends a scan copies each layer's weights. Every parameter names its logical axes
in its metadata (`axes`); `colm_jax.parallel` maps them to a mesh.
"""

import copy
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from colm_jax.models.attention import attend, rope_angles, rotate
from colm_jax.models.cache import KVCache, Rows
from colm_jax.models.config import ModelConfig


def _precision(dtype: jnp.dtype) -> jax.lax.PrecisionLike:
    """Float32 means float32 on every back end; TPUs and GPUs would otherwise multiply in fewer bits."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None


class _Maker:
    """Makes the parameters of a module: stacked over `layers` where that is given, and randomly initialised."""

    def __init__(self, rngs: nnx.Rngs, dtype: jnp.dtype, layers: int | None):
        self.rngs, self.dtype, self.layers = rngs, dtype, layers

    def __call__(self, shape: tuple[int, ...], axes: tuple[str, ...], scale: float | None) -> nnx.Param:
        """A parameter: normal with deviation `scale`, or ones where it is None."""
        if self.layers is not None:
            shape, axes = (self.layers, *shape), ("layers", *axes)
        if scale is None:
            return nnx.Param(jnp.ones(shape, self.dtype), axes=axes)
        return nnx.Param((scale * jax.random.normal(self.rngs.params(), shape)).astype(self.dtype), axes=axes)


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation over the last axis, computed in float32."""

    def __init__(self, config: ModelConfig, make: _Maker):
        self.eps = config.rms_eps
        self.scale = make((config.width,), ("embed",), None)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Normalises each token's vector."""
        wide = x.astype(jnp.float32)
        wide *= jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + self.eps)
        return self.scale[...] * wide.astype(x.dtype)


class Attention(nnx.Module):
    """Self-attention with grouped key and value heads."""

    def __init__(self, config: ModelConfig, make: _Maker):
        d, h = config.width, config.head_dim
        self.query = make((d, config.heads, h), ("embed", "heads", "head_dim"), d**-0.5)
        self.key = make((d, config.kv_heads, h), ("embed", "kv_heads", "head_dim"), d**-0.5)
        self.value = make((d, config.kv_heads, h), ("embed", "kv_heads", "head_dim"), d**-0.5)
        self.out = make((config.heads, h, d), ("heads", "head_dim", "embed"), (2 * config.depth * d) ** -0.5)

    def __call__(self, x: Float[Array, "B T D"], angles: Float[Array, "B T h2"], past):
        """Returns the output [B,T,D] and the new tokens' keys and values, each [B,K,T,h]."""
        precision = _precision(x.dtype)

        def project(kernel):
            return jnp.einsum("btd,dnh->btnh", x, kernel[...], precision=precision)

        query, key, value = rotate(project(self.query), angles), rotate(project(self.key), angles), project(self.value)
        mixed = attend(query, key, value, past, precision)
        out = jnp.einsum("btnh,nhd->btd", mixed, self.out[...], precision=precision)
        return out, (key.swapaxes(1, 2), value.swapaxes(1, 2))


class FeedForward(nnx.Module):
    """Gated feed-forward layer, SwiGLU (Shazeer 2020)."""

    def __init__(self, config: ModelConfig, make: _Maker):
        d, f = config.width, config.ff
        self.gate = make((d, f), ("embed", "ff"), d**-0.5)
        self.up = make((d, f), ("embed", "ff"), d**-0.5)
        self.down = make((f, d), ("ff", "embed"), (2 * config.depth * f) ** -0.5)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Applies the layer to each token."""
        precision = _precision(x.dtype)
        gate = jnp.dot(x, self.gate[...], precision=precision)
        up = jnp.dot(x, self.up[...], precision=precision)
        return jnp.dot(jax.nn.silu(gate) * up, self.down[...], precision=precision)


class Block(nnx.Module):
    """One layer, or all of them stacked: then its parameters have a leading axis and only `lax.scan` may call it."""

    def __init__(self, config: ModelConfig, make: _Maker):
        self.attention_norm = RMSNorm(config, make)
        self.attention = Attention(config, make)
        self.feed_forward_norm = RMSNorm(config, make)
        self.feed_forward = FeedForward(config, make)

    def __call__(self, x: Float[Array, "B T D"], angles: Float[Array, "B T h2"], past=None):
        """Returns the residual stream [B,T,D] and the new tokens' keys and values, each [B,K,T,h]."""
        mixed, rows = self.attention(self.attention_norm(x), angles, past)
        x = x + mixed
        return x + self.feed_forward(self.feed_forward_norm(x)), rows


class Decoder(nnx.Module):
    """Token ids to final hidden states, and those to logits."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, dtype: jnp.dtype = jnp.float32):
        self.config = config
        make = _Maker(rngs, dtype, layers=None)
        self.embedding = make((config.vocab_size, config.width), ("vocab", "embed"), 0.02)
        self.layers: Block | nnx.List = Block(config, _Maker(rngs, dtype, layers=config.depth))
        self.norm = RMSNorm(config, make)
        if not config.tied:
            self.head = make((config.width, config.vocab_size), ("embed", "vocab"), config.width**-0.5)

    @property
    def dtype(self) -> jnp.dtype:
        """The type of weights, activations and cache."""
        return self.embedding[...].dtype

    def __call__(
        self, tokens: Int[Array, "B T"], cache: KVCache | None = None
    ) -> tuple[Float[Array, "B T D"], Rows | None]:
        """Reads T tokens behind what the cache holds (from position 0 without one).

        Returns:
          The final hidden states (after the last norm: what head and gate read), and the tokens' keys and values for
          `KVCache.write` (None without a cache). A cache needs `unstacked()` layers.
        """
        start = 0 if cache is None else cache.lengths[:, None]
        positions = jnp.broadcast_to(start + jnp.arange(tokens.shape[1]), tokens.shape)
        angles = rope_angles(positions, self.config.head_dim, self.config.rope_theta)
        x = jnp.take(self.embedding[...], tokens, axis=0)
        if isinstance(self.layers, Block):
            if cache is not None:
                raise ValueError("reading with a cache needs unstacked layers: decoder.unstacked()")
            graph, stacked = nnx.split(self.layers)
            x, _ = jax.lax.scan(lambda x, layer: (nnx.merge(graph, layer)(x, angles)[0], None), x, stacked)
            return self.norm(x), None
        rows = []
        for i, layer in enumerate(self.layers):
            past = None if cache is None else (cache.keys[i], cache.values[i], cache.lengths)
            x, new = layer(x, angles, past)
            rows.append(new)
        return self.norm(x), None if cache is None else Rows(*map(tuple, zip(*rows)))

    def logits(self, hidden: Float[Array, "*N D"]) -> Float[Array, "*N V"]:
        """Scores over the vocabulary, float32."""
        kernel = self.embedding[...].T if self.config.tied else self.head[...]
        return jnp.dot(hidden, kernel, precision=_precision(hidden.dtype), preferred_element_type=jnp.float32)

    def unstacked(self) -> "Decoder":
        """The same model with a list of layers in place of the stacked ones. Copies the layers' weights."""
        if not isinstance(self.layers, Block):
            return self
        graph, stacked = nnx.split(self.layers)
        other = copy.copy(self)
        other.layers = nnx.List(
            [nnx.merge(graph, jax.tree.map(lambda leaf, i=i: leaf[i], stacked)) for i in range(self.config.depth)]
        )
        return other


def abstract(make: Callable[[], nnx.Module]) -> nnx.Module:
    """A module of shapes without arrays, for loading into, sharding and compiling."""
    return nnx.eval_shape(make)
