"""Feed-forward layers: one gated network, or a mixture of several of which each token passes a few."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from colm_jax.models.config import ModelConfig
from colm_jax.models.layers import Linear, Maker, product


def activate(name: str, x: Float[Array, "*N F"]) -> Float[Array, "*N F"]:
    """Return the gate's activation: SiLU, or GELU by its tanh approximation."""
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
        """Apply the layer to each token."""
        return self.down(activate(self.activation, self.gate(x)) * self.up(x))


class MixtureFeedForward(nnx.Module):
    """Several gated networks; a router picks a few for each token and weights them (Jiang et al. 2024, Mixtral).

    The networks run one after the other, each only if some token chose it: a step of few tokens reads the weights of
    few networks. (A long text passes them all. `lax.ragged_dot` would do less, but compiles for TPU to more: every
    network on every copy of a token.)
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
        """Apply each token's networks."""
        shares = jax.nn.softmax(self.router(x).astype(jnp.float32), axis=-1)
        top, chosen = jax.lax.top_k(shares, self.active)  # [B, T, A]
        weights = top / jnp.sum(top, axis=-1, keepdims=True)

        shares = jnp.sum(jax.nn.one_hot(chosen, shares.shape[-1]) * weights[..., None], axis=-2)  # [B, T, networks]

        def network(out: Float[Array, "B T D"], n: Int[Array, ""]) -> tuple[Float[Array, "B T D"], None]:
            def work() -> Float[Array, "B T D"]:
                gate, up, down = (jax.tree.map(lambda leaf: leaf[n], k.get_value()) for k in kernels)
                hidden = activate(self.activation, product("btd,df->btf", x, gate)) * product("btd,df->btf", x, up)
                return out + shares[..., n, None] * product("btf,fd->btd", hidden, down)

            return jax.lax.cond(jnp.any(shares[..., n] > 0), work, lambda: out), None

        kernels = (self.gate, self.up, self.down)
        start = jnp.zeros(x.shape, jnp.float32)
        return jax.lax.scan(network, start, jnp.arange(shares.shape[-1]))[0].astype(x.dtype)
