"""Expected cost of an answer, in operations and bytes of weights, from the models' sizes and the tokens' sources.

Costs are for one sequence at a time: the base processes every token; an expert that is called processes all tokens that
are not in its cache in one forward pass.

- A token in a forward pass takes 2 operations (multiply, add) per weight: of every layer's linear kernels (in a
  mixture, those of its active networks and of the shared one) and of the head; an embedding look-up takes none.
  Attention adds, per layer, 4 · H · head_dim operations (query · key, weights · values) for every token in its
  context, itself included, limited by the layer's window. Norms, softmax and rotary positions are left out.
- A forward pass reads every weight once, however many tokens it has: bytes are passes × weights × bytes per weight. All
  networks of a mixture are counted, an upper bound. Cache and activations are left out: for short answers they are
  small compared with the weights. In a batch all sequences share a pass, so an answer then costs fewer bytes.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import jax
from flax import nnx

from colm_jax.models.arrays import bits_of
from colm_jax.models.config import Latent, ModelConfig
from colm_jax.models.decoder import Decoder
from colm_jax.models.quantized import Quantized, weight_count

_KERNELS = ("kernel", "gate", "up", "down", "head")  # last parts of the paths of what `weights_met` counts


@dataclass(frozen=True)
class Work:
    """The cost of one answer, or the sum over several."""

    flops: float = 0.0
    bytes: float = 0.0  # of weights read
    passes: int = 0  # forward passes

    def __add__(self, other: "Work") -> "Work":
        """Return the sum of both."""
        return Work(self.flops + other.flops, self.bytes + other.bytes, self.passes + other.passes)


def bytes_per_weight(decoder: Decoder) -> float:
    """Return the average size in bytes of a weight that a pass reads, as the model holds it: scales are included."""
    held, count = 0, 0
    for (*_, name), variable in nnx.to_flat_state(nnx.state(decoder)):
        if name in _KERNELS or (name == "embedding" and decoder.config.tied):
            value = variable.get_value()
            leaves = jax.tree.leaves(value)
            held += sum(leaf.size * bits_of(leaf.dtype) // 8 for leaf in leaves)
            count += weight_count(value) if isinstance(value, Quantized) else sum(leaf.size for leaf in leaves)
    return held / count


def weights_met(config: ModelConfig, active: bool = True) -> int:
    """Return the number of weights in linear kernels and head that a token uses; all of them if not `active`."""
    heads, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    attention = config.width * (heads + 2 * kv) + heads * config.width
    if config.latent is not None:
        attention = _latent_weights(config, config.latent)
    columns = 3 * config.ff * config.mixtures.count(False)
    mixture = config.mixture
    if mixture is not None:
        met = (mixture.active if active else mixture.networks) * (mixture.ff or config.ff) + (mixture.shared_ff or 0)
        # of the networks, the router, the shared network's gate
        columns += (3 * met + mixture.networks + mixture.shared_gate) * config.mixtures.count(True)
    return config.depth * attention + config.width * (columns + config.vocab_size)


def _latent_weights(config: ModelConfig, latent: Latent) -> int:
    """Return the number of weights of a layer's latent attention."""
    size = config.heads * (latent.plain + latent.rotary)
    query = config.width * size
    if latent.query_rank is not None:
        query = latent.query_rank * (config.width + size)
    kept = config.width * (latent.rank + latent.rotary) + latent.rank * config.heads * (latent.plain + latent.value)
    return query + kept + config.heads * latent.value * config.width


def read(config: ModelConfig, start: int, stop: int, bytes_a_weight: float) -> Work:
    """Return the cost of one forward pass over positions start..stop-1 of a sequence; zero if there are none."""
    if stop <= start:
        return Work()
    seen = 0
    for window, layers in Counter(config.windows or {None: config.depth}).items():
        whole = window or stop
        # Position p attends to p + 1 tokens, at most `whole`.
        growing = range(start + 1, min(stop, whole) + 1)
        seen += layers * (sum(growing) + whole * (stop - start - len(growing)))
    width = 2 * config.head_dim if config.latent is None else config.head_dim + config.latent.value
    flops = 2 * weights_met(config) * (stop - start) + 2 * config.heads * width * seen
    return Work(flops, weights_met(config, active=False) * bytes_a_weight, 1)


def alone(config: ModelConfig, prompt: int, written: int, bytes_a_weight: float) -> Work:
    """Return the cost of an answer by one model: a pass over the prompt, then one for each token but the last."""
    work = read(config, 0, prompt, bytes_a_weight)
    for place in range(prompt, prompt + written - 1):
        work += read(config, place, place + 1, bytes_a_weight)
    return work


def together(
    configs: Sequence[ModelConfig], prompt: int, sources: Sequence[int], bytes_a_weight: Sequence[float]
) -> Work:
    """Return the cost of an answer by a team with strategy `defer`.

    Args:
      configs: of the base, then of each expert.
      prompt: the number of tokens before the answer.
      sources: for each written token, 0 for the base, 1..M for an expert.
      bytes_a_weight: of the base, then of each expert.
    """
    work = alone(configs[0], prompt, len(sources), bytes_a_weight[0])
    for m in range(1, len(configs)):
        cached = 0  # tokens in this expert's cache
        for i, source in enumerate(sources):
            if source == m:
                work += read(configs[m], cached, prompt + i, bytes_a_weight[m])
                cached = prompt + i
    return work
