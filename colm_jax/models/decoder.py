"""The decoder: one network for every family, as Flax NNX modules, base and expert alike.

Layers are stored stacked (leading axis = layer) and scanned, so that compile time does not grow with depth; decoding
uses `unstacked()`, since on some back ends a scan copies each layer's weights. Every parameter names its logical axes
in its metadata (`axes`); `colm_jax.parallel` maps them to a mesh.
"""

import copy
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from colm_jax.models.arrays import AnyArray
from colm_jax.models.attention import Past, attend, positions_in
from colm_jax.models.cache import KVCache, KVRows
from colm_jax.models.config import ModelConfig
from colm_jax.models.feed_forward import FeedForward, MixtureFeedForward
from colm_jax.models.layers import Linear, Maker, RMSNorm, precision_of
from colm_jax.models.ragged import Ragged
from colm_jax.models.rope import Angles, angles_where, rope_angles, rotate
from colm_jax.parallel import batch_sharding

KeyValue = tuple[Float[Array, "R K T h"], Float[Array, "R K T h"]]  # of the new tokens, in one layer
Constraint = Callable[[Float[Array, "B T D"]], Float[Array, "B T D"]]  # the residual stream, with a sharding

_NO_WINDOW = np.iinfo(np.int32).max

# What a layer keeps for its gradient; the rest is computed again. None: everything is kept.
REMAT = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # its input and the products with weights
    "full": jax.checkpoint_policies.nothing_saveable,  # its input alone
}


class Attention(nnx.Module):
    """Self-attention with grouped key and value heads.

    R rows of tokens: one for each of B sequences, or a single one with the tokens of all (`Ragged`).
    """

    def __init__(self, config: ModelConfig, make: Maker):
        d, h = config.width, config.head_dim
        self.scale = (h if config.attention_scalar is None else config.attention_scalar) ** -0.5
        self.softcap = config.attention_softcap

        def reads(heads: int, axis: str) -> Linear:
            shape, axes = (d, heads, h), ("embed", axis, "head_dim")
            return Linear("btd,dnh->btnh", shape, axes, make, scale=d**-0.5, bias=config.qkv_bias)

        self.query = reads(config.heads, "heads")
        self.key = reads(config.kv_heads, "kv_heads")
        self.value = reads(config.kv_heads, "kv_heads")
        shape, axes, scale = (config.heads, h, d), ("heads", "head_dim", "embed"), (2 * config.depth * d) ** -0.5
        self.out = Linear("btnh,nhd->btd", shape, axes, make, scale=scale, bias=config.out_bias)
        if config.qk_norm:
            self.query_norm = RMSNorm(h, "head_dim", config.rms_eps, config.zero_centred_norm, make)
            self.key_norm = RMSNorm(h, "head_dim", config.rms_eps, config.zero_centred_norm, make)

    def __call__(
        self,
        x: Float[Array, "R T D"],
        angles: Angles,
        window: int | Int[Array, ""] | None,
        past: Past | None,
        segments: Int[AnyArray, "R T"] | None,
        ragged: Ragged | None,
    ) -> tuple[Float[Array, "R T D"], KeyValue]:
        """Return the output, and the new tokens' keys and values."""
        query, key, value = self.query(x), self.key(x), self.value(x)
        if hasattr(self, "query_norm"):
            query, key = self.query_norm(query), self.key_norm(key)
        query, key = rotate(query, angles), rotate(key, angles)
        rows = key.swapaxes(1, 2), value.swapaxes(1, 2)
        if ragged is not None:
            query, key, value = ragged.grid(query), ragged.grid(key), ragged.grid(value)
        mixed = attend(
            query,
            key,
            value,
            past,
            scale=self.scale,
            softcap=self.softcap,
            window=window,
            segments=segments,
            precision=precision_of(x.dtype),
        )
        return self.out(mixed if ragged is None else ragged.line(mixed), joined=past is not None), rows


