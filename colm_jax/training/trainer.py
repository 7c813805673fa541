"""The training run: batches by step, one jitted step, asynchronous Orbax checkpoints, exact resume.

A step number fixes its batch, so a checkpoint holds parameters, optimizer state and the step, and a run that was
killed and resumed ends in the same bits. (The gate alone is fitted elsewhere: `gate_fit.train_gate`.)
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from orbax.checkpoint import v1 as ocp

from colm_jax.data.batches import collate, padded_length, shuffled, unit_marks
from colm_jax.data.packing import PackedRows, choose_counts, longest_row, pack
from colm_jax.data.records import Examples
from colm_jax.errors import Preempted
from colm_jax.labels import weak_labels
from colm_jax.models.decoder import Decoder
from colm_jax.models.gate import Gate
from colm_jax.models.lora import add_lora, merge_lora
from colm_jax.parallel import global_batch, local_rows, make_mesh
from colm_jax.scoring import Scores
from colm_jax.settings.training import Training
from colm_jax.storage import absolute, make_directory
from colm_jax.text.spans import Opening
from colm_jax.training.metrics import Log, Stopwatch, check_finite
from colm_jax.training.preemption import watch
from colm_jax.training.step import ScoredBatch, TrainState, TrainStep

Report = Callable[[int, int, dict[str, float]], None]  # step done, of how many, metrics and speed
_PREFETCH = 4  # batches made ahead, beside the step


@dataclass(frozen=True)
class Input:
    """The texts of a run with their scores, as batches by step; nothing in it changes."""

    examples: Examples
    base_scores: Scores | None  # for weak labels only
    expert_scores: Sequence[Scores]  # none where experts score in the step
    settings: Training
    mesh: jax.sharding.Mesh
    length: int  # tokens a row
    rows: Sequence[int]  # numbers of rows that a batch may have, rising
    steps: grain.MapDataset  # each step's texts
    by_spans: bool = False  # units are spans, not tokens

    @classmethod
    def of(
        cls,
        examples: Examples,
        base_scores: Scores | None,
        expert_scores: Sequence[Scores],
        settings: Training,
        mesh: jax.sharding.Mesh,
        context: int,
        ways: int = 1,
        by_spans: bool = False,
    ) -> "Input":
        """Plan every step of a run on `mesh`.

        Args:
          examples: the texts.
          base_scores: the base's scores of them.
          expert_scores: the experts'.
          settings: of the training.
          mesh: where the base trains.
          context: the models' shortest: packed rows are no longer.
          ways: groups of devices that have to share the rows of a batch evenly.
          by_spans: units are spans, not tokens.
        """
        lengths = examples.lengths
        steps = shuffled(len(lengths), settings.batch_size, settings.epochs, settings.seed)
        length, rows = padded_length(lengths), tuple[int, ...]([settings.batch_size])
        if settings.packing:
            positions = longest_row(lengths, context)
            packed = (pack(lengths, (row[0] for row in steps[i]), (positions,)) for i in range(len(steps)))
            length = positions + 1
            rows = choose_counts((settings.split_rows(len(row), ways) for row in packed), positions)
        return cls(examples, base_scores, expert_scores, settings, mesh, length, rows, steps, by_spans)

    def batch(self, step: int) -> tuple[PackedRows, ScoredBatch]:
        """Return the examples of all rows of a step's batch, and this process's rows in host memory."""
        settings, texts = self.settings, self.steps[step]
        if settings.packing:
            texts = [row for _, row in pack(self.examples.lengths, (row[0] for row in texts), (self.length - 1,))]
        count = next(count for count in self.rows if count >= len(texts))
        all_rows = [*texts, *[[]] * (count - len(texts))]
        rows = [all_rows[row] for row in local_rows(self.mesh, count)]
        batch = collate(self.examples.items, rows, len(rows), self.length)
        shape = batch.mask.shape
        found = [scores.aligned(rows, shape) for scores in self.expert_scores]
        log_probs = np.stack([log_prob for log_prob, _ in found], -1) if found else None
        labels = None
        if settings.objective == "weak" and self.base_scores is not None:
            bits = np.stack([is_argmax for _, is_argmax in found], -1)
            labels = weak_labels(self.base_scores.aligned(rows, shape)[1], bits, settings.label_method)
        segments, mask, units = batch.segments if settings.packing else None, batch.mask, None
        if self.by_spans:
            units = unit_marks(self.examples.items, rows, shape)
            if settings.objective == "sft":  # cross-entropy of tokens
                mask, units = np.asarray(units.tokens), None
        return all_rows, ScoredBatch(batch.tokens, mask, log_probs, labels, segments, units)

    def on_mesh(self, rows: PackedRows, batch: ScoredBatch) -> ScoredBatch:
        """Return a batch of `rows` on the mesh, of which this process has its own rows in host memory."""
        here = local_rows(self.mesh, len(rows))
        return jax.tree.map(partial(global_batch, self.mesh, len(rows), here), batch)

    def lines(self, rows: PackedRows) -> PackedRows:
        """Return the lines of a batch's examples in the data file."""
        return [[int(self.examples.index["line"][number]) for number in row] for row in rows]

    def batches(self, start: int) -> Iterator[tuple[PackedRows, ScoredBatch]]:
        """Return the batches from step `start` on, made ahead by a thread."""
        ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=_PREFETCH)
        return iter(grain.MapDataset.range(start, len(self.steps)).map(self.batch).to_iter_dataset(ahead))


