"""Feed-forward layers: one gated network, or a mixture of networks (mixture of experts)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from colm_jax.models.activation import gated
from colm_jax.models.config import Mixture, ModelConfig
from colm_jax.models.layers import Linear, Maker, product
from colm_jax.models.networks import AXES, apply_networks


class FeedForward(nnx.Module):
    """Gated feed-forward layer (Shazeer 2020)."""

    def __init__(self, config: ModelConfig, make: Maker, ff: int | None = None):
        d, f, bias = config.width, config.ff if ff is None else ff, config.ff_bias
        self.config = config
        self.gate = Linear("btd,df->btf", (d, f), ("embed", "ff"), make, scale=d**-0.5, bias=bias)
        self.up = Linear("btd,df->btf", (d, f), ("embed", "ff"), make, scale=d**-0.5, bias=bias)
        scale = (2 * config.depth * f) ** -0.5
        self.down = Linear("btf,fd->btd", (f, d), ("ff", "embed"), make, scale=scale, bias=bias)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Apply the layer to each token."""
        return self.down(gated(self.config, self.gate(x), self.up(x)))


class Router(Linear):
    """The router of a mixture: scores the networks for each token, and chooses the best ones."""

    def __init__(self, config: ModelConfig, mixture: Mixture, make: Maker):
        d, n = config.width, mixture.networks
        axes = ("embed", "scores")
        super().__init__("btd,dn->btn", (d, n), axes, make, scale=d**-0.5, bias=mixture.bias == "router")
        self.mixture = mixture
        if mixture.bias == "choice":  # float32 in every model: it decides between scores that may be close
            self.correction = make.fixed(0.0, (n,), ("scores",))

    def choose(self, x: Float[Array, "B T D"]) -> tuple[Int[Array, "B T A"], Float[Array, "B T A"]]:
        """Return the networks that each token passes, and their weights, float32."""
        mixture = self.mixture
        if mixture.wide_router:
            kernel = self.kernel.get_value().astype(jnp.float32)
            logits = product(self.equation, x.astype(jnp.float32), kernel)
        else:
            logits = self(x).astype(jnp.float32)
        scores = jax.nn.sigmoid(logits) if mixture.scoring == "sigmoid" else jax.nn.softmax(logits, axis=-1)
        ranked = scores + self.correction[...].astype(jnp.float32) if hasattr(self, "correction") else scores
        _, chosen = jax.lax.top_k(_in_best_groups(mixture, ranked), mixture.active)
        weights = jnp.take_along_axis(scores, chosen, axis=-1)
        if mixture.normalised:
            weights /= jnp.sum(weights, axis=-1, keepdims=True)
        return chosen, weights * mixture.scale


def _in_best_groups(mixture: Mixture, ranked: Float[Array, "B T networks"]) -> Float[Array, "B T networks"]:
    """Return the scores with -inf for networks outside each token's best groups (DeepSeek-AI 2024, V2 and V3)."""
    if mixture.active_groups == mixture.groups:
        return ranked
    groups = ranked.reshape(*ranked.shape[:-1], mixture.groups, -1)
    best = jax.lax.top_k(groups, 1 if mixture.group_score == "best" else 2)[0]
    _, kept = jax.lax.top_k(jnp.sum(best, axis=-1), mixture.active_groups)
    inside = jnp.any(kept[..., None] == jnp.arange(mixture.groups), axis=-2)
    return jnp.where(inside[..., None], groups, -jnp.inf).reshape(ranked.shape)


class MixtureFeedForward(nnx.Module):
    """Several gated networks; a router picks a few for each token and weights them (Jiang et al. 2024, Mixtral).

    A step with few tokens reads the weights of few networks. In some families one more network reads every token.
    """

    def __init__(self, config: ModelConfig, make: Maker):
        mixture = config.mixture
        assert mixture is not None
        n, d, f = mixture.networks, config.width, mixture.ff or config.ff
        self.config = config
        self.router = Router(config, mixture, make)
        self.gate = make((n, d, f), AXES["gate"], d**-0.5)
        self.up = make((n, d, f), AXES["up"], d**-0.5)
        self.down = make((n, f, d), AXES["down"], (2 * config.depth * f) ** -0.5)
        if mixture.network_bias:
            self.gate_bias = make.constant(0.0, (n, f), AXES["gate_bias"])
            self.up_bias = make.constant(0.0, (n, f), AXES["up_bias"])
            self.down_bias = make.constant(0.0, (n, d), AXES["down_bias"])
        if mixture.shared_ff is not None:
            self.shared = FeedForward(config, make, mixture.shared_ff)
        if mixture.shared_gate:
            self.shared_gate = Linear("btd,dn->btn", (d, 1), ("embed", "scores"), make, scale=d**-0.5)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Apply each token's networks, and the shared one."""
        kernels = {name: getattr(self, name).get_value() for name in AXES if hasattr(self, name)}
        out = apply_networks(self.config, x, *self.router.choose(x), kernels)
        if hasattr(self, "shared"):
            shared = self.shared(x)
            out += jax.nn.sigmoid(self.shared_gate(x)) * shared if hasattr(self, "shared_gate") else shared
        return out