class Block(nnx.Module):
    """One layer, or all of them stacked: then its parameters have a leading axis and only `lax.scan` may call it."""

    def __init__(self, config: ModelConfig, make: Maker):
        def norm() -> RMSNorm:
            return RMSNorm(config.width, "embed", config.rms_eps, config.zero_centred_norm, make)

        self.attention_norm = norm()
        self.attention = Attention(config, make)
        self.feed_forward_norm = norm()
        self.feed_forward = FeedForward(config, make) if config.mixture is None else MixtureFeedForward(config, make)
        if config.post_norm:
            self.attention_post_norm = norm()
            self.feed_forward_post_norm = norm()

    def __call__(
        self,
        x: Float[Array, "R T D"],
        angles: Angles,
        window: int | Int[Array, ""] | None = None,
        past: Past | None = None,
        segments: Int[AnyArray, "R T"] | None = None,
        ragged: Ragged | None = None,
    ) -> tuple[Float[Array, "R T D"], KeyValue]:
        """Return the residual stream, and the new tokens' keys and values."""
        mixed, rows = self.attention(self.attention_norm(x), angles, window, past, segments, ragged)
        x = x + (self.attention_post_norm(mixed) if hasattr(self, "attention_post_norm") else mixed)
        out = self.feed_forward(self.feed_forward_norm(x))
        return x + (self.feed_forward_post_norm(out) if hasattr(self, "feed_forward_post_norm") else out), rows


