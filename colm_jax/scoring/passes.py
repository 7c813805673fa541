"""The passes of one model over whole texts: packed rows, a shard of texts at a time, results by text.

Every computation over whole texts (scores, hidden states, greedy choices, candidates) runs through `Passes`, so that
all have the same batches. Which texts share a row changes no text's results: attention and positions keep to a text.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import jax
import numpy as np
from jaxtyping import Float, Shaped

from colm_jax.console import Progress
from colm_jax.data.batches import Batch, collate
from colm_jax.data.packing import PackedRows, Packing, Shape, choose_packing
from colm_jax.data.records import Examples
from colm_jax.errors import UserError
from colm_jax.models.decoder import Decoder
from colm_jax.parallel import heed_stop

SHARD_TEXTS = 128  # in a shard: what a kill can cost, and the texts that are packed together
# On a CPU, and on accelerators: the positions of a batch, at most (but for single rows), that use the device well, and
# the length of a row that spends as much time on attention as on all else.
_CPU, _ACCELERATOR = (512, 1024), (4096, 2048)


def rows_at_once(positions: int, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> int:
    """Return the rows of a batch of rows of `positions` positions on accelerators: a power of two for each group."""
    group = mesh.shape["data"] * mesh.shape["fsdp"]
    most = _ACCELERATOR[0] // (positions * group)
    return group * (1 << max(most, 1).bit_length() - 1)


@dataclass(frozen=True)
class PassCounts:
    """What passes over texts read and computed."""

    tokens: int = 0  # of the texts
    positions: int = 0  # that the model computed, padding included

    def __add__(self, other: "PassCounts") -> "PassCounts":
        """Return the sum of both."""
        return PassCounts(self.tokens + other.tokens, self.positions + other.positions)

    def as_json(self) -> dict[str, int]:
        """Return the fields."""
        return {"tokens": self.tokens, "positions": self.positions}


NO_PASSES = PassCounts()


@dataclass(frozen=True)
class Place:
    """Where a text of n tokens is in a batch: its first n - 1 positions, which predict its second and later tokens."""

    number: int  # of the text
    row: int
    start: int
    stop: int

    def of(self, values: Shaped[np.ndarray, "B T ..."]) -> Shaped[np.ndarray, "n ..."]:
        """Return a copy of the text's part of a batch's values, so that the batch is freed."""
        return values[self.row, self.start : self.stop].copy()


@dataclass(frozen=True)
class PackedPass:
    """One batch: its arrays, and where each text is."""

    batch: Batch
    places: tuple[Place, ...]


def shards_of(texts: int) -> list[range]:
    """Return the numbers of the texts of each shard of a data set."""
    return [range(i, min(i + SHARD_TEXTS, texts)) for i in range(0, texts, SHARD_TEXTS)]


def counting(shard: range, texts: int, progress: Progress) -> Callable[[int], None]:
    """Return a callback(texts of the shard that are done) that calls progress(texts done, total)."""
    return lambda done: progress(shard.start + done, texts)


@dataclass(frozen=True)
class Passes:
    """The passes of a model over the texts of a data set; they depend on nothing but lengths, mesh and context."""

    examples: Examples
    packing: Packing
    dtype: str  # of the model's activations

    @classmethod
    def of(cls, decoder: Decoder, examples: Examples) -> "Passes":
        """Plan the passes of a model, for the mesh that holds its weights."""
        spread = decoder.batch_sharding
        group = 1 if spread is None else spread.mesh.shape["data"] * spread.mesh.shape["fsdp"]
        at_once, attention = _CPU if jax.default_backend() == "cpu" else _ACCELERATOR
        packing = choose_packing(
            examples.lengths,
            SHARD_TEXTS,
            group=group,
            at_once=at_once,
            context=decoder.config.context,
            attention=attention,
        )
        return cls(examples, packing, decoder.dtype.name)

    @property
    def shards(self) -> list[range]:
        """The numbers of the texts of each shard."""
        return shards_of(len(self.examples.items))

    @cached_property
    def counts(self) -> PassCounts:
        """What the passes of all shards read and compute, whichever of them a resumed run still has to do."""
        lengths = self.examples.lengths
        sizes = [shape.size for shard in self.shards for shape, _ in self.packing.batches(lengths, shard)]
        return PassCounts(int(lengths.sum(dtype=np.int64)), sum(sizes))

    def counting(self, shard: range, progress: Progress) -> Callable[[int], None]:
        """Return a callback(texts of the shard that are done) that calls progress(texts done, total)."""
        return counting(shard, len(self.examples.items), progress)

    def shard(self, numbers: Sequence[int]) -> Iterator[PackedPass]:
        """Yield the batches of one shard's texts.

        Raises:
          Stopped: SIGTERM has reached one of several processes.
        """
        for shape, rows in self.packing.batches(self.examples.lengths, numbers):
            heed_stop()
            yield self._packed(shape, rows)

    def results(
        self,
        numbers: Sequence[int],
        compute: Callable[[Batch], tuple[Shaped[jax.Array, "B T ..."] | None, ...]],
        done: Callable[[int], None] = lambda count: None,
    ) -> list[tuple[Shaped[np.ndarray, "n ..."], ...]]:
        """Return each text's results of one shard, in order: `compute`'s values at its places, without those of None.

        Args:
          numbers: the texts of the shard.
          compute: from a batch to values at each position, equal in all processes.
          done: called with the number of texts that are done.
        """
        found: dict[int, tuple[np.ndarray, ...]] = {}
        for packed in self.shard(numbers):
            values = [np.asarray(value) for value in compute(packed.batch) if value is not None]
            self.check_not_nan(packed, values[0], lambda batch: np.asarray(compute(batch)[0]))
            found |= {place.number: tuple(place.of(value) for value in values) for place in packed.places}
            done(len(found))
        return [found[number] for number in numbers]

    def check_not_nan(
        self,
        packed: PackedPass,
        values: Shaped[np.ndarray, "B T ..."],
        compute: Callable[[Batch], Float[np.ndarray, "B T ..."]],
    ) -> None:
        """Raise an error that names the text if values of a batch's texts are NaN.

        One text's NaN reaches the others of its row (0 · NaN is NaN), so that each text is computed alone to find out
        whose it is.

        Args:
          packed: the batch.
          values: of its texts.
          compute: gives such values for another batch.

        Raises:
          UserError: the model's activations overflow.
        """

        def affected(packed: PackedPass, values: Shaped[np.ndarray, "B T ..."]) -> list[int]:
            return sorted(place.number for place in packed.places if np.isnan(place.of(values)).any())

        if values.dtype.kind != "f" or not (found := affected(packed, values)):
            return
        rows, width = packed.batch.tokens.shape
        alone = (self._packed(Shape(width - 1, rows), [[number]]) for number in found)
        number = next((one.places[0].number for one in alone if affected(one, compute(one.batch))), found[0])
        raise UserError(
            f"text {number}: the model's log-probabilities are NaN: its activations overflow in {self.dtype}; "
            "use float32, and if it is in use, the weights are damaged"
        )

    def _packed(self, shape: Shape, rows: PackedRows) -> PackedPass:
        batch = collate(self.examples.items, rows, shape.rows, shape.positions + 1)
        places = []
        for b, row in enumerate(rows):
            start = 0
            for number in row:
                length = int(self.examples.lengths[number])
                places.append(Place(number, b, start, start + length - 1))
                start += length
        return PackedPass(batch, tuple(places))