def train(
    decoder: Decoder,
    gate: Gate,
    examples: Examples,
    base_scores: Scores | None,
    expert_scores: Sequence[Scores],
    settings: Training,
    directory: Path,
    report: Report = lambda step, steps, metrics: None,
    allowed: Bool[np.ndarray, "A"] | None = None,
    mesh: jax.sharding.Mesh | None = None,
    experts: Sequence[Decoder] = (),
    profile_steps: tuple[int, int] | None = None,
    opening: Opening | None = None,
) -> tuple[Decoder, Gate]:
    """Train and return decoder and gate; resume an earlier run in `directory`.

    Args:
      decoder: the base.
      gate: as it starts.
      examples: the texts.
      base_scores: the base's scores of them; needed for the objective `weak` only.
      expert_scores: the experts'.
      settings: objective, optimizer, length of the run.
      directory: for checkpoints/, metrics.jsonl (a line a step, no times) and logs/ (times, TensorBoard, traces).
      report: progress callback(step, steps, metrics).
      allowed: the shared vocabulary of A ids, over which probabilities are; None: all of the head's rows.
      mesh: where it trains; None: the first device. A checkpoint of one mesh is taken up on any other.
      experts: the experts themselves, on the mesh, where they are to score inside the step; then no `expert_scores`.
      profile_steps: first and last step of a profiler trace.
      opening: the base's, where units are spans; None: every token is a unit.

    Raises:
      UserError: a batch that the mesh cannot split; a loss that is no longer finite.
      Preempted: SIGTERM came; the step that was under way is finished and saved.
    """
    mesh = make_mesh() if mesh is None else mesh
    spreads = [expert.batch_sharding for expert in experts]
    meshes = [mesh, *(spread.mesh for spread in spreads if spread is not None)]
    ways = math.lcm(*(where.shape["data"] * where.shape["fsdp"] for where in meshes))
    settings.check_split(ways)
    lora = settings.trainable == "lora"
    base = add_lora(decoder, settings.lora, settings.seed) if lora else decoder
    context = min(model.config.context for model in (decoder, *experts))
    texts = Input.of(examples, base_scores, expert_scores, settings, mesh, context, ways, opening is not None)
    step_of = TrainStep(base, gate, settings, len(texts.steps), mesh, allowed, experts, opening)
    state = _run(step_of, texts, directory, report, profile_steps)
    trained, gate = step_of.models(state.params)
    return merge_lora(trained, decoder, settings.lora) if lora else trained, gate


def _traced(profile_steps: tuple[int, int] | None, first: int, last: int) -> tuple[int, int] | tuple[None, None]:
    """Return the first and the last of the steps first..last that are traced; None where there are none."""
    if profile_steps is None:
        return None, None
    start, stop = max(profile_steps[0], first), min(profile_steps[1], last)
    return (start, stop) if start <= stop else (None, None)


def _run(
    step_of: TrainStep, texts: Input, directory: Path, report: Report, profile_steps: tuple[int, int] | None
) -> TrainState:
    """Run every step after the last checkpoint."""
    settings, steps = step_of.settings, len(texts.steps)
    make_directory(directory)
    with (
        ocp.training.Checkpointer(
            str(absolute(directory / "checkpoints")),
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=ocp.training.preservation_policies.LatestN(2),
        ) as checkpointer,
        watch() as asked_to_stop,
    ):
        if checkpointer.latest is None:
            start, state = 0, step_of.start()
        else:
            start = checkpointer.latest.step
            state = _restored(checkpointer.load_pytree(start, _stored(step_of.shapes)), step_of.shapes)
        good = start or None  # the last step that is in a checkpoint
        with closing(Log(directory, start)) as log:
            stopwatch, batches = Stopwatch(), texts.batches(start)

            def finish(step: int, rows: PackedRows, metrics: dict[str, Float[Array, ""]]) -> None:
                """Wait for a step and write down what it measured."""
                values = {name: float(value) for name, value in metrics.items()}
                check_finite(values, step, lambda: texts.lines(rows), good)
                speed = stopwatch.lap(values["positions"])
                log.write(step, values, speed)
                report(step, steps, values | speed)

            under_way = None  # so that the host makes ready the next step while the devices are at this one
            first_traced, last_traced = _traced(profile_steps, start + 1, steps)
            for step in range(start + 1, steps + 1):
                if step == first_traced:
                    jax.profiler.start_trace(log.folder)
                rows, batch = stopwatch.next(batches)
                state, metrics = step_of(state, texts.on_mesh(rows, batch))
                if under_way is not None:
                    finish(*under_way)
                under_way = step, rows, metrics
                stop = asked_to_stop(step)
                if stop or step % settings.checkpoint_every == 0:
                    finish(*under_way)  # before it is saved: no checkpoint holds what is not finite
                    under_way = None
                    log.flush()
                    checkpointer.save_pytree_async(step, _stored(state))
                    good = step
                if stop:
                    raise Preempted(step)  # once what is being saved is saved
                if step == last_traced:
                    jax.block_until_ready(state)
                    jax.profiler.stop_trace()
            if under_way is not None:
                finish(*under_way)
    return state


def _flattened(state: TrainState) -> dict:
    """Return parameters by name, and the optimizer's leaves in order."""
    return {"params": state.params, "optimizer": jax.tree.leaves(state.optimizer)}


def _stored(state: TrainState) -> dict:
    """Return the state as it is stored: None for arrays without elements, which Orbax refuses.

    The gate of a base without experts has such arrays.
    """
    return jax.tree.map(lambda x: x if x.size else None, _flattened(state))


def _restored(stored: dict, like: TrainState) -> TrainState:
    """Return the state that was stored; `like` has its shapes and shardings."""

    def fill(like: jax.ShapeDtypeStruct, found: Array | None) -> Array:
        return jnp.zeros(like.shape, like.dtype, device=like.sharding) if found is None else found

    filled = jax.tree.map(fill, _flattened(like), stored)
    return TrainState(filled["params"], jax.tree.unflatten(jax.tree.structure(like.optimizer), filled["optimizer"]))
