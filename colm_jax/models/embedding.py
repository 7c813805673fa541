"""Look tokens up in the embedding table, on one device or on a mesh that splits the table's width.

With fully sharded parameters (mesh axis fsdp) the compiler would gather the whole table, and sum its gradient over the
devices, to look up the few tokens of a batch. Under `shard_map` the looked-up vectors move instead: each device looks
up its part of the width for all texts of its fsdp group, and an all-to-all exchanges widths for texts. The gradient
takes the same way back; no device holds more of it than of the table.
"""

import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from colm_jax.models.arrays import AnyArray
from colm_jax.parallel import RULES, mesh_of, splits_of


def embed(table: Float[Array, "V D"], tokens: Int[AnyArray, "B T"], by_texts: bool) -> Float[Array, "B T D"]:
    """Return the table's row of each token.

    Args:
      table: the embedding table, also split over a mesh.
      tokens: ids below V.
      by_texts: the tokens are split by texts over the mesh (`RULES["batch"]`), as in training and scoring, and the
        rows are to be.
    """
    mesh = mesh_of(table)
    if mesh is None or not by_texts:
        return jnp.take(table, tokens, axis=0)
    vocab, width = splits_of(mesh, ("vocab", "embed"), table.shape)
    if not width or tokens.shape[0] % math.prod(mesh.shape[axis] for axis in RULES["batch"]):
        return jnp.take(table, tokens, axis=0)

    def on_device(part: Float[Array, "v d"], tokens: Int[AnyArray, "b T"]) -> Float[Array, "b T D"]:
        tokens = jax.lax.all_gather(tokens, width, axis=0, tiled=True)
        if not vocab:
            return jax.lax.all_to_all(jnp.take(part, tokens, axis=0), width, 0, 2, tiled=True)
        place = tokens - jax.lax.axis_index(vocab) * part.shape[0]
        here = (place >= 0) & (place < part.shape[0])
        rows = jnp.take(part, jnp.where(here, place, 0), axis=0)
        rows = jnp.where(here[..., None], rows, jnp.zeros((), rows.dtype))
        return jax.lax.psum(jax.lax.all_to_all(rows, width, 0, 2, tiled=True), vocab)

    texts = P(RULES["batch"])
    return jax.shard_map(on_device, mesh=mesh, in_specs=(P(vocab or None, width), texts), out_specs=texts)(
        table, tokens
    )
