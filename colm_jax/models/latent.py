"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1): a cache of one small vector per token.

The keys and values of all heads are linear functions of one latent vector c per token; all heads share one rotary key.
Without a cache, each head's keys and values are computed. With a cache, attention uses the latent vectors themselves:
query · (W c) = (query W) · c, so a step reads the small cache and never expands it.
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from colm_jax.models.attention import attend
from colm_jax.models.config import ModelConfig
from colm_jax.models.inputs import KeyValue, LayerInputs
from colm_jax.models.layers import Linear, Maker, RMSNorm, precision_of
from colm_jax.models.rope import rotate, score_factor


class LatentAttention(nnx.Module):
    """Self-attention over latent vectors. The cache holds latent vector and rotary key, as one key for all heads."""

    def __init__(self, config: ModelConfig, make: Maker):
        assert config.latent is not None
        self.latent = config.latent
        self.scale = (config.latent.plain + config.latent.rotary) ** -0.5 * score_factor(config.rope)
        latent, d, heads = config.latent, config.width, config.heads

        def norm(size: int) -> RMSNorm:
            return RMSNorm((size,), ("latent",), latent.rms_eps, config.zero_centred_norm, make)

        def down(size: int) -> Linear:
            axes = ("embed", "latent")
            return Linear("btd,dr->btr", (d, size), axes, make, scale=d**-0.5, bias=config.qkv_bias)

        def up(inputs: int, axis: str, size: int) -> Linear:
            axes = (axis, "heads", "head_dim")
            return Linear("btr,rnh->btnh", (inputs, heads, size), axes, make, scale=inputs**-0.5)

        size = latent.plain + latent.rotary
        if latent.query_rank is None:
            self.query = up(d, "embed", size)
        else:
            self.query_down = down(latent.query_rank)
            self.query_norm = norm(latent.query_rank)
            self.query_up = up(latent.query_rank, "latent", size)
        self.key_value_down = down(latent.rank + latent.rotary)
        self.key_value_norm = norm(latent.rank)
        self.key_value_up = up(latent.rank, "latent", latent.plain + latent.value)
        shape, axes = (heads, latent.value, d), ("heads", "head_dim", "embed")
        scale = (2 * config.depth * d) ** -0.5
        self.out = Linear("btnh,nhd->btd", shape, axes, make, scale=scale, bias=config.out_bias)

    def __call__(self, x: Float[Array, "R T D"], inputs: LayerInputs) -> tuple[Float[Array, "R T D"], KeyValue]:
        """Return the output, and the new tokens' latent vectors with their rotary keys (values of size 0)."""
        latent, plain = self.latent, self.latent.plain
        query = self.query(x) if latent.query_rank is None else self.query_up(self.query_norm(self.query_down(x)))
        query = jnp.concatenate([query[..., :plain], rotate(query[..., plain:], inputs.angles)], axis=-1)
        compressed = self.key_value_down(x)
        vector = self.key_value_norm(compressed[..., : latent.rank])
        rotary = rotate(compressed[..., None, latent.rank :], inputs.angles)
        kept = jnp.concatenate([vector[..., None, :], rotary], axis=-1)  # [R, T, 1, rank + rotary]
        rows = kept.swapaxes(1, 2), kept[..., :0].swapaxes(1, 2)
        mixed = (
            self._expanded(query, vector, rotary, inputs)
            if inputs.past is None
            else self._absorbed(query, kept, inputs)
        )
        return self.out(mixed, joined=inputs.past is not None), rows

    def _expanded(
        self,
        query: Float[Array, "R T H h"],
        vector: Float[Array, "R T L"],
        rotary: Float[Array, "R T 1 r"],
        inputs: LayerInputs,
    ) -> Float[Array, "R T H v"]:
        """Attend with each head's own keys and values."""
        both = self.key_value_up(vector)
        turned = jnp.broadcast_to(rotary, (*both.shape[:-1], rotary.shape[-1]))
        key = jnp.concatenate([both[..., : self.latent.plain], turned], axis=-1)
        value = both[..., self.latent.plain :]
        precision = precision_of(query.dtype)
        return attend(query, key, value, scale=self.scale, segments=inputs.segments, precision=precision)

    def _absorbed(
        self, query: Float[Array, "R T H h"], kept: Float[Array, "R T 1 L"], inputs: LayerInputs
    ) -> Float[Array, "R T H v"]:
        """Attend to latent vectors, with queries that include the kernel of the keys.

        Queries are padded to the kernel's size, and results are cut: slicing the kernel would copy it at every step.
        """
        assert inputs.past is not None
        latent, kernel, precision = self.latent, self.key_value_up.kernel[...], precision_of(query.dtype)
        padded = jnp.pad(query[..., : latent.plain], ((0, 0), (0, 0), (0, 0), (0, latent.value)))
        absorbed = jnp.einsum("btnh,rnh->btnr", padded, kernel, precision=precision)
        query = jnp.concatenate([absorbed, query[..., latent.plain :]], axis=-1)
        keys, _, lengths = inputs.past
        ragged = inputs.ragged
        if ragged is not None:
            query, kept = ragged.grid(query), ragged.grid(kept)
        mixed = attend(query, kept, kept, (keys, keys, lengths), scale=self.scale, precision=precision)
        if ragged is not None:
            mixed = ragged.line(mixed)
        return jnp.einsum("btnr,rnh->btnh", mixed[..., : latent.rank], kernel, precision=precision)[..., latent.plain :]
