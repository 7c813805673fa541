"""The training run: one jitted step, batches indexed by step, Orbax checkpoints, exact resume.

Base weights (or the LoRA matrices beside them) and gate are one tree, in float32 whatever the base computes in. The
tree and the optimizer's state are split over the mesh by logical axes, a batch by texts. A step number fixes the
batch, so a checkpoint holds parameters, optimizer state and the step, and a resumed run ends in the same bits. (The
gate alone is fitted elsewhere: `gate_fit.train_gate`.)
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from orbax.checkpoint import v1 as ocp

from colm_jax.data.batches import Batch, collate, padded_length, shuffled
from colm_jax.data.records import Examples
from colm_jax.errors import UserError
from colm_jax.labels import weak_labels
from colm_jax.models.decoder import Decoder
from colm_jax.models.gate import Gate, p_defer
from colm_jax.models.lora import add_lora, merge_lora
from colm_jax.objectives import em_loss, marginal_nll, sft_loss, weak_loss
from colm_jax.parallel import make_mesh, replicated, shardings, spec_of
from colm_jax.scoring import Scores, head_scores
from colm_jax.training.config import Training

Report = Callable[[int, int, dict[str, float]], None]  # step done, of how many, metrics


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ScoredBatch:
    """A batch with what the experts said of it."""

    tokens: jax.Array  # [B, T+1] int32
    mask: jax.Array  # [B, T] bool, of the token at t + 1
    expert_log_probs: jax.Array  # [B, T, M] float32, nats
    labels: jax.Array  # [B, T, M] bool, weak labels


def scored_batch(batch: Batch, base: Scores | None, experts: list[Scores], method: str) -> ScoredBatch:
    """Joins a batch with the scores of its rows. `base` is needed for weak labels only."""
    length = batch.tokens.shape[1]
    padded = [scores.padded(batch.rows, length) for scores in experts]
    shape = (*batch.mask.shape, len(experts))
    log_probs = np.stack([p[0] for p in padded], -1) if padded else np.zeros(shape, np.float32)
    labels = np.zeros(shape, bool)
    if base is not None and padded:
        labels = weak_labels(base.padded(batch.rows, length)[1], np.stack([p[1] for p in padded], -1), method)
    return ScoredBatch(batch.tokens, batch.mask, log_probs, labels)  # type: ignore[arg-type]


def batch_loss(decoder: Decoder, gate: Gate, batch: ScoredBatch, settings: Training, allowed=None):
    """The objective's (sum, count) over a batch, and what to report of it."""
    hidden, _ = decoder(batch.tokens[:, :-1], remat=settings.remat)
    base_log_prob, _ = head_scores(decoder, hidden, batch.tokens[:, 1:], allowed)
    gate_logits = gate(hidden)
    if settings.objective == "sft":
        total, count = sft_loss(base_log_prob, batch.mask)
    elif settings.objective == "weak":
        total, count = weak_loss(gate_logits, base_log_prob, batch.labels, batch.mask, settings.positive_weight)
    else:
        objective = marginal_nll if settings.objective == "marginal" else em_loss
        total, count = objective(gate_logits, base_log_prob, batch.expert_log_probs, batch.mask)
    defer = jnp.sum(jnp.where(batch.mask, p_defer(gate_logits), 0.0)) if gate.kernel.shape[1] else jnp.zeros(())
    return total, count, defer


def make_optimizer(settings: Training, steps: int) -> optax.GradientTransformation:
    """AdamW with warm-up and decay; base and gate may have rates of their own."""

    def adamw(rate: float) -> optax.GradientTransformation:
        warmup = max(1, round(settings.warmup_fraction * steps))
        rest = max(1, steps - warmup)
        after = {
            "linear": optax.linear_schedule(rate, 0.0, rest),
            "cosine": optax.cosine_decay_schedule(rate, rest),
            "constant": optax.constant_schedule(rate),
        }[settings.schedule]
        schedule = optax.join_schedules([optax.linear_schedule(rate / warmup, rate, warmup), after], [warmup])
        return optax.adamw(schedule, weight_decay=settings.weight_decay)

    gate_rate = settings.learning_rate if settings.gate_learning_rate is None else settings.gate_learning_rate
    by_part = optax.partition(
        {"base": adamw(settings.learning_rate), "gate": adamw(gate_rate)},
        lambda params: {part: jax.tree.map(lambda _, part=part: part, tree) for part, tree in params.items()},
    )
    return (
        by_part if settings.clip_norm is None else optax.chain(optax.clip_by_global_norm(settings.clip_norm), by_part)
    )


