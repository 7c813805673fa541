"""What an answer costs: arithmetic and weights read, expected from the models' sizes and from who wrote which token.

Counted for one sequence at a time, as decoding goes (DESIGN section 4): the base reads every token; an expert, when it
is called, reads in one pass all tokens that it has not seen.

- A token that passes a model takes 2 operations (multiply, add) for each weight it meets: of every layer's linear
  kernels (of a mixture, those of its active networks) and of the head; an embedding look-up takes none. Attention adds,
  in each layer, 4 · H · head_dim operations (query · key, weights · values) for every token seen so far, itself
  included, in a layer with a window at most as many as that holds. Norms, softmax and rotary positions are left out.
- A pass reads every weight that its tokens can meet once, however many tokens it has: the bytes are passes × weights
  × bytes a weight. Of a mixture all networks are counted, an upper bound. The cache and the activations are left out:
  at short answers they are small beside the weights. In a batch a pass is shared by all sequences in it, so the bytes
  of one answer are then fewer.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from colm_jax.models.config import ModelConfig

BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "int8": 1.0, "int4": 0.5}  # a weight; scales left out


@dataclass(frozen=True)
class Work:
    """Of one answer, or a sum over several."""

    flops: float = 0.0
    bytes: float = 0.0  # of weights read
    passes: int = 0

    def __add__(self, other: "Work") -> "Work":
        """Both together."""
        return Work(self.flops + other.flops, self.bytes + other.bytes, self.passes + other.passes)


def weights_met(config: ModelConfig, active: bool = True) -> int:
    """Weights of linear kernels and head that one token meets; with `active` False, all that a pass may read."""
    heads, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    attention = config.width * (heads + 2 * kv) + heads * config.width
    networks, router = 1, 0
    if config.mixture is not None:
        networks = config.mixture.active if active else config.mixture.networks
        router = config.width * config.mixture.networks
    layer = attention + 3 * config.width * config.ff * networks + router
    return config.depth * layer + config.width * config.vocab_size


def read(config: ModelConfig, start: int, stop: int, bytes_a_weight: float) -> Work:
    """One pass over the tokens at positions start..stop-1 of a sequence; nothing where there are none."""
    if stop <= start:
        return Work()
    seen = 0
    for window, layers in Counter(config.windows or {None: config.depth}).items():
        whole = window or stop
        # Position p sees p + 1 tokens, at most `whole`.
        growing = range(start + 1, min(stop, whole) + 1)
        seen += layers * (sum(growing) + whole * (stop - start - len(growing)))
    flops = 2 * weights_met(config) * (stop - start) + 4 * config.heads * config.head_dim * seen
    return Work(flops, weights_met(config, active=False) * bytes_a_weight, 1)


def alone(config: ModelConfig, prompt: int, written: int, bytes_a_weight: float) -> Work:
    """One model writes an answer: a pass over the prompt, then one for each token but the last."""
    work = read(config, 0, prompt, bytes_a_weight)
    for place in range(prompt, prompt + written - 1):
        work += read(config, place, place + 1, bytes_a_weight)
    return work


def together(
    configs: Sequence[ModelConfig], prompt: int, sources: Sequence[int], bytes_a_weight: Sequence[float]
) -> Work:
    """A team writes an answer by strategy `defer`; `sources` says who wrote each token: 0 the base, 1..M an expert.

    Args:
      configs: the base's, then each expert's.
      prompt: tokens before the answer.
      sources: by written token.
      bytes_a_weight: of the base, then of each expert.
    """
    work = alone(configs[0], prompt, len(sources), bytes_a_weight[0])
    for m in range(1, len(configs)):
        known = 0  # tokens that this expert has read
        for i, source in enumerate(sources):
            if source == m:
                work += read(configs[m], known, prompt + i, bytes_a_weight[m])
                known = prompt + i
    return work
