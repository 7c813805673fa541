"""A mixture of every kind that a family has, and its definition: every network on every token, one token at a time."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from colm_jax.models.config import Mixture, ModelConfig
from colm_jax.models.feed_forward import MixtureFeedForward
from colm_jax.models.layers import Maker
from tests.tiny import tiny_config

CLAMPED: dict[str, Any] = {"activation": "clamped_swish", "activation_limit": 0.7, "activation_slope": 1.9}
MIXTURES: dict[str, tuple[Mixture, dict[str, Any]]] = {
    "mixtral": (Mixture(networks=6, active=2), {}),
    "qwen2_moe": (Mixture(8, 3, ff=24, normalised=False, shared_ff=40, shared_gate=True), {}),
    "qwen3_moe": (Mixture(8, 3, ff=24), {"activation": "gelu_tanh"}),
    "gpt_oss": (Mixture(8, 2, ff=24, bias="router", network_bias=True), CLAMPED),
    "llama4": (Mixture(8, 1, ff=24, scoring="sigmoid", normalised=False, on_input=True, shared_ff=24), {}),
    "llama4, top 2": (Mixture(6, 2, ff=24, scoring="sigmoid", normalised=False, on_input=True, shared_ff=24), {}),
    "deepseek_v2": (
        Mixture(8, 3, ff=24, normalised=False, scale=1.7, groups=4, active_groups=2, wide_router=True, shared_ff=48),
        {"ff_bias": True},
    ),
    "deepseek_v3": (
        Mixture(
            12,
            4,
            ff=24,
            scoring="sigmoid",
            scale=2.5,
            groups=4,
            active_groups=2,
            group_score="two_best",
            bias="choice",
            wide_router=True,
            shared_ff=24,
        ),
        {},
    ),
}


def config_of(name: str) -> ModelConfig:
    """The tiny model with this mixture."""
    mixture, fields = MIXTURES[name]
    return tiny_config(mixture=mixture, **fields)


def layer_of(config: ModelConfig, dtype: Any = jnp.float32) -> MixtureFeedForward:
    """A random layer; biases and corrections are random too, and large enough to change what is chosen."""
    layer = MixtureFeedForward(config, Maker(nnx.Rngs(0), dtype, layers=None))
    for i, (path, variable) in enumerate(nnx.to_flat_state(nnx.state(layer))):
        if "bias" in str(path[-1]) or path[-1] == "correction":
            drawn = 0.3 * jax.random.normal(jax.random.key(100 + i), variable.shape)
            variable[...] = drawn.astype(variable.dtype)
    return layer


def in_numpy(layer: MixtureFeedForward) -> SimpleNamespace:
    """The layer's weights as float64."""
    flat = {".".join(map(str, path)): np.asarray(v[...], np.float64) for path, v in nnx.to_flat_state(nnx.state(layer))}
    return SimpleNamespace(config=layer.config, flat=flat)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def unit(config, gate, up):
    """The gated unit."""
    if config.activation == "silu":
        return gate * sigmoid(gate) * up
    if config.activation == "gelu_tanh":
        return 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3))) * up
    gate, up = np.minimum(gate, config.activation_limit), np.clip(up, -config.activation_limit, config.activation_limit)
    return gate * sigmoid(config.activation_slope * gate) * (up + 1)


def choice(mixture: Mixture, w, x) -> dict[int, float]:
    """Networks and weights of one token."""
    logits = x @ w["router.kernel"] + w.get("router.bias", 0)
    scores = sigmoid(logits) if mixture.scoring == "sigmoid" else np.exp(logits) / np.exp(logits).sum()
    ranked = scores + w.get("router.correction", 0)
    groups = ranked.reshape(mixture.groups, -1)
    count = {"best": 1, "two_best": 2}[mixture.group_score]
    best = np.argsort(-np.sort(groups, axis=1)[:, -count:].sum(1), kind="stable")[: mixture.active_groups]
    size = mixture.networks // mixture.groups
    allowed = [n for n in range(mixture.networks) if n // size in best]
    chosen = sorted(allowed, key=lambda n: -ranked[n])[: mixture.active]
    total = sum(scores[n] for n in chosen) if mixture.normalised else 1
    return {n: scores[n] / total * mixture.scale for n in chosen}


def slow(layer: SimpleNamespace, x: np.ndarray) -> np.ndarray:
    """The layer's output for x [B,T,D], float64."""
    config, w = layer.config, layer.flat
    mixture, out = config.mixture, np.zeros(x.shape)

    def network(n, x):
        bias = [w[f"{name}_bias"][n] if mixture.network_bias else 0 for name in ("gate", "up", "down")]
        return unit(config, x @ w["gate"][n] + bias[0], x @ w["up"][n] + bias[1]) @ w["down"][n] + bias[2]

    for place in np.ndindex(x.shape[:2]):
        token = x[place]
        for n, share in choice(mixture, w, token).items():
            out[place] += network(n, share * token) if mixture.on_input else share * network(n, token)
        if mixture.shared_ff is not None:
            gate, up = (token @ w[f"shared.{k}.kernel"] + w.get(f"shared.{k}.bias", 0) for k in ("gate", "up"))
            shared = unit(config, gate, up) @ w["shared.down.kernel"] + w.get("shared.down.bias", 0)
            out[place] += shared * (sigmoid(token @ w["shared_gate.kernel"]) if mixture.shared_gate else 1)
    return out
