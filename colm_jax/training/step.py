"""One training step: forward passes, the objective, its gradient, AdamW; jitted over the mesh.

Base weights (or the LoRA matrices beside them) and gate are one tree, in float32 whatever the base computes in. The
tree and the optimizer's state are split over the mesh by logical axes, a batch by texts. `TrainStep` takes models or
their shapes alone, so that `colm plan` compiles the very step that `trainer.train` runs.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Shaped

from colm_jax.data.batches import UnitMarks
from colm_jax.models.arrays import AnyArray, pytree
from colm_jax.models.decoder import Decoder
from colm_jax.models.gate import Gate, p_defer
from colm_jax.objectives import latent_objective, responsibilities, sft_loss, weak_loss
from colm_jax.parallel import batch_sharding, on_mesh, replicated, shardings
from colm_jax.scoring.head import head_scores, score_head
from colm_jax.settings.training import Training
from colm_jax.text.spans import Opening
from colm_jax.training.optimizer import make_optimizer


@pytree
@dataclass(frozen=True)
class ScoredBatch:
    """Texts with the experts' scores."""

    tokens: Int[AnyArray, "B T1"]
    mask: Bool[AnyArray, "B T1-1"]  # of the token at t + 1: it begins a unit that counts in the loss
    expert_log_probs: Float[AnyArray, "B T1-1 M"] | None  # nats, of the unit at t + 1; None: experts score in the step
    labels: Bool[AnyArray, "B T1-1 M"] | None  # weak labels; None: the objective needs none
    segments: Int[AnyArray, "B T1"] | None = None  # of packed rows: which text a token belongs to; None: one a row
    units: UnitMarks | None = None  # None: every token is a unit


@pytree
@dataclass(frozen=True)
class TrainState:
    """All that a step changes."""

    params: dict[str, Any]  # "base" (its weights or LoRA matrices) and "gate", float32
    optimizer: Any  # optax's state: AdamW's moments, shaped as the parameters, and its counts


def expert_scores(
    experts: Sequence[Decoder],
    batch: ScoredBatch,
    allowed: Bool[AnyArray, "A"] | None,
    spreads: Sequence[jax.sharding.Sharding | None],
) -> Float[Array, "B T M"]:
    """Return log p of each text's own next token under each expert, nats.

    `spreads` are the shardings of texts on each expert's mesh.
    """
    found = []
    for expert, spread in zip(experts, spreads, strict=True):
        segments = None if batch.segments is None else batch.segments[:, :-1]
        hidden, _ = expert(batch.tokens[:, :-1], segments=segments, spread=spread)
        found.append(head_scores(expert, hidden, batch.tokens[:, 1:], allowed)[0])
    return jax.lax.stop_gradient(jnp.stack(found, axis=-1))


def unit_sums(log_prob: Float[Array, "B T"], log_opening: Float[Array, "B T"], units: UnitMarks) -> Float[Array, "B T"]:
    """Return the scores of units at their first tokens, as `scoring.units.unit_scores`; other entries mean nothing.

    Each unit is summed by itself, since differences of sums over a whole row would lose its last digits.
    """
    following = jnp.pad(log_opening[:, 1:], ((0, 0), (0, 1)))
    terms = jnp.where(units.tokens, log_prob, 0.0) + jnp.where(units.closes, following, 0.0)
    terms -= jnp.where(units.opens, log_opening, 0.0)

    def join(
        later: tuple[Float[Array, "..."], Bool[Array, "..."]], sooner: tuple[Float[Array, "..."], Bool[Array, "..."]]
    ) -> tuple[Float[Array, "..."], Bool[Array, "..."]]:
        return jnp.where(sooner[1], sooner[0], later[0] + sooner[0]), later[1] | sooner[1]

    return jax.lax.associative_scan(join, (terms, jnp.asarray(units.last)), reverse=True, axis=1)[0]