def train(
    decoder: Decoder,
    gate: Gate,
    examples: Examples,
    base_scores: Scores | None,
    expert_scores: list[Scores],
    settings: Training,
    directory: Path,
    report: Report = lambda step, steps, metrics: None,
    allowed: np.ndarray | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> tuple[Decoder, Gate]:
    """Trains and returns decoder and gate; takes up an earlier run in `directory` where it stopped.

    `allowed` is the shared vocabulary, [V] bool, over which probabilities are; None: all of the head's rows.
    `mesh` is where it trains; None: the first device. A checkpoint of one mesh is taken up on any other.

    Writes `directory`/checkpoints and `directory`/metrics.jsonl (a line a step: loss, expected deferral rate,
    gradient norm; no times, so that a resumed run writes the same file).

    Raises:
      UserError: a batch that the mesh cannot split; a loss that is no longer finite (names step and examples).
    """
    mesh = make_mesh() if mesh is None else mesh
    settings.check_split(mesh.shape["data"] * mesh.shape["fsdp"])
    length = padded_length(examples.items)
    order = shuffled(len(examples.items), settings.batch_size, settings.epochs, settings.seed)
    steps = len(order)
    lora = settings.trainable == "lora"
    base = add_lora(decoder, settings.lora, settings.seed) if lora else decoder
    base_graph, moving, frozen = nnx.split(base, nnx.LoRAParam if lora else nnx.Param, ...)
    gate_graph, gate_state = nnx.split(gate)
    parts = {"base": moving, "gate": gate_state}
    params = {part: nnx.to_pure_dict(state) for part, state in parts.items()}
    spread = {part: nnx.to_pure_dict(shardings(mesh, state)) for part, state in parts.items()}
    optimizer = make_optimizer(settings, steps)

    def rebuild(params, frozen) -> tuple[Decoder, Gate]:
        def filled(state, pure):
            pure = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), pure, nnx.to_pure_dict(state))
            state = jax.tree.map(lambda leaf: leaf, state)  # a copy: replace_by_pure_dict writes in place
            nnx.replace_by_pure_dict(state, pure)
            return state

        base = nnx.merge(base_graph, filled(moving, params["base"]), frozen)
        return base, nnx.merge(gate_graph, filled(gate_state, params["gate"]))

    def part_gradient(params, frozen, part: ScoredBatch, count):
        """What a part of a batch of `count` positions adds to loss, expected deferral and gradient."""

        def loss_fn(params):
            total, _, defer = batch_loss(*rebuild(params, frozen), part, settings, allowed)
            return total / count, defer / count

        (loss, defer), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params)
        return loss, defer, gradient

    def step_fn(params, opt_state, frozen, batch: ScoredBatch):
        count = jnp.maximum(jnp.sum(batch.mask.astype(jnp.float32)), 1.0)

        def add(sums, part):
            return jax.tree.map(jnp.add, sums, part_gradient(params, frozen, part, count)), None

        def split(x):  # every n-th text, so that each device splits its own
            return x.reshape(-1, settings.accumulate, *x.shape[1:]).swapaxes(0, 1)

        nothing = (jnp.zeros(()), jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
        (loss, defer, gradient), _ = jax.lax.scan(add, nothing, jax.tree.map(split, batch))
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        metrics = {"loss": loss, "expected_deferral": defer, "gradient_norm": optax.global_norm(gradient)}
        return optax.apply_updates(params, updates), opt_state, metrics

    directory.mkdir(parents=True, exist_ok=True)
    metrics_path = directory / "metrics.jsonl"
    # Copies, since the step donates its arguments and the caller keeps its own.
    params = jax.tree.map(lambda leaf, to: jax.device_put(jnp.array(leaf, jnp.float32), to), params, spread)
    opt_state = jax.tree.map(
        lambda leaf: leaf if leaf.ndim else jax.device_put(leaf, replicated(mesh)), optimizer.init(params)
    )
    frozen = jax.tree.map(jax.device_put, frozen, shardings(mesh, frozen))
    kept = jax.tree.map(lambda leaf: leaf.sharding, (params, opt_state))
    step_fn = jax.jit(step_fn, donate_argnums=(0, 1), out_shardings=(*kept, None))
    by_text = jax.sharding.NamedSharding(mesh, spec_of(mesh, ("batch",), (settings.batch_size,)))
    saved = {"params": params, "optimizer": jax.tree.leaves(opt_state)}
    with ocp.training.Checkpointer(
        (directory / "checkpoints").resolve(),
        save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(settings.checkpoint_every),
        preservation_policy=ocp.training.preservation_policies.LatestN(2),
    ) as checkpointer:
        start = 0
        if checkpointer.latest is not None:
            start = checkpointer.latest.step
            saved = checkpointer.load_pytree(start, saved)
            params = saved["params"]
            opt_state = jax.tree.unflatten(jax.tree.structure(opt_state), saved["optimizer"])
        _keep_lines(metrics_path, start)
        with metrics_path.open("a", encoding="utf-8") as log:
            for step in range(start, steps):
                rows = [int(row) for row in order[step]]
                batch = collate(examples.items, rows, settings.batch_size, length)
                scored = scored_batch(batch, base_scores, expert_scores, settings.label_method)
                scored = jax.device_put(scored, by_text)
                params, opt_state, metrics = step_fn(params, opt_state, frozen, scored)
                values = {name: float(value) for name, value in metrics.items()}
                if not np.isfinite(values["loss"] + values["gradient_norm"]):
                    raise UserError(
                        f"training: loss {values['loss']} at step {step + 1}, examples {rows[:8]}...; "
                        "lower the learning rate"
                    )
                log.write(json.dumps({"step": step + 1, **values}) + "\n")
                log.flush()
                report(step + 1, steps, values)
                if (step + 1) % settings.checkpoint_every == 0:
                    state = {"params": params, "optimizer": jax.tree.leaves(opt_state)}
                    checkpointer.save_pytree(step + 1, state)
    trained, gate = rebuild(params, frozen)
    return merge_lora(trained, decoder, settings.lora) if lora else trained, gate


def _keep_lines(path: Path, count: int) -> None:
    """Cuts a metrics file to the steps that the checkpoint holds; later ones will be done again."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)[:count]
        beside = path.with_suffix(".tmp")
        beside.write_text("".join(lines), encoding="utf-8")
        beside.replace(path)
