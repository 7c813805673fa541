"""How a decoder's parameters are laid out in a checkpoint: the tensors of a configuration, and their parts.

A stored tensor holds one parameter of a layer (or of one network of a mixture), several parameters side by side (fused
query, key and value), or a parameter of all networks of a mixture (a stack). A `Part` is the share of one parameter in
a stored tensor.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from colm_jax.checkpoints.families import FAMILIES, Stored
from colm_jax.models.config import ModelConfig
from colm_jax.models.decoder import Decoder


@dataclass(frozen=True)
class Part:
    """One parameter, or one layer (and network) of it, in a stored tensor."""

    path: str  # in Decoder
    index: tuple[int, ...]  # in the parameter: of the layer if layers are stacked, then of the network
    shape: tuple[int, ...]  # of what is at that index
    stored: Stored
    slab: int | None = None  # in a stored stack: the number of the network
    rows: range | None = None  # of the stored matrix (of the slab) or vector; None: all
    columns: range | None = None

    def within(self, shape: tuple[int, ...]) -> tuple[slice, ...]:
        """Return the index of the part in the stored matrix or vector of this shape."""
        pieces = (piece or range(size) for piece, size in zip((self.rows, self.columns), shape))
        return tuple(slice(piece.start, piece.stop, piece.step) for piece in pieces)


@dataclass(frozen=True)
class Layout:
    """A stored tensor."""

    shape: tuple[int, ...]
    parts: tuple[Part, ...]


def abstract_decoder(config: ModelConfig, dtype: DTypeLike = jnp.float32, stacked: bool = True) -> Decoder:
    """Return a decoder of abstract arrays."""
    decoder = Decoder(config, None, dtype)
    return decoder if stacked else decoder.unstacked()


def by_path(state: nnx.State) -> dict[str, Any]:
    """Return the variables of a state by their dotted paths."""
    return {".".join(map(str, path)): variable for path, variable in nnx.to_flat_state(state)}


def table_key(path: str) -> str:
    """Return the key of a parameter in a family's table: its path without the number of the layer or of the run."""
    return re.sub(r"^layers\.\d+\.", "layers.", path)


@lru_cache(maxsize=8)
def layout_of(config: ModelConfig, stacked: bool = True) -> dict[str, Layout]:
    """Return every tensor of a checkpoint of this configuration, by name; paths are those of a `stacked` decoder."""
    table, found = FAMILIES[config.family].table, dict[str, list[Part]]()
    for path, variable in by_path(nnx.state(abstract_decoder(config, stacked=stacked))).items():
        stored = table[table_key(path)]
        for name, part in _parts(config, stacked, path, variable.shape, stored):
            found.setdefault(name, []).append(part)
    return {name: _side_by_side(parts) for name, parts in found.items()}


def stored_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a checkpoint of this configuration, by name."""
    return {name: layout.shape for name, layout in layout_of(config).items()}


def _parts(
    config: ModelConfig, stacked: bool, path: str, shape: tuple[int, ...], stored: Stored
) -> Iterator[tuple[str, Part]]:
    """Yield a parameter's parts and the names of their tensors."""
    layers: list[tuple[tuple[int, ...], tuple[int, ...]]] = [((), ())]  # numbers in the name, index in the parameter
    numbered = re.match(r"layers\.(\d+)\.", path)
    if path.startswith("layers.") and stacked:
        start, stop = config.runs[int(numbered[1]) if numbered else 0]
        layers = [((layer,), (layer - start,)) for layer in range(start, stop)]
        shape = shape[1:]
    elif numbered:
        layers = [((int(numbered[1]),), ())]
    for numbers, index in layers:
        if not stored.by_network:
            yield stored.name.format(*numbers), Part(path, index, shape, stored)
            continue
        for network in range(shape[0]):
            part = Part(path, (*index, network), shape[1:], stored, network if stored.stacked else None)
            yield stored.name.format(*numbers, network), part


def _side_by_side(parts: list[Part]) -> Layout:
    """Return the tensor that these parts make up."""
    stored = parts[0].stored
    slabs = [[part for part in parts if part.slab == slab] for slab in dict.fromkeys(part.slab for part in parts)]
    placed = [_sections(slab) for slab in slabs]
    shape = placed[0].shape if not stored.stacked else (len(slabs), *placed[0].shape)
    return Layout(shape, tuple(part for layout in placed for part in layout.parts))


def _sections(parts: list[Part]) -> Layout:
    """Return the stored matrix or vector in which these parts lie side by side."""
    stored = parts[0].stored
    if not stored.sections:
        (part,) = parts
        return Layout(stored.shape(part.shape), (part,))
    order = {key: number for number, key in enumerate(stored.sections)}
    parts = sorted(parts, key=lambda part: order[table_key(part.path).removeprefix("layers.")])
    shapes = [part.stored.shape(part.shape) for part in parts]
    axis = len(shapes[0]) - 1 if stored.layout == "same" else 0
    ends = np.cumsum([0, *(shape[axis] for shape in shapes)]).tolist()
    whole = (*shapes[0][:axis], ends[-1], *shapes[0][axis + 1 :])
    pieces = [range(start, stop) for start, stop in pairwise(ends)]
    if stored.interleaved:
        pieces = [range(first, ends[-1], len(parts)) for first in range(len(parts))]
    if axis == 1:
        return Layout(whole, tuple(replace(part, columns=piece) for part, piece in zip(parts, pieces)))
    return Layout(whole, tuple(replace(part, rows=piece) for part, piece in zip(parts, pieces)))
