"""How arrays are described throughout the package.

Shapes in annotations: B batch, T time (new tokens), S cache positions, D model width, H heads, K key and value heads,
F feed-forward width, V vocabulary, M experts, N spans, positions or other items in a line; h head dimension, h2 its
pairs that turn, W = M + 1 writers (the base first), G gate columns (M, or 1 without a gate), I what a gate reads (D, or
D + 3), T1 = T + 1. `*N` is any leading axes. Tests check them at every call.
"""

from collections.abc import Iterable
from dataclasses import fields
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

AnyArray = jax.Array | np.ndarray  # on devices or in host memory


def bits_of(dtype: DTypeLike) -> int:
    """Return the bits that a value takes on a device; `itemsize` says 8 for those of 4."""
    return 4 if dtype == jnp.int4 else 8 * jnp.dtype(dtype).itemsize


Cls = TypeVar("Cls", bound=type)


def pytree(cls: Cls) -> Cls:
    """Register a frozen dataclass as a pytree that JAX rebuilds without calling its constructor.

    JAX also rebuilds with shapes, shardings and stacked arrays as leaves, for which the fields' annotations, checked
    in the constructor, do not hold. Fields of type bool are static.
    """
    names = tuple(field.name for field in fields(cls) if field.type is not bool)
    static = tuple(field.name for field in fields(cls) if field.type is bool)

    def fixed(tree: Any) -> tuple[bool, ...]:
        return tuple(getattr(tree, name) for name in static)

    def flatten(tree: Any) -> tuple[tuple, tuple[bool, ...]]:
        return tuple(getattr(tree, name) for name in names), fixed(tree)

    def flatten_with_keys(tree: Any) -> tuple[tuple, tuple[bool, ...]]:
        return tuple((jax.tree_util.GetAttrKey(name), getattr(tree, name)) for name in names), fixed(tree)

    def unflatten(values: tuple[bool, ...], leaves: Iterable) -> Any:
        tree: Any = object.__new__(cls)
        tree.__dict__.update(zip(names, leaves), **dict(zip(static, values)))
        return tree

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls
