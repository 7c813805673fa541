"""Apply the networks of a mixture (its experts) to the tokens that are routed to them, on one device or on a mesh.

A token that is routed to A networks becomes A rows. The rows are sorted by network and multiplied in groups
(`grouped`). On a mesh each device works on its part of the kernels under `shard_map`, since the compiler partitions
neither a TPU kernel nor the slice of one network from a sharded stack well. The mesh is the one that holds the kernels.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, Shaped

from colm_jax.models.activation import gated
from colm_jax.models.config import ModelConfig
from colm_jax.models.grouped import grouped
from colm_jax.parallel import RULES, mesh_of, splits_of

# Logical axes of what a mixture's networks consist of; biases are there only in some families.
AXES = {
    "gate": ("networks", "embed", "ff"),
    "up": ("networks", "embed", "ff"),
    "down": ("networks", "ff", "embed"),
    "gate_bias": ("networks", "ff"),
    "up_bias": ("networks", "ff"),
    "down_bias": ("networks", "embed"),
}


@dataclass(frozen=True)
class Part:
    """Which part of the networks a device has, by mesh axes that split them."""

    networks: tuple[str, ...] = ()
    ff: tuple[str, ...] = ()
    embed: tuple[str, ...] = ()  # of kernels and tokens alike


def apply_networks(
    config: ModelConfig,
    x: Float[Array, "B T D"],
    chosen: Int[Array, "B T A"],
    weights: Float[Array, "B T A"],
    kernels: dict[str, Any],
) -> Float[Array, "B T D"]:
    """Return the weighted sum of what each token's chosen networks return.

    Args:
      config: with a mixture.
      x: tokens.
      chosen: numbers of the networks.
      weights: float32; of what networks return or, with `Mixture.on_input`, of what they read.
      kernels: by the names of AXES; plain or quantised.
    """
    mesh = mesh_of(kernels["gate"])
    if mesh is None or mesh.size == 1:
        return _on_device(x, chosen, weights, kernels, config=config, part=Part())
    shapes = {name: _whole_shape(value) for name, value in kernels.items()}
    networks, embed, ff = splits_of(mesh, AXES["gate"], shapes["gate"])
    rows, embed = _split_tokens(config, mesh, x.shape, networks, embed)
    part = Part(networks, ff, embed)
    placed, specs = {}, {}
    for name, value in kernels.items():
        splits = [getattr(part, axis) for axis in AXES[name]]
        placed[name] = jax.tree.map(partial(_divisible, mesh, splits, shapes[name]), value)
        specs[name] = jax.tree.map(partial(_spec, splits), placed[name])
    work = partial(_on_device, config=config, part=part)
    tokens = P(rows, None, embed or None)
    return jax.shard_map(
        work, mesh=mesh, in_specs=(tokens, P(rows), P(rows), specs), out_specs=tokens, check_vma=False
    )(x, chosen, weights, placed)


def _split_tokens(
    config: ModelConfig,
    mesh: Mesh | AbstractMesh,
    shape: tuple[int, ...],
    networks: tuple[str, ...],
    embed: tuple[str, ...],
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the mesh axes over which texts are split, and those over which kernels and tokens stay split by D.

    Kernels that are split by D are either gathered (cheaper for many tokens), or they stay where they are and the
    products are summed over the devices (cheaper for few tokens). The form that moves fewer bytes is chosen.
    """
    assert config.mixture is not None
    texts, length, width = shape
    whole = RULES["batch"]
    if all(mesh.shape[axis] == 1 for axis in whole) or texts % math.prod(mesh.shape[axis] for axis in whole) == 0:
        ff, here = config.mixture.ff or config.ff, math.prod(mesh.shape[axis] for axis in networks)
        gathered = 3 * config.mixture.networks // here * width * ff
        if not embed or 4 * texts * length * config.mixture.active * ff > gathered:
            return whole, ()
    rest = tuple(axis for axis in whole if axis not in embed)
    return (rest if texts % math.prod(mesh.shape[axis] for axis in rest) == 0 else ()), embed


def _whole_shape(kernel: Any) -> tuple[int, ...]:
    """Return the shape of a kernel; of a quantised one, that of its values, its largest part."""
    return max((leaf.shape for leaf in jax.tree.leaves(kernel)), key=math.prod)


