"""Guests: experts whose weights are here, and whose tokenizer, KV cache and view of the prompt are their own.

A guest reads each finished unit by its own canonical tokens. What it wrote itself is in its cache already, and stays
there as far as it is canonical.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Bool

from colm_jax.console import Progress
from colm_jax.data.records import Example
from colm_jax.data.units import TextView, Unit, Units
from colm_jax.experts.opening import OpeningTable
from colm_jax.experts.protocol import Call, Written
from colm_jax.experts.writing import CHUNK, Waiting, moved, prefill, write
from colm_jax.models.cache import KVCache
from colm_jax.models.decoder import Decoder
from colm_jax.models.prefill import PREFILL_SHAPES, ROOM, fixed_shapes, power_of_two, prefill_group
from colm_jax.models.sampling import SamplingParams
from colm_jax.parallel import beside, to_host
from colm_jax.scoring import ScoredUnits, score_units
from colm_jax.seeds import keys_of_numbers
from colm_jax.settings.generation import GenerationSettings
from colm_jax.text.spans import Opening

LONGEST = 32  # tokens of a guest's unit
_BEFORE = 64  # units whose text precedes a unit that is encoded: more than any tokenizer looks back


@dataclass
class _Sequence:
    """What a guest knows of one sequence."""

    slot: int
    tokens: list[int]  # by which it reads the sequence: the prompt and the units
    known: int = 0  # how many units of the answer these are
    units: list[Unit] = field(default_factory=list)  # the same; those that its tokenizer joins are one
    starts: list[int] = field(default_factory=list)  # number of the first token of each
    held: list[int] = field(default_factory=list)  # tokens in the cache

    @property
    def before(self) -> str:
        """The end of the answer's text."""
        return "".join(unit.text for unit in self.units[-_BEFORE:])

    def read(self, unit: Unit, units: Units, number: int) -> None:
        """Append the next unit of the answer, by the canonical tokens of expert `number`."""
        self.known += 1
        while (tokens := units.read(number, unit, self.before)) is None:  # the boundary in front of it has moved
            last = self.units.pop()
            unit = Unit(last.text + unit.text, last.tokens + unit.tokens)
            del self.tokens[self.starts.pop() :]
        self.starts.append(len(self.tokens))
        self.units.append(unit)
        self.tokens += tokens


