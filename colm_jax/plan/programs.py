"""The programs of a run, traced with abstract arrays: a training step, scoring, a decode step.

These are the actual programs (`TrainStep`, the scorer's pass, the decoding loop), not approximations.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding

from colm_jax.checkpoints.families import FAMILIES
from colm_jax.checkpoints.huggingface import DTYPES, parts_of
from colm_jax.checkpoints.layout import abstract_decoder, by_path, table_key
from colm_jax.checkpoints.quantized.kernel import forms
from colm_jax.checkpoints.reader import StoredPart
from colm_jax.decoding.engine import pass_sizes
from colm_jax.decoding.loop import run_turns
from colm_jax.decoding.slots import BatchShape, empty_state
from colm_jax.decoding.speculation import Speculation
from colm_jax.decoding.state import Graphs, LoopConfig, Models
from colm_jax.models.arrays import bits_of
from colm_jax.models.cache import CACHE_AXES
from colm_jax.models.config import ModelConfig
from colm_jax.models.decoder import Decoder
from colm_jax.models.gate import Gate
from colm_jax.models.lora import add_lora
from colm_jax.models.quantize import QUANTIZED, quantize_kernel
from colm_jax.parallel import batch_sharding, on_mesh, replicated, spec_of
from colm_jax.scoring.passes import rows_at_once
from colm_jax.scoring.scorer import score_batch
from colm_jax.settings.generation import ExpertBatching
from colm_jax.settings.strategies import find_strategy
from colm_jax.settings.training import Training
from colm_jax.training.step import ScoredBatch, TrainStep

# How a model is held: a type, "int8" or "int4", or as the parts of a checkpoint in few bits say.
Kind: TypeAlias = str | Sequence[StoredPart]


def shape(sizes: tuple[int, ...], kind: Any, sharding: jax.sharding.Sharding | None = None) -> Any:
    """Return an abstract array."""
    return jax.ShapeDtypeStruct(sizes, kind, sharding=sharding)


@dataclass(frozen=True)
class Program:
    """A traced program, with the per-chip bytes of its arguments."""

    name: str
    traced: jax.stages.Traced
    resident: dict[str, int]  # bytes per chip, by kind: "parameters", "optimizer", "experts", "caches"
    reads: dict[str, int]  # bytes per chip that a pass of each model reads: its weights and its cache
    texts: int  # batch size
    saved: int = 0  # bytes of a checkpoint over all chips


def model_of(config: ModelConfig, kind: Kind, dtype: str, mesh: jax.sharding.Mesh, stacked: bool) -> Decoder:
    """Return an abstract model with the shardings of a loaded one."""
    plain = DTYPES.get(kind) if isinstance(kind, str) else None
    graph, state = nnx.split(abstract_decoder(config, DTYPES[dtype] if plain is None else plain, stacked))
    if plain is not None:
        return nnx.merge(graph, on_mesh(state, mesh))
    table, found, kept = FAMILIES[config.family].table, [], {}
    if not isinstance(kind, str):
        kept = forms(parts_of(config, kind, stacked), by_path(state), mesh)
    for path, variable in nnx.to_flat_state(state):
        name = ".".join(map(str, path))
        axes, value = variable.get_metadata()["axes"], shape(variable.shape, variable.dtype)
        leading = sum(axis in ("layers", "networks") for axis in axes)
        one = kept.get(name)
        if isinstance(kind, str) and QUANTIZED.fullmatch(name):
            layer = shape(value.shape[leading:], value.dtype)
            inputs = table[table_key(name)].inputs
            one = jax.eval_shape(partial(quantize_kernel, inputs=inputs, kind=kind), layer)
        if one is not None:
            value = jax.tree.map(lambda x, n=leading, v=value: shape((*v.shape[:n], *x.shape), x.dtype), one)
        placed = jax.tree.map(
            lambda x, axes=axes: shape(x.shape, x.dtype, NamedSharding(mesh, spec_of(mesh, axes, x.shape))),
            value,
        )
        found.append((path, variable.replace(placed)))
    return nnx.merge(graph, nnx.from_flat_state(found))


def training_program(
    base: ModelConfig,
    experts: Sequence[tuple[ModelConfig, Kind, jax.sharding.Mesh]],
    settings: Training,
    dtype: str,
    length: int,
    mesh: jax.sharding.Mesh,
    online: bool,
) -> Program:
    """Trace a training step on texts of `length` tokens; `experts` are configurations, types and meshes."""
    decoder = model_of(base, dtype, dtype, mesh, stacked=True)
    if settings.trainable == "lora":
        decoder = _with_lora(decoder, settings, mesh)
    gate = nnx.eval_shape(lambda: Gate(base.width, len(experts), settings.gate_inputs))
    scorers = [model_of(config, kind, dtype, where, stacked=True) for config, kind, where in experts] if online else []
    step = TrainStep(decoder, gate, settings, 1000, mesh, None, scorers)

    def spread(sizes, kind):
        return shape(sizes, kind, batch_sharding(mesh))

    rows, count = settings.batch_size, len(experts)
    batch = ScoredBatch(
        tokens=spread((rows, length), jnp.int32),
        mask=spread((rows, length - 1), jnp.bool_),
        expert_log_probs=None if online else spread((rows, length - 1, count), jnp.float32),
        labels=spread((rows, length - 1, count), jnp.bool_) if settings.objective == "weak" else None,
        segments=spread((rows, length), jnp.int32) if settings.packing else None,
    )
    resident = {
        "parameters": on_chip((step.shapes.params, step.frozen[0])),
        "optimizer": on_chip(step.shapes.optimizer),
        "experts": on_chip(step.frozen[1]),
    }
    reads = {"base": resident["parameters"]}
    reads |= {f"expert-{m + 1}": on_chip(nnx.state(scorer)) for m, scorer in enumerate(scorers)}
    saved = in_all((step.shapes.params, step.shapes.optimizer))
    return Program("train", step.trace(batch), resident, reads, rows, saved)


def scoring_program(
    name: str, config: ModelConfig, kind: Kind, dtype: str, length: int, mesh: jax.sharding.Mesh
) -> Program:
    """Trace a batch of `colm score`: rows that a text of `length` tokens fills.

    `dtype` is that of its parts that are not quantised.
    """
    graph, state = nnx.split(model_of(config, kind, dtype, mesh, stacked=True))
    rows = rows_at_once(length, mesh)
    tokens = shape((rows, length), jnp.int32)
    traced = score_batch.trace(graph, state, tokens, tokens, None, batch_sharding(mesh))
    held = on_chip(state)
    return Program(name, traced, {"parameters": held}, {name.removeprefix("score "): held}, rows)


def decoding_program(
    base: ModelConfig,
    experts: Sequence[tuple[ModelConfig, Kind, jax.sharding.Mesh]],
    dtype: str,
    length: int,
    rows: int,
    mesh: jax.sharding.Mesh,
    speculate: bool | str = "auto",
    strategy_name: str = "defer",
    turns: int = 1,
    gate_inputs: str = "hidden",
) -> Program:
    """Trace turns of the decoding loop, with a call of every expert, for `rows` sequences of up to `length` tokens."""
    meshes = [mesh, *(where for _, _, where in experts)]
    models = [model_of(base, dtype, dtype, mesh, False), *(model_of(c, k, dtype, m, False) for c, k, m in experts)]
    (base_graph, base_state), *others = [nnx.split(model) for model in models]
    gate_graph, gate_state = nnx.split(nnx.eval_shape(lambda: Gate(base.width, len(experts), gate_inputs)))
    vocab_size, count = min(config.vocab_size for config in (base, *(c for c, _, _ in experts))), len(experts)
    strategy = find_strategy(strategy_name, count, gate_experts=count)
    base_cost = on_chip(base_state) / max((on_chip(state) for _, state in others), default=on_chip(base_state))
    speculation = Speculation.of(speculate, strategy, base_cost)
    loop = LoopConfig(
        strategy, ExpertBatching(rows, 1), pass_sizes(strategy, rows, speculation.on), (2,), turns, speculation
    )
    kinds = [(model.config, model.embedding.get_value().dtype, None) for model in models]
    state = jax.eval_shape(partial(empty_state, loop, kinds, vocab_size, BatchShape(rows, length)))
    caches = tuple(jax.tree.map(partial(_on_mesh, where), cache) for cache, where in zip(state.caches, meshes))
    graphs = Graphs(base_graph, tuple(graph for graph, _ in others), gate_graph)
    team = Models(base_state, tuple(s for _, s in others), gate_state, shape((vocab_size,), jnp.bool_))
    traced = run_turns.trace(graphs, loop, team, replace(state, caches=caches), shape((), jnp.int32))
    resident = {"parameters": on_chip(base_state), "experts": on_chip(team.experts), "caches": on_chip(caches)}
    names = ["base", *(f"expert-{m + 1}" for m in range(count))]
    reads = {name: on_chip(held) for name, held in zip(names, zip((team.base, *team.experts), caches))}
    return Program("decode", traced, resident, reads, rows)


def _on_mesh(mesh: jax.sharding.Mesh, x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """Return an abstract part of a cache with its sharding."""
    whole = replicated(mesh) if x.ndim < len(CACHE_AXES) else NamedSharding(mesh, spec_of(mesh, CACHE_AXES, x.shape))
    return shape(x.shape, x.dtype, whole)


def on_chip(tree: Any) -> int:
    """Return the bytes of sharded arrays on one chip."""

    def size(leaf) -> int:
        return math.prod(leaf.sharding.shard_shape(leaf.shape)) * bits_of(leaf.dtype) // 8

    return sum(map(size, jax.tree.leaves(tree)))


def in_all(tree: Any) -> int:
    """Return the total bytes of arrays, without replicas."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _with_lora(decoder: Decoder, settings: Training, mesh: jax.sharding.Mesh) -> Decoder:
    """Return an abstract decoder with LoRA matrices."""
    graph, state = nnx.split(decoder)
    graphs: list[nnx.GraphDef] = []

    def add(state: nnx.State) -> nnx.State:
        graph_with, state_with = nnx.split(add_lora(nnx.merge(graph, state), settings.lora, 0))
        graphs.append(graph_with)
        return state_with

    shapes = jax.eval_shape(add, state)
    return nnx.merge(graphs[0], on_mesh(shapes, mesh))