class Decoder(nnx.Module):
    """Token ids to final hidden states, and those to logits."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        self.config = config
        make = Maker(rngs, dtype, layers=None)
        self.embedding = make((config.vocab_size, config.width), ("vocab", "embed"), 0.02)
        self.layers: Block | nnx.List = Block(config, Maker(rngs, dtype, layers=config.depth))
        self.norm = RMSNorm(config.width, "embed", config.rms_eps, config.zero_centred_norm, make)
        if not config.tied:
            self.head = make((config.width, config.vocab_size), ("embed", "vocab"), config.width**-0.5)

    @property
    def dtype(self) -> jnp.dtype:
        """The type of activations and cache, and of weights that are not quantised."""
        return self.embedding[...].dtype

    @property
    def batch_sharding(self) -> jax.sharding.NamedSharding | None:
        """How batches are sharded over the mesh that holds the weights; None on one device without a mesh."""
        where = self.embedding.get_value().sharding
        return batch_sharding(where.mesh) if isinstance(where, jax.sharding.NamedSharding) else None

    def __call__(
        self,
        tokens: Int[AnyArray, "B T"],
        cache: KVCache | None = None,
        remat: str = "none",
        segments: Int[AnyArray, "B T"] | None = None,
        spread: jax.sharding.Sharding | None = None,
        ragged: Ragged | None = None,
    ) -> tuple[Float[Array, "B T D"], KVRows | None]:
        """Read T tokens after what the cache holds (from position 0 without one).

        Args:
          tokens: to be read.
          cache: what was read before; needs `unstacked()` layers.
          remat: what each layer keeps for its gradient, a key of REMAT; of stacked layers only.
          segments: where rows hold several texts: which one each token belongs to. Without a cache only.
          spread: sharding of the residual stream by texts. Without it the compiler may split the stream as
            the weights are, along D, and then every product of the whole batch is summed over the devices.
          ragged: where the tokens [1,N] are those of several texts in one line: whose they are. With a cache only.

        Returns:
          The final hidden states (after the last norm: what head and gate read), and the tokens' keys and values for
          `KVCache.write` (None without a cache).
        """
        config = self.config
        start = 0 if cache is None or ragged is not None else cache.lengths[:, None]
        positions = jnp.broadcast_to(start + jnp.arange(tokens.shape[1]), tokens.shape)
        if ragged is not None and cache is not None:
            positions = (cache.lengths[ragged.text] + ragged.offset)[None]
        if segments is not None:
            positions = positions_in(segments)
        longest = tokens.shape[1] if cache is None else config.context  # a cached key turned once, for all
        everywhere = rope_angles(positions, config.head_dim, config.rope, longest)
        local = everywhere
        if config.window_rope is not None:
            local = rope_angles(positions, config.head_dim, config.window_rope, longest)

        def kept(x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
            return x if spread is None else jax.lax.with_sharding_constraint(x, spread)

        x = kept(jnp.take(self.embedding[...], tokens, axis=0))
        if config.scaled_embedding:
            x *= jnp.asarray(config.width**0.5, x.dtype)
        if isinstance(self.layers, Block):
            if cache is not None:
                raise ValueError("reading with a cache needs unstacked layers: decoder.unstacked()")
            return self.norm(self._scan(x, everywhere, local, segments, REMAT[remat], kept)), None
        rows = []
        for i, layer in enumerate(self.layers):
            past = None if cache is None else (cache.keys[i], cache.values[i], cache.lengths)
            window = None if config.windows is None else config.windows[i]
            x, new = layer(x, everywhere if window is None else local, window, past, segments, ragged)
            x = kept(x)
            rows.append(new)
        return self.norm(x), None if cache is None else KVRows(*map(tuple, zip(*rows)))

    def _scan(
        self,
        x: Float[Array, "B T D"],
        everywhere: Angles,
        local: Angles,
        segments: Int[AnyArray, "B T"] | None,
        policy: Callable | None,
        kept: Constraint,
    ) -> Float[Array, "B T D"]:
        """Apply the stacked layers in order with `lax.scan`; return the residual stream."""
        graph, stacked = nnx.split(self.layers)
        windows = None
        if self.config.windows is not None and any(self.config.windows):
            windows = jnp.array([window or _NO_WINDOW for window in self.config.windows], jnp.int32)

        def step(
            x: Float[Array, "B T D"], layer: tuple[nnx.State, Int[Array, ""] | None]
        ) -> tuple[Float[Array, "B T D"], None]:
            state, window = layer
            angles = everywhere if window is None else angles_where(window == _NO_WINDOW, everywhere, local)
            return kept(nnx.merge(graph, state)(x, angles, window, None, segments)[0]), None

        if policy is not None:
            step = jax.checkpoint(step, policy=policy, prevent_cse=False)  # a scan's body needs no barrier
        return jax.lax.scan(step, x, (stacked, windows))[0]

    def logits(
        self, hidden: Float[AnyArray, "*N D"], allowed: Bool[AnyArray, "A"] | None = None
    ) -> Float[Array, "*N _"]:
        """Return scores over the vocabulary, float32; given `allowed`, over its A ids, -inf where it is False."""
        kernel = self.embedding[...].T if self.config.tied else self.head[...]
        logits = jnp.dot(hidden, kernel, precision=precision_of(hidden.dtype), preferred_element_type=jnp.float32)
        if self.config.logit_softcap is not None:
            logits = self.config.logit_softcap * jnp.tanh(logits / self.config.logit_softcap)
        return logits if allowed is None else jnp.where(allowed, logits[..., : allowed.shape[0]], -jnp.inf)

    def unstacked(self) -> "Decoder":
        """Return the same model with a list of layers in place of the stacked ones. Copies the layers' weights."""
        if not isinstance(self.layers, Block):
            return self
        graph, stacked = nnx.split(self.layers)
        other = copy.copy(self)
        other.layers = nnx.List([nnx.merge(graph, _layer(stacked, i)) for i in range(self.config.depth)])
        return other


def _layer(stacked: nnx.State, number: int) -> nnx.State:
    """Return one layer of stacked parameters."""

    def take(variable: nnx.Variable) -> nnx.Variable:
        value = jax.tree.map(lambda leaf: leaf[number], variable.get_value())
        return type(variable)(value, axes=variable.get_metadata()["axes"][1:])

    return jax.tree.map(take, stacked, is_leaf=lambda x: isinstance(x, nnx.Variable))
