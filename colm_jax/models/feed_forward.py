"""Feed-forward layers: one gated network, or a mixture of several of which each token passes a few."""

import jax
import jax.numpy as jnp
import qwix
from flax import nnx
from jaxtyping import Array, Float, Int

from colm_jax.models.config import ModelConfig
from colm_jax.models.layers import Linear, Maker, precision_of


def activate(name: str, x: Float[Array, "*N F"]) -> Float[Array, "*N F"]:
    """The gate's activation: SiLU, or GELU by its tanh approximation."""
    return jax.nn.silu(x) if name == "silu" else jax.nn.gelu(x, approximate=True)


class FeedForward(nnx.Module):
    """Gated feed-forward layer (Shazeer 2020)."""

    def __init__(self, config: ModelConfig, make: Maker):
        d, f, bias = config.width, config.ff, config.ff_bias
        self.activation = config.activation
        self.gate = Linear("btd,df->btf", (d, f), ("embed", "ff"), make, scale=d**-0.5, bias=bias)
        self.up = Linear("btd,df->btf", (d, f), ("embed", "ff"), make, scale=d**-0.5, bias=bias)
        scale = (2 * config.depth * f) ** -0.5
        self.down = Linear("btf,fd->btd", (f, d), ("ff", "embed"), make, scale=scale, bias=bias)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Applies the layer to each token."""
        return self.down(activate(self.activation, self.gate(x)) * self.up(x))


class MixtureFeedForward(nnx.Module):
    """Several gated networks; a router picks a few for each token and weights them (Jiang et al. 2024, Mixtral).

    Tokens are sorted by network, so that each network is read once and does only the work of its own tokens.
    """

    def __init__(self, config: ModelConfig, make: Maker):
        assert config.mixture is not None
        n, d, f = config.mixture.networks, config.width, config.ff
        self.active, self.activation = config.mixture.active, config.activation
        self.router = Linear("btd,dn->btn", (d, n), ("embed", "networks"), make, scale=d**-0.5)
        self.gate = make((n, d, f), ("networks", "embed", "ff"), d**-0.5)
        self.up = make((n, d, f), ("networks", "embed", "ff"), d**-0.5)
        self.down = make((n, f, d), ("networks", "ff", "embed"), (2 * config.depth * f) ** -0.5)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Applies each token's networks."""
        shares = jax.nn.softmax(self.router(x).astype(jnp.float32), axis=-1)
        top, chosen = jax.lax.top_k(shares, self.active)  # [B, T, A]
        weights = top / jnp.sum(top, axis=-1, keepdims=True)

        flat = chosen.reshape(-1)
        order = jnp.argsort(flat)  # copies of tokens, by network
        rows = x.reshape(-1, x.shape[-1])[order // self.active]
        sizes = jnp.bincount(flat, length=shares.shape[-1])
        hidden = activate(self.activation, _by_network(rows, self.gate, sizes)) * _by_network(rows, self.up, sizes)
        out = _by_network(hidden, self.down, sizes)[jnp.argsort(order)]
        return jnp.einsum("btad,bta->btd", out.reshape(*chosen.shape, -1), weights.astype(x.dtype))


def _by_network(rows: Float[Array, "N I"], kernel: nnx.Param, sizes: Int[Array, "networks"]) -> Float[Array, "N O"]:
    """Rows sorted by network, each times its network's kernel."""
    value = kernel.get_value()
    dot = qwix.ragged_dot if isinstance(value, qwix.QArray) else jax.lax.ragged_dot
    return dot(rows, value, sizes.astype(jnp.int32), precision=precision_of(rows.dtype))
