"""The head on a mesh that splits its kernel: each device scores a part of the vocabulary for all texts of its group.

The compiler would gather the whole kernel on every device and sum its gradient over the devices. Under `shard_map` the
kernel, stored in parts of its width (mesh axis fsdp), is exchanged for parts of the vocabulary by an all-to-all, which
moves no more than a device's own part. Of a chunk of positions the hidden states of the group's texts are gathered;
their logits over the vocabulary stay split, and what is reduced over the devices is a few numbers a position: maximum,
sum of exponentials, the own token's logit. A part's gradient is complete where it is computed, and returns by an
all-to-all; the hidden states' gradient is reduce-scattered.

A part of the vocabulary is padded where the axis does not divide it, so that any vocabulary can be split over fsdp.
Over tensor it is split as the kernel is stored, which is not at all where tensor does not divide it: the devices of a
tensor group then repeat the same work.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int, Shaped

from colm_jax.models.arrays import AnyArray
from colm_jax.models.decoder import Decoder
from colm_jax.models.uncertainty import as_uncertainty
from colm_jax.parallel import RULES, mesh_of, splits_of
from colm_jax.scoring.chunks import chunk_size, over_chunks
from colm_jax.text.spans import Opening

_PADDING = np.iinfo(np.int32).max
_TINY = 1e-37  # about the smallest float32 of full precision


@dataclass(frozen=True)
class Split:
    """How a head's kernel [D, V] is stored on a mesh."""

    mesh: Mesh | AbstractMesh
    width: tuple[str, ...]  # mesh axes that split D
    vocab: tuple[str, ...]  # mesh axes that split V

    @property
    def axes(self) -> tuple[str, ...]:
        """The mesh axes that split the vocabulary while the head is applied."""
        return self.vocab + self.width

    @property
    def parts(self) -> int:
        """Into how many parts D is split."""
        return math.prod(self.mesh.shape[axis] for axis in self.width)


@dataclass(frozen=True)
class Ids:
    """Which ids the logits of a device are of."""

    numbers: Int[Array, "v"]  # ascending; _PADDING where it is none
    axes: tuple[str, ...]  # mesh axes over which the others are


# Of logits [R,t,v], which ids they are of, and arrays [R,t]: arrays [R,t,...], equal on the devices that share the ids.
Measure = Callable[..., tuple[Shaped[Array, "R t ..."], ...]]


def split_of(decoder: Decoder, texts: int) -> Split | None:
    """Return how the head is split; None where it is not, or where the mesh does not split so many texts evenly."""
    config = decoder.config
    mesh = mesh_of(decoder.embedding.get_value())
    if mesh is None:
        return None
    width, vocab = splits_of(mesh, ("embed", "vocab"), (config.width, config.vocab_size))
    even = texts % math.prod(mesh.shape[axis] for axis in RULES["batch"]) == 0
    return Split(mesh, width, vocab) if even and (width or vocab) else None


def sharded_argmax(logits: Float[Array, "R t v"], ids: Ids) -> Int[Array, "R t"]:
    """Return the most probable id; of several, the smallest, as `jnp.argmax`."""
    logits = jax.lax.stop_gradient(logits)
    best = jnp.max(logits, axis=-1)
    found = ids.numbers[jnp.argmax(logits, axis=-1)]
    elsewhere = best < jax.lax.pmax(best, ids.axes)  # false where a logit is NaN
    return jax.lax.pmin(jnp.where(elsewhere, _PADDING, found), ids.axes)


def sharded_scores(
    logits: Float[Array, "R t v"], ids: Ids, tokens: Int[Array, "R t"]
) -> tuple[Float[Array, "R t"], Bool[Array, "R t"]]:
    """Return log p(token) and "token is the argmax" at each position, float32."""
    top = _top(logits, ids)
    own = ids.numbers == tokens[..., None]
    sums = jnp.sum(jnp.exp(logits - top[..., None]), axis=-1), jnp.sum(jnp.where(own, logits, 0.0), axis=-1)
    total, chosen = jax.lax.psum(sums, ids.axes)
    return chosen - (jnp.log(total) + top), sharded_argmax(logits, ids) == tokens


def sharded_unit_scores(
    logits: Float[Array, "R t v"], ids: Ids, tokens: Int[Array, "R t"], before: Int[Array, "R t"], opening: Opening
) -> tuple[Float[Array, "R t"], Bool[Array, "R t"], Float[Array, "R t"]]:
    """Return `sharded_scores`, and the log of the opening mass; see `head.unit_token_scores`."""
    top, numbers = _top(logits, ids), jnp.minimum(ids.numbers, opening.first.shape[0] - 1)
    opens = opening.table[opening.after[before]][..., opening.first[numbers]]
    others = jnp.where(opens, -jnp.inf, logits), jnp.where(opens, logits, -jnp.inf)
    sums = tuple(jnp.sum(jnp.exp(part - top[..., None]), axis=-1) for part in others)
    other, opened = jax.lax.psum(sums, ids.axes)
    return *sharded_scores(logits, ids, tokens), log_share(opened, other)


