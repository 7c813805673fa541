"""The training run: batches by step, one jitted step, asynchronous Orbax checkpoints, exact resume.

A step number fixes its batch, so a checkpoint holds parameters, optimizer state and the step, and a run that was
killed and resumed ends in the same bits. (The gate alone is fitted elsewhere: `gate_fit.train_gate`.)
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grain
import jax
import numpy as np
from jaxtyping import Array, Bool, Float
from orbax.checkpoint import v1 as ocp

from colm_jax.data.batches import PackedRows, collate, packed, padded_length, shuffled
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
    length: int  # tokens a row
    steps: Sequence[PackedRows] | grain.MapDataset
    here: Sequence[int]  # rows of a batch that this process reads; the others are other processes'

    @classmethod
    def of(
        cls,
        examples: Examples,
        base_scores: Scores | None,
        expert_scores: Sequence[Scores],
        settings: Training,
        mesh: jax.sharding.Mesh,
    ) -> "Input":
        """Plan every step of a run on `mesh`."""
        length = padded_length(examples.lengths)
        order = settings.batch_size, settings.epochs, settings.seed
        if settings.packing:
            steps: Sequence[PackedRows] | grain.MapDataset = packed(examples.lengths, length, *order)
        else:
            steps = shuffled(len(examples.items), *order)
        here = local_rows(mesh, settings.batch_size)
        return cls(examples, base_scores, expert_scores, settings, length, steps, here)

    def batch(self, step: int) -> tuple[PackedRows, ScoredBatch]:
        """Return the examples of all rows of a step's batch, and this process's rows in host memory."""
        settings, all_rows = self.settings, self.steps[step]
        rows = [all_rows[row] if row < len(all_rows) else [] for row in self.here]
        batch = collate(self.examples.items, rows, len(rows), self.length)
        shape = batch.mask.shape
        found = [scores.aligned(rows, shape) for scores in self.expert_scores]
        log_probs = np.stack([log_prob for log_prob, _ in found], -1) if found else None
        labels = None
        if settings.objective == "weak" and self.base_scores is not None:
            bits = np.stack([is_argmax for _, is_argmax in found], -1)
            labels = weak_labels(self.base_scores.aligned(rows, shape)[1], bits, settings.label_method)
        segments = batch.segments if settings.packing else None
        return all_rows, ScoredBatch(batch.tokens, batch.mask, log_probs, labels, segments)

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

    Raises:
      UserError: a batch that the mesh cannot split; a loss that is no longer finite.
      Preempted: SIGTERM came; the step that was under way is finished and saved.
    """
    mesh = make_mesh() if mesh is None else mesh
    settings.check_split(mesh.shape["data"] * mesh.shape["fsdp"])
    lora = settings.trainable == "lora"
    base = add_lora(decoder, settings.lora, settings.seed) if lora else decoder
    texts = Input.of(examples, base_scores, expert_scores, settings, mesh)
    step_of = TrainStep(base, gate, settings, len(texts.steps), mesh, allowed, experts)
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
    spread = partial(global_batch, step_of.mesh, settings.batch_size, texts.here)
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
            state = _unflattened(checkpointer.load_pytree(start, _flattened(step_of.shapes)), step_of.shapes)
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
                state, metrics = step_of(state, jax.tree.map(spread, batch))
                if under_way is not None:
                    finish(*under_way)
                under_way = step, rows, metrics
                stop = asked_to_stop(step)
                if stop or step % settings.checkpoint_every == 0:
                    finish(*under_way)  # before it is saved: no checkpoint holds what is not finite
                    under_way = None
                    log.flush()
                    checkpointer.save_pytree_async(step, _flattened(state))
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
    """Return the state as it is stored: parameters by name, the optimizer's leaves in order."""
    return {"params": state.params, "optimizer": jax.tree.leaves(state.optimizer)}


def _unflattened(stored: dict, like: TrainState) -> TrainState:
    return TrainState(stored["params"], jax.tree.unflatten(jax.tree.structure(like.optimizer), stored["optimizer"]))
