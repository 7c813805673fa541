"""What each model would write at every position of one text: log-probabilities of its tokens, and the likeliest ones.

A text is read in chunks of one size with a cache of one size, so that a single program serves all texts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Int

from colm_jax.decoding.engine import Engine
from colm_jax.decoding.state import Graphs, Models
from colm_jax.models.cache import KVCache
from colm_jax.parallel import to_host

_CHUNK = 128  # tokens of a pass
_BLOCK = 16  # positions whose scores over the vocabulary are held at once
TOP = 20  # candidates of each column, at most


@dataclass(frozen=True)
class Candidates:
    """Of a text of T tokens; entry t is about the token after the first t + 1 ones. Log-probabilities are in nats.

    Columns are base, experts, and the team: the mixture of all by the gate (the paper's marginal, section 2.2), or
    the base where there is no gate.
    """

    log_probs: np.ndarray  # [T, M+2] float32: of the text's own next token; the last entry has none and is 0
    top_ids: np.ndarray  # [T, M+2, K] int32: the most probable tokens, the first one first
    top_log_probs: np.ndarray  # [T, M+2, K] float32
    gate_logits: np.ndarray  # [T, M] float32; zeros without a gate
    team_log_probs: np.ndarray  # [T, M+1] float32: under the team, of each model's first choice, base first


class CandidateReader:
    """Reads texts under the models that are part of the decoding loop."""

    def __init__(self, engine: Engine):
        """Makes the caches; `engine` has the models."""
        self._graphs, self._models = engine.graphs, engine.models
        self._context, self._top = engine.context, min(TOP, int(engine.models.allowed.shape[0]))
        self._caches = engine.empty_caches(1, engine.context + _CHUNK)

    def read(self, tokens: Sequence[int]) -> Candidates:
        """Return the candidates of a text of at least one token, and at most the context."""
        *_, found = self.parts(tokens)
        assert found is not None
        return found

    def parts(self, tokens: Sequence[int]) -> Iterator[Candidates | None]:
        """Read a text as `read`, a chunk at each step; the last step yields the candidates. One text at a time."""
        assert 0 < len(tokens) <= self._context
        caches = tuple(KVCache(c.keys, c.values, jnp.zeros_like(c.lengths)) for c in self._caches)
        found = []
        for first in range(0, len(tokens), _CHUNK):
            own = np.zeros(_CHUNK + 1, np.int32)
            part = tokens[first : first + _CHUNK + 1]
            own[: len(part)] = part
            count = min(len(tokens) - first, _CHUNK)
            chunk = jnp.asarray(own[:-1]), jnp.asarray(own[1:]), jnp.asarray(np.array([count], np.int32))
            caches, columns = _read(self._graphs, self._models, caches, *chunk, top=self._top)
            self._caches = caches
            found.append([column[:count] for column in to_host(columns)])
            if first + _CHUNK < len(tokens):
                yield None
        log_probs, *rest = (np.concatenate(column) for column in zip(*found, strict=True))
        log_probs[-1] = 0
        yield Candidates(log_probs, *rest)


@partial(jax.jit, static_argnames=("graphs", "top"), donate_argnames="caches")
def _read(
    graphs: Graphs,
    models: Models,
    caches: tuple[KVCache, ...],
    tokens: Int[Array, "C"],
    following: Int[Array, "C"],
    count: Int[Array, "1"],
    top: int,
) -> tuple[tuple[KVCache, ...], tuple[Array, ...]]:
    """Read a chunk of a text; return the caches, and what `Candidates` has of each of its tokens."""
    decoders = [nnx.merge(graphs.base, models.base)]
    decoders += [nnx.merge(graph, weights) for graph, weights in zip(graphs.experts, models.experts)]
    hidden, written = [], []
    for decoder, cache in zip(decoders, caches):
        states, rows = decoder(tokens[None], cache)
        hidden.append(states[0])
        written.append(cache.write(rows, count))
    experts, size = len(decoders) - 1, tokens.shape[0]

    def split(x: Array) -> Array:
        return x.reshape(size // _BLOCK, _BLOCK, *x.shape[1:])

    gate_logits = jnp.zeros((size, experts), jnp.float32)
    if graphs.gate is not None and models.gate is not None and experts:
        gate = nnx.merge(graphs.gate, models.gate)
        if gate.reads_logits:  # a block at a time, too
            read = jax.lax.map(lambda h: gate(h, decoders[0].logits(h, models.allowed)), split(hidden[0]))
            gate_logits = read.reshape(gate_logits.shape)
        else:
            gate_logits = gate(hidden[0])

    def block(parts):
        states, gate, following = parts
        scores = [jax.nn.log_softmax(d.logits(h, models.allowed), axis=-1) for d, h in zip(decoders, states)]
        log_probs = jnp.stack(scores, axis=1)  # [B, M+1, V]
        writers = jnp.concatenate([jnp.zeros((gate.shape[0], 1), jnp.float32), gate], axis=1)
        weights = jax.nn.log_softmax(writers, axis=1)
        if graphs.gate is None:
            weights = jnp.where(jnp.arange(experts + 1) == 0, 0.0, -jnp.inf)[None]
        team = jax.nn.logsumexp(log_probs + weights[..., None], axis=1)
        columns = jnp.concatenate([log_probs, team[:, None]], axis=1)
        own = jnp.take_along_axis(columns, jnp.minimum(following, columns.shape[2] - 1)[:, None, None], axis=2)[..., 0]
        values, ids = jax.lax.top_k(columns, top)
        chosen = jnp.take_along_axis(team, ids[:, :-1, 0], axis=1)
        return own, ids.astype(jnp.int32), values, chosen

    own, ids, values, chosen = jax.lax.map(block, (tuple(map(split, hidden)), split(gate_logits), split(following)))
    whole = [x.reshape(size, *x.shape[2:]) for x in (own, ids, values, chosen)]
    return tuple(written), (*whole[:3], gate_logits, whole[3])