def batch_loss(
    decoder: Decoder,
    gate: Gate,
    batch: ScoredBatch,
    settings: Training,
    allowed: Bool[AnyArray, "A"] | None = None,
    spread: jax.sharding.Sharding | None = None,
    opening: Opening | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Return the objective's sum over a batch's units, and sums of what is shown beside it.

    The sums are of the expected deferral (P(Z ≠ 0)) and, unless the objective is `sft` or `weak`, of the entropy of the
    responsibilities in nats: how sure training is of who should write.
    """
    segments = None if batch.segments is None else batch.segments[:, :-1]
    hidden, _ = decoder(batch.tokens[:, :-1], segments=segments, remat=settings.remat, spread=spread)
    opening = None if batch.units is None else opening
    found = score_head(decoder, hidden, batch.tokens, allowed, opening, gate.reads_logits)
    base_log_prob = found.log_prob
    if batch.units is not None:
        assert found.log_opening is not None
        base_log_prob = unit_sums(found.log_prob, found.log_opening, batch.units)
    gate_logits = gate.of(hidden, found.uncertainty)
    shown = {}
    if gate.kernel.shape[1]:
        shown["expected_deferral"] = jnp.sum(jnp.where(batch.mask, p_defer(gate_logits), 0.0))
    if settings.objective == "sft":
        total, _ = sft_loss(base_log_prob, batch.mask)
    elif settings.objective == "weak":
        assert batch.labels is not None
        total, _ = weak_loss(gate_logits, base_log_prob, batch.labels, batch.mask, settings.positive_weight)
    else:
        assert batch.expert_log_probs is not None
        arguments = gate_logits, base_log_prob, batch.expert_log_probs, batch.mask
        total, _ = latent_objective(settings.objective)(*arguments)
        r = responsibilities(*jax.lax.stop_gradient(arguments))
        shown["responsibility_entropy"] = jnp.sum(jax.scipy.special.entr(r))
    return total, shown


class TrainStep:
    """The step of one training run; the models may be `nnx.eval_shape`s, which can be lowered but not run."""

    def __init__(
        self,
        decoder: Decoder,
        gate: Gate,
        settings: Training,
        steps: int,
        mesh: jax.sharding.Mesh,
        allowed: Bool[np.ndarray, "A"] | None = None,
        experts: Sequence[Decoder] = (),
        opening: Opening | None = None,
    ):
        """Splits the models into what moves and what is frozen.

        Args:
          decoder: the base; with LoRA matrices (`add_lora`) where settings.trainable is "lora".
          gate: the gate.
          settings: objective, optimizer, parts, remat.
          steps: of the whole run, for the learning rate's decay.
          mesh: where it trains.
          allowed: the shared vocabulary of A ids; None: all of the head's rows.
          experts: that score inside the step, each on a mesh of its own of the same devices; none where batches
            bring their scores.
          opening: the base's, where units are spans.
        """
        self.settings, self.mesh, self.allowed, self.opening = settings, mesh, allowed, opening
        kind = nnx.LoRAParam if settings.trainable == "lora" else nnx.Param
        graph, *states = nnx.split(decoder, kind, ...)
        moving, frozen = states
        self._base_graph: nnx.GraphDef = graph
        self._base: nnx.State = moving
        self._gate_graph, self._gate = nnx.split(gate)
        split = [nnx.split(expert) for expert in experts]
        self._expert_graphs = [graph for graph, _ in split]
        self._expert_spreads = [expert.batch_sharding for expert in experts]
        self.frozen = on_mesh(frozen, mesh), [state for _, state in split]  # of the base, of the experts
        self._optimizer = make_optimizer(settings, steps)
        parts = {"base": self._base, "gate": self._gate}
        where = {part: nnx.to_pure_dict(shardings(mesh, state)) for part, state in parts.items()}
        self._params = {part: nnx.to_pure_dict(state) for part, state in parts.items()}
        params = jax.tree.map(
            lambda x, to: jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=to), self._params, where
        )
        optimizer = _like(jax.eval_shape(self._optimizer.init, params), params, replicated(mesh))
        self.shapes = TrainState(params, optimizer)  # shapes, types and shardings of the state
        self._step = jax.jit(
            self._advance,
            donate_argnums=0,
            out_shardings=(jax.tree.map(lambda x: x.sharding, self.shapes), None),
        )

    def start(self) -> TrainState:
        """Return the state before the first step.

        Copies, since a step donates its state and the caller keeps its models.
        """
        params = jax.tree.map(
            lambda leaf, like: jax.device_put(jnp.array(leaf, jnp.float32), like.sharding),
            self._params,
            self.shapes.params,
        )
        where = jax.tree.map(lambda x: x.sharding, self.shapes.optimizer)
        return TrainState(params, jax.jit(self._optimizer.init, out_shardings=where)(params))

    def __call__(self, state: TrainState, batch: ScoredBatch) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
        """Take one step; the state that came in is donated. The metrics are means over the batch's positions.

        They are `loss` (nats), `gradient_norm`, what `batch_loss` shows, and `positions`, how many counted.
        """
        return self._step(state, self.frozen, batch)

    def trace(self, batch: ScoredBatch) -> jax.stages.Traced:
        """Return the step for a batch of these shapes, to be lowered, compiled and looked at."""
        return self._step.trace(self.shapes, self.frozen, batch)

    def models(self, params: dict[str, Any], frozen: Any = None) -> tuple[Decoder, Gate]:
        """Return base and gate with these parameters, the base's in its own dtype."""
        frozen = self.frozen[0] if frozen is None else frozen
        base = nnx.merge(self._base_graph, _filled(self._base, params["base"]), frozen)
        return base, nnx.merge(self._gate_graph, _filled(self._gate, params["gate"]))

    def _advance(
        self, state: TrainState, frozen: Any, batch: ScoredBatch
    ) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
        settings = self.settings
        base, expert_states = frozen
        experts = [nnx.merge(graph, s) for graph, s in zip(self._expert_graphs, expert_states)]
        count = jnp.maximum(jnp.sum(batch.mask.astype(jnp.float32)), 1.0)

        def gradient(part: ScoredBatch) -> tuple[tuple[Float[Array, ""], dict[str, Float[Array, ""]]], Any]:
            """Return what a part of the batch adds to loss, what is shown, and gradient."""
            if experts:
                scores = expert_scores(experts, part, self.allowed, self._expert_spreads)
                part = dataclasses.replace(part, expert_log_probs=scores)

            def loss(params: dict[str, Any]) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
                total, shown = batch_loss(
                    *self.models(params, base), part, settings, self.allowed, batch_sharding(self.mesh), self.opening
                )
                return total / count, jax.tree.map(lambda x: x / count, shown)

            return jax.value_and_grad(loss, has_aux=True)(state.params)

        def add(sums: Any, part: ScoredBatch) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, sums, gradient(part)), None

        def split(
            x: Shaped[Array, "B ..."],
        ) -> Shaped[Array, "parts _ ..."]:  # every n-th text, so that each device splits its own
            return x.reshape(-1, settings.parts(x.shape[0]), *x.shape[1:]).swapaxes(0, 1)

        parts = jax.tree.map(split, batch)
        nothing = jax.eval_shape(gradient, jax.tree.map(lambda x: x[0], parts))
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), nothing)
        ((loss, shown), gradients), _ = jax.lax.scan(add, nothing, parts)
        updates, optimizer = self._optimizer.update(gradients, state.optimizer, state.params)
        metrics = {"loss": loss, **shown, "gradient_norm": optax.global_norm(gradients), "positions": count}
        return TrainState(optax.apply_updates(state.params, updates), optimizer), metrics


def _like(optimizer: Any, params: Any, otherwise: jax.sharding.Sharding) -> Any:
    """Return shapes of an optimizer's state, each split as the parameter of its path and shape (moments), or
    `otherwise`.
    """
    by_path = {tuple(path): leaf for path, leaf in jax.tree.leaves_with_path(params)}

    def place(path: jax.tree_util.KeyPath, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        found = (by_path[path[i:]] for i in range(len(path)) if path[i:] in by_path)
        same = (param.sharding for param in found if param.shape == leaf.shape)  # not of factored moments
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=next(same, otherwise))

    return jax.tree.map_with_path(place, optimizer)


def _filled(state: nnx.State, values: Any) -> nnx.State:
    """Return the state with these values, each cast to the type it had."""
    values = jax.tree.map(lambda value, like: value.astype(like.dtype), values, nnx.to_pure_dict(state))
    state = jax.tree.map(lambda leaf: leaf, state)  # a copy: replace_by_pure_dict writes in place
    nnx.replace_by_pure_dict(state, values)
    return state