class GuestExpert:
    """An expert of the protocol `experts.protocol.Expert` whose weights are here."""

    kind = "guest"

    def __init__(self, name: str, decoder: Decoder, number: int, units: Units):
        """Split the model.

        Args:
          name: of the model.
          decoder: the model.
          number: of the expert in the team, 1..M.
          units: of the team.
        """
        self.name, self.decoder, self.number, self.passes = name, decoder, number, 0
        self._units, self._context = units, decoder.config.context
        self.opening: Opening = units.opening(number)
        allowed: Bool[np.ndarray, "V"] = units.allowed(number)
        self._allowed, self._table = jnp.asarray(allowed), OpeningTable.of(self.opening, allowed)
        self._closable = to_host(self._table.closable)
        # Where every token opens a unit, a unit is one token, and no pass is needed to see its end.
        self._longest = 1 if self.opening.table.all() else LONGEST
        self._graph, self._weights = nnx.split(decoder.unstacked())
        self._sequences: dict[int, _Sequence] = {}
        self._finished: list[Written] = []
        self._cache: KVCache | None = None
        self._slots, self._positions, self._expected = 0, 64, 1
        self._fixed = False  # sizes do not depend on the sequences

    @property
    def bytes(self) -> int:
        """Size of the weights that a pass reads."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self._weights))

    def expect(self, sequences: int, positions: int | None = None) -> None:
        """Let the cache have that many slots, so that few programs are compiled; and that many positions, if given."""
        self._expected = max(self._expected, sequences)
        if positions is not None:
            self._fixed, self._context = True, min(self._context, positions)

    def compile_prefill(self) -> None:
        """Compile every prefill pass; once `expect` has said that sizes are fixed, and without sequences."""
        self._grow(self._expected, self._context)
        for shape in fixed_shapes(self._slots, self._positions):
            rows, tokens = np.zeros(shape.rows, int), np.zeros((shape.rows, shape.tokens), np.int32)
            # Staging an array of NumPy's is a program, too.
            known = self._cached(), *map(jnp.asarray, (rows, tokens, np.zeros(shape.rows, np.int32)))
            self._cache = prefill(self._graph, self._weights, *known, False)

    def check(self, prompt: Any, settings: GenerationSettings, where: str) -> None:
        """Accept every request: its prompt was encoded with the guest's tokenizer."""

    def start(self, calls: Sequence[Call]) -> None:
        """Write a unit for each call, all in one loop; `finished` returns them."""
        found = []
        for call in calls:
            sequence = self._read_up_to(call)
            room = self._context - len(sequence.tokens)
            if room < 1:
                why = f"{self.name}: its context of {self._context} tokens is full"
                self._finished.append(Written(call.sequence, None, why, asked=False))
            else:
                found.append((call, sequence, min(room, self._longest)))
        if not found:
            return
        ends = [len(sequence.tokens) + max(LONGEST, call.most) for call, sequence, _ in found]
        slots = max(self._expected, *(1 + sequence.slot for sequence in self._sequences.values()))
        self._grow(slots, self._context if self._fixed else min(max(ends), self._context))
        self._prefill([sequence for _, sequence, _ in found])
        self._write(found)

    def finished(self, wait: bool) -> list[Written]:
        """Return the units that were written since the last call; there is nothing to wait for."""
        found, self._finished = self._finished, []
        return found

    def release(self, sequence: int) -> None:
        """Forget a sequence that has ended. Without sequences, the cache is freed."""
        self._sequences.pop(sequence, None)
        self._finished = [written for written in self._finished if written.sequence != sequence]
        if not self._sequences:
            self._cache, self._slots, self._positions = None, 0, 64

    def _read_up_to(self, call: Call) -> _Sequence:
        """Return a call's sequence with the tokens of all units; what of the cache differs from them is given up."""
        if call.sequence not in self._sequences:
            used = {sequence.slot for sequence in self._sequences.values()}
            slot = next(slot for slot in range(len(used) + 1) if slot not in used)
            self._sequences[call.sequence] = _Sequence(slot, list(call.prompt))
        sequence = self._sequences[call.sequence]
        same = len(sequence.tokens)
        for unit in call.answer[sequence.known :]:
            sequence.read(unit, self._units, self.number)
            same = min(same, sequence.starts[-1])
        last = len(sequence.tokens) - 1  # is read again where it is in the cache: what follows it is to be known
        while same < min(last, len(sequence.held)) and sequence.held[same] == sequence.tokens[same]:
            same += 1
        del sequence.held[min(same, last) :]
        return sequence

    def _grow(self, slots: int, positions: int) -> None:
        """Make the cache at least so large."""
        shape = max(self._slots, power_of_two(slots)), max(self._positions, power_of_two(positions))
        if self._cache is not None and shape == (self._slots, self._positions):
            return
        spread = self.decoder.batch_sharding
        mesh = None if spread is None or spread.mesh.size == 1 else spread.mesh
        empty = KVCache.empty(self.decoder.config, shape[0], shape[1] + ROOM, self.decoder.dtype, mesh)
        cache = beside(empty, self._weights)
        self._cache = cache if self._cache is None else moved(self._cache, cache)
        self._slots, self._positions = shape

    def _lengths(self) -> np.ndarray:
        """Return the number of tokens in the cache of each slot, [B]."""
        lengths = np.zeros(self._slots, np.int32)
        for sequence in self._sequences.values():
            lengths[sequence.slot] = len(sequence.held)
        return lengths

    def _cached(self) -> KVCache:
        """Return the cache, as long as the sequences' `held` say."""
        assert self._cache is not None
        return KVCache(self._cache.keys, self._cache.values, jnp.asarray(self._lengths()))

    def _prefill(self, sequences: Sequence[_Sequence]) -> None:
        """Read all but the last CHUNK tokens of these sequences, in few passes."""
        of = {sequence.slot: sequence for sequence in sequences}
        ends = np.zeros(self._slots, np.int32)
        ends[list(of)] = [len(sequence.tokens) - CHUNK for sequence in of.values()]
        done = self._lengths()
        while left := [slot for slot in of if done[slot] < ends[slot]]:
            shapes = fixed_shapes(self._slots, self._positions) if self._fixed else PREFILL_SHAPES
            group, shape = prefill_group(left, done, ends, self._positions + ROOM, shapes)
            size, count = shape.tokens, shape.rows if self._fixed else power_of_two(len(group))
            fresh = not self._fixed and not done[group].any()
            rows = np.array(group + group[-1:] * (count - len(group)))
            tokens, counts = np.zeros((len(rows), size), np.int32), np.zeros(len(rows), np.int32)
            for row, slot in enumerate(rows):
                new = of[slot].tokens[done[slot] : min(done[slot] + size, ends[slot])]
                tokens[row, : len(new)], counts[row] = new, len(new)
            known = self._cached(), jnp.asarray(rows), jnp.asarray(tokens), jnp.asarray(counts)
            self._cache = prefill(self._graph, self._weights, *known, fresh)
            for slot, count in zip(group, counts.tolist()):
                of[slot].held += of[slot].tokens[done[slot] : done[slot] + count]
            done = self._lengths()
            self.passes += 1

    def _write(self, calls: Sequence[tuple[Call, _Sequence, int]]) -> None:
        """Write a unit for each call; with each, its sequence and the most tokens to write."""
        batch = self._slots
        unread, counts = np.zeros((batch, CHUNK), np.int32), np.zeros(batch, np.int32)
        seam, room = np.zeros(batch, bool), np.ones(batch, np.int32)
        temperature, log_min_p = np.zeros(batch, np.float32), np.zeros(batch, np.float32)
        top_k, top_p = np.zeros(batch, np.int32), np.ones(batch, np.float32)
        seeds = [0] * batch
        for call, sequence, most in calls:
            slot, new = sequence.slot, sequence.tokens[len(sequence.held) :]
            unread[slot, : len(new)], counts[slot] = new, len(new)
            seam[slot], room[slot] = len(sequence.tokens) == len(call.prompt), most
            seeds[slot] = call.seed
            temperature[slot], top_k[slot], top_p[slot] = call.temperature, call.top_k, call.top_p
            log_min_p[slot] = math.log(call.min_p) if call.min_p else -math.inf
        line = 4  # places for all unread tokens; powers of 4, so that few programs are compiled, or one of two sizes
        while line < (CHUNK if self._fixed else counts.sum()):
            line *= 4
        if line < counts.sum():
            line = power_of_two(batch * CHUNK)
        sampling = SamplingParams(*map(jnp.asarray, (temperature, top_k, top_p, log_min_p)))
        waiting = Waiting(
            unread=jnp.asarray(unread),
            counts=jnp.asarray(counts),
            seam=jnp.asarray(seam),
            room=jnp.asarray(room),
            sampling=sampling,
            keys=keys_of_numbers(seeds),
        )
        models = self._graph, self._weights, self._allowed, self._table
        observes = any(call.observes for call, _, _ in calls)
        done = write(*models, self._cached(), waiting, line, self._longest, observes)
        self._cache = done.cache
        tokens, counts, chosen, passes, evidence = to_host(
            (done.tokens, done.counts, done.chosen, done.passes, done.evidence)
        )
        self.passes += int(passes)
        for call, sequence, _ in calls:
            own = tokens[sequence.slot, : counts[sequence.slot]].tolist()
            computed = int(chosen[sequence.slot])
            sequence.held += sequence.tokens[len(sequence.held) :] + own[: max(computed - 1, 0)]
            written = self._written(call, sequence, own, computed)
            whole = len(own) == 0 or self._closable[self.opening.after[own[-1]]]  # nothing of it was dropped
            if observes and whole and written.unit is not None:
                log_prob, entropy, margin = evidence[sequence.slot].tolist()
                written = replace(written, evidence=(log_prob, entropy, margin))
            self._finished.append(written)

    def _written(self, call: Call, sequence: _Sequence, tokens: list[int], computed: int) -> Written:
        """Return the unit of the tokens that were written, up to the last one after which a unit may open."""
        while tokens and not self._closable[self.opening.after[tokens[-1]]]:
            tokens = tokens[:-1]
        if not tokens:
            return Written(
                call.sequence, None, f"{self.name}: nothing that it may write can stand here", computed=computed
            )
        unit = self._units.written(self.number, tokens, sequence.before)
        return Written(call.sequence, unit, computed=computed)

    def score(self, texts: Sequence[Example | TextView], progress: Progress) -> ScoredUnits:
        """Return the scores of texts in the guest's own tokens; see `Expert.score`."""
        own = [text for text in texts if isinstance(text, Example)]
        if self._units.shared:  # S is 1, and probabilities are over the shared vocabulary
            return score_units(self.decoder, None, own, self._units.allowed(0), progress)
        return score_units(self.decoder, self.opening, own, None, progress)