def _divisible(
    mesh: Mesh | AbstractMesh, splits: list[tuple[str, ...]], shape: tuple[int, ...], leaf: Any
) -> Shaped[Array, "..."]:
    """Repeat a quantised kernel's scales where they do not divide as its values do."""
    for axis, (split, size) in enumerate(zip(splits, shape)):
        have, parts = leaf.shape[axis], math.prod(mesh.shape[name] for name in split)
        if 1 < have < size and have % parts:
            leaf = jnp.repeat(leaf, math.lcm(have, parts) // have, axis=axis)
    return leaf


def _spec(splits: list[tuple[str, ...]], leaf: Any) -> P:
    """Return how a leaf is split: like the whole kernel, except along axes of size 1."""
    return P(*(split if split and size > 1 else None for split, size in zip(splits, leaf.shape)))


def _on_device(
    x: Float[Array, "B T D"],
    chosen: Int[Array, "B T A"],
    weights: Float[Array, "B T A"],
    kernels: dict[str, Any],
    *,
    config: ModelConfig,
    part: Part,
) -> Float[Array, "B T D"]:
    """Apply a device's part of the networks to its tokens; sum over the devices that have the other parts."""
    mixture = config.mixture
    assert mixture is not None
    count, active = _whole_shape(kernels["gate"])[0], mixture.active
    first = jax.lax.axis_index(part.networks) * count if part.networks else jnp.int32(0)
    picks, share = chosen.reshape(-1), weights.reshape(-1, 1)
    order = jnp.argsort(picks).astype(jnp.int32)  # stable
    back = jnp.zeros_like(order).at[order].set(jnp.arange(len(order), dtype=jnp.int32), unique_indices=True)
    sizes = jnp.sum(picks[:, None] == jnp.arange(mixture.networks), axis=0, dtype=jnp.int32)
    network = picks[order] - first
    own = ((network >= 0) & (network < count))[:, None]

    def mapped(rows: Float[Array, "R _"], name: str, summed: tuple[str, ...]) -> Float[Array, "R _"]:
        out = grouped(rows, kernels[name], sizes, first)
        out = jax.lax.psum(out, summed) if summed else out
        bias = kernels.get(f"{name}_bias")
        if bias is None:
            return out
        if name == "down" and part.ff:  # the parts are summed: one of them adds the bias
            bias = jnp.where(jax.lax.axis_index(part.ff) == 0, bias, jnp.zeros_like(bias))
        return out + jnp.where(own, bias[jnp.clip(network, 0, count - 1)], jnp.zeros((), bias.dtype))

    rows = _permuted(x.reshape(-1, x.shape[-1]), order, back, active)
    if mixture.on_input:
        rows *= _permuted(share, order, back, 1).astype(x.dtype)
    hidden = gated(config, mapped(rows, "gate", part.embed), mapped(rows, "up", part.embed))
    out = _permuted(mapped(hidden, "down", ()), back, order, 1).astype(jnp.float32)
    if not mixture.on_input:
        out *= share
    out = jnp.sum(out.reshape(-1, active, out.shape[-1]), axis=1)
    summed = part.networks + part.ff
    return (jax.lax.psum(out, summed) if summed else out).astype(x.dtype).reshape(x.shape)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _permuted(
    x: Float[Array, "N D"], order: Int[Array, "R"], back: Int[Array, "R"], copies: int
) -> Float[Array, "R D"]:
    """Return `copies` of each row, one after another, in this order, of which `back` is the inverse.

    Its gradient is a permutation too. The gradient of plain indexing would be a scatter-add, which is slow on TPU.
    """
    return x[order // copies]


def _permuted_forward(x: Any, order: Any, back: Any, copies: int) -> tuple[Any, Any]:
    return _permuted(x, order, back, copies), back


def _permuted_backward(copies: int, back: Any, slope: Any) -> tuple[Any, None, None]:
    rows = slope[back].astype(jnp.float32).reshape(-1, copies, slope.shape[-1])
    return jnp.sum(rows, axis=1).astype(slope.dtype), None, None


_permuted.defvjp(_permuted_forward, _permuted_backward)