def sharded_uncertainty(logits: Float[Array, "R t v"], ids: Ids) -> Float[Array, "R t 3"]:
    """Return `models.uncertainty.uncertainty` of the whole distributions, through which no gradient passes."""
    logits = jax.lax.stop_gradient(logits)
    top = _top(logits, ids)
    total = jax.lax.psum(jnp.sum(jnp.exp(logits - top[..., None]), axis=-1), ids.axes)
    log_probs = logits - (jnp.log(total) + top)[..., None]
    finite = jnp.isfinite(log_probs)
    terms = jnp.where(finite, jnp.exp(log_probs) * jnp.where(finite, log_probs, 0), 0)
    entropy = -jax.lax.psum(jnp.sum(terms, axis=-1), ids.axes)
    best = sharded_argmax(logits, ids)
    others = jnp.where(ids.numbers == best[..., None], -jnp.inf, log_probs)
    first, second = (jax.lax.pmax(jnp.max(values, axis=-1), ids.axes) for values in (log_probs, others))
    return as_uncertainty(entropy, first, second)


def log_share(opened: Float[Array, "*N"], other: Float[Array, "*N"]) -> Float[Array, "*N"]:
    """Return log(opened / (opened + other)) of sums of exponentials; finite (about −85) also where `opened` is 0."""
    opened, other = jnp.maximum(opened, _TINY), jnp.maximum(other, _TINY)
    return jax.nn.log_sigmoid(jnp.log(opened) - jnp.log(other))


def _top(logits: Float[Array, "R t v"], ids: Ids) -> Float[Array, "R t"]:
    """Return the largest logit, or 0 where there is none."""
    top = jax.lax.pmax(jnp.max(jax.lax.stop_gradient(logits), axis=-1), ids.axes)
    return jnp.where(jnp.isfinite(top), top, 0.0)


def apply_sharded(
    measure: Measure,
    decoder: Decoder,
    split: Split,
    hidden: Float[Array, "B T D"],
    arrays: tuple[Int[AnyArray, "B T"], ...],
    allowed: Bool[AnyArray, "A"] | None,
    logit_bytes: int,
    everywhere: tuple[Any, ...] = (),
) -> tuple[Shaped[Array, "B T ..."], ...]:
    """Return what `measure` makes of the logits at each position, a chunk of positions at a time.

    Args:
      measure: of a device's logits over its ids, -inf where an id is not allowed, the arrays, and what is everywhere.
      decoder: whose head is applied.
      split: how its kernel is stored.
      hidden: split by texts over the mesh, or to be.
      arrays: of each position, at least its own next token.
      allowed: the shared vocabulary of A ids; None: all of the head's columns.
      logit_bytes: of a chunk's float32 logits on a device, at most (but for a single position).
      everywhere: pytrees of arrays that every device has whole.
    """

    def on_device(
        kernel: Float[Array, "d w"],
        hidden: Float[Array, "b T D"],
        arrays: tuple[Int[AnyArray, "b T"], ...],
        allowed: Bool[AnyArray, "A"] | None,
        everywhere: tuple[Any, ...],
    ) -> tuple[Shaped[Array, "b T ..."], ...]:
        texts, stored = hidden.shape[0], kernel.shape[1]
        count = -(-stored // split.parts)
        part = jax.lax.axis_index(split.width) if split.width else 0
        numbers = part * count + jnp.arange(count, dtype=jnp.int32)
        within = numbers < stored
        start = jax.lax.axis_index(split.vocab) * stored if split.vocab else 0
        numbers = jnp.where(within, start + numbers, _PADDING)
        if allowed is not None:
            known = numbers < allowed.shape[0]
            within = known & allowed[jnp.where(known, numbers, 0)]
        if split.width:
            kernel = jnp.pad(kernel, ((0, 0), (0, count * split.parts - stored)))
            kernel = jax.lax.all_to_all(kernel, split.width, 1, 0, tiled=True)
            arrays = tuple(jax.lax.all_gather(each, split.width, axis=0, tiled=True) for each in arrays)

        def measured(
            hidden: Float[Array, "b t D"], *arrays: Int[AnyArray, "R t"]
        ) -> tuple[Shaped[Array, "b t ..."], ...]:
            if split.width:
                hidden = jax.lax.all_gather(hidden, split.width, axis=0, tiled=True)
            logits = decoder.logits_by(kernel, hidden)
            if allowed is not None or stored % split.parts:
                logits = jnp.where(within, logits, -jnp.inf)
            found = measure(logits, Ids(numbers, split.axes), *arrays, *everywhere)
            return tuple(jax.lax.dynamic_slice_in_dim(x, part * texts, texts) for x in found)

        return over_chunks(measured, (hidden, *arrays), chunk_size(arrays[0].shape[0], count, logit_bytes))

    by_texts = P(RULES["batch"])
    stored = P(split.width or None, split.vocab or None)
    specs = stored, by_texts, by_texts, P(), P()
    return jax.shard_map(on_device, mesh=split.mesh, in_specs=specs, out_specs=by_texts)(
        decoder.head_kernel, hidden, arrays, allowed, everywhere
    )
