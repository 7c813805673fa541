"""One layer of a decoder: attention and feed-forward network around the residual stream."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from colm_jax.models.attention import attend
from colm_jax.models.config import ModelConfig
from colm_jax.models.feed_forward import FeedForward, MixtureFeedForward
from colm_jax.models.inputs import KeyValue, LayerInputs
from colm_jax.models.latent import LatentAttention
from colm_jax.models.layers import Linear, Maker, RMSNorm, precision_of, unit
from colm_jax.models.rope import rotate


class Attention(nnx.Module):
    """Self-attention with grouped key and value heads."""

    def __init__(self, config: ModelConfig, make: Maker):
        d, h = config.width, config.head_dim
        scalar = h if config.attention_scalar is None else config.attention_scalar
        self.scale = scalar**-0.5 if config.attention_multiplier is None else config.attention_multiplier
        self.softcap, self.chunked = config.attention_softcap, config.chunked
        self.unit_eps = config.rms_eps if config.qk_norm == "unit" else None

        def reads(heads: int, axis: str) -> Linear:
            shape, axes = (d, heads, h), ("embed", axis, "head_dim")
            return Linear("btd,dnh->btnh", shape, axes, make, scale=d**-0.5, bias=config.qkv_bias)

        def norm(heads: int, axis: str) -> RMSNorm:
            shape, axes = ((heads, h), (axis, "head_dim")) if config.qk_norm == "joint" else ((h,), ("head_dim",))
            return RMSNorm(shape, axes, config.rms_eps, config.zero_centred_norm, make)

        self.query = reads(config.heads, "heads")
        self.key = reads(config.kv_heads, "kv_heads")
        self.value = reads(config.kv_heads, "kv_heads")
        shape, axes, scale = (config.heads, h, d), ("heads", "head_dim", "embed"), (2 * config.depth * d) ** -0.5
        self.out = Linear("btnh,nhd->btd", shape, axes, make, scale=scale, bias=config.out_bias)
        if config.qk_norm in ("head", "joint"):
            self.query_norm = norm(config.heads, "heads")
            self.key_norm = norm(config.kv_heads, "kv_heads")
        if config.sinks:
            self.sinks = make.constant(0.0, (config.heads,), ("heads",))

    def __call__(self, x: Float[Array, "R T D"], inputs: LayerInputs) -> tuple[Float[Array, "R T D"], KeyValue]:
        """Return the output, and the new tokens' keys and values."""
        query, key, value = self.query(x), self.key(x), self.value(x)
        if hasattr(self, "query_norm"):
            query, key = self.query_norm(query), self.key_norm(key)
        query, key = self._placed(query, inputs), self._placed(key, inputs)
        if inputs.temperature is not None:
            query = (query * inputs.temperature[..., None, None]).astype(query.dtype)
        rows = key.swapaxes(1, 2), value.swapaxes(1, 2)
        ragged = inputs.ragged
        if ragged is not None:
            query, key, value = ragged.grid(query), ragged.grid(key), ragged.grid(value)
        mixed = attend(
            query,
            key,
            value,
            inputs.past,
            scale=self.scale,
            softcap=self.softcap,
            window=inputs.window,
            chunked=self.chunked,
            sinks=self.sinks[...] if hasattr(self, "sinks") else None,
            segments=inputs.segments,
            precision=precision_of(x.dtype),
        )
        return self.out(mixed if ragged is None else ragged.line(mixed), joined=inputs.past is not None), rows

    def _placed(self, heads: Float[Array, "R T N h"], inputs: LayerInputs) -> Float[Array, "R T N h"]:
        """Return queries or keys with their positions, where the layer has any."""
        if inputs.rotated is False:
            return heads
        turned = rotate(heads, inputs.angles)
        if self.unit_eps is not None:
            turned = unit(turned, self.unit_eps).astype(heads.dtype)
        return turned if inputs.rotated is True else jnp.where(inputs.rotated, turned, heads)


class Block(nnx.Module):
    """One layer, or a stack of layers of one kind.

    The parameters of a stack have a leading axis, and only `lax.scan` may call it.
    """

    def __init__(self, config: ModelConfig, make: Maker, mixture: bool):
        def norm() -> RMSNorm:
            return RMSNorm((config.width,), ("embed",), config.rms_eps, config.zero_centred_norm, make)

        self.residual_multiplier = config.residual_multiplier
        self.attention = Attention(config, make) if config.latent is None else LatentAttention(config, make)
        self.feed_forward = MixtureFeedForward(config, make) if mixture else FeedForward(config, make)
        if config.pre_norm:
            self.attention_norm = norm()
            self.feed_forward_norm = norm()
        if config.post_norm:
            self.attention_post_norm = norm()
            self.feed_forward_post_norm = norm()

    def __call__(self, x: Float[Array, "R T D"], inputs: LayerInputs) -> tuple[Float[Array, "R T D"], KeyValue]:
        """Return the residual stream, and the new tokens' keys and values."""
        read = self.attention_norm(x) if hasattr(self, "attention_norm") else x
        mixed, rows = self.attention(read, inputs)
        x = self._add(x, self.attention_post_norm(mixed) if hasattr(self, "attention_post_norm") else mixed)
        out = self.feed_forward(self.feed_forward_norm(x) if hasattr(self, "feed_forward_norm") else x)
        return self._add(x, self.feed_forward_post_norm(out) if hasattr(self, "feed_forward_post_norm") else out), rows

    def _add(self, x: Float[Array, "R T D"], new: Float[Array, "R T D"]) -> Float[Array, "R T D"]:
        return x + (new if self.residual_multiplier is None else new * self.residual_multiplier)
