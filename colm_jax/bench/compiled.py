"""`colm bench compiled`: bytes that the compiled programs move to and from a TPU chip's memory, over the least.

The programs are those of `colm plan` (the decoding loop, the scorer's pass, the trainer's step), compiled for one chip
without hardware. `hbm` counts their bytes; each minimum follows from the configuration alone:

- A decode step reads the weights once, without the embedding table (of which it reads a row; a tied head is the table
  and is read), and the caches once. It is a turn of a scan, whose entry is shared by its turns.
- Scoring and training consist of fused stages: the layer's first products (query, key, value), attention, its output,
  the feed-forward layer's first products, and its last. A stage reads its inputs and writes its result once; norms,
  activations and residuals belong to the stage beside them. A layer's weights are read once a pass. The head is applied
  to chunks of positions whose logits stay on the chip (`scoring.chunks`), so its kernel is read once a chunk.
- Training with `remat` "full" passes over the layers forward, forward again, and backward, which moves the activations
  of two passes; between the passes it keeps each layer's input. Weights are cast once and read in three passes. A chunk
  of the head reads its kernel three times and adds to its gradient. The update reads and writes the float32 parameters
  and both moments, and the gradient is written and read once.

A compiler that keeps a stage's result on the chip moves less than this minimum.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax

from colm_jax.bench.hbm import hbm_bytes
from colm_jax.bench.models import pair_of
from colm_jax.bench.timing import Announce, Figure
from colm_jax.checkpoints.huggingface import DTYPES
from colm_jax.checkpoints.layout import abstract_decoder
from colm_jax.decoding.engine import TURNS
from colm_jax.models.config import ModelConfig
from colm_jax.parallel import make_mesh
from colm_jax.plan.plan import topology_devices
from colm_jax.plan.programs import Program, decoding_program, scoring_program, training_program
from colm_jax.scoring.chunks import chunk_size
from colm_jax.settings.bench import CompiledBench
from colm_jax.settings.training import Training

# Most bytes over the minimum.
TARGETS = {"base step": 1.05, "expert pass": 1.10, "scoring": 1.5, "training step": 2.0}


@dataclass(frozen=True)
class Weights:
    """Numbers of a model's parameters."""

    layers: int  # norms included
    table: int  # embedding
    head: int  # its kernel, which is the table where it is tied
    tied: bool

    @classmethod
    def of(cls, config: ModelConfig) -> "Weights":
        """Count the parameters of a configuration."""
        table = config.vocab_size * config.width
        every = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_decoder(config)))
        return cls(every - table * (1 if config.tied else 2), table, table, config.tied)

    @property
    def all(self) -> int:
        """All parameters."""
        return self.layers + self.table + (0 if self.tied else self.head)


def stage_values(config: ModelConfig) -> int:
    """Return the values that a layer's stages read and write for a token."""
    width, ff = config.width, config.ff
    query, pair = config.heads * config.head_dim, 2 * config.kv_heads * config.head_dim
    projections = width + query + pair
    attention = query + pair + query
    output = query + 2 * width
    return projections + attention + output + (width + ff) + (ff + 2 * width)


def decoding_minimum(config: ModelConfig, size: int, program: Program, model: str) -> int:
    """Return the bytes of a base step or an expert pass; `size` is that of a weight, `model` its name in `reads`."""
    weights = Weights.of(config)
    return program.reads[model] - (0 if weights.tied else weights.table * size)


def scoring_minimum(config: ModelConfig, size: int, texts: int, length: int) -> int:
    """Return the bytes of a batch's scores; `size` is that of a weight and an activation."""
    weights, positions = Weights.of(config), texts * length
    chunks = -(-length // chunk_size(texts, config.vocab_size))
    activations = config.depth * stage_values(config) + 3 * config.width  # and into the layers and the head
    return size * (weights.layers + chunks * weights.head + positions * activations)


def training_minimum(config: ModelConfig, size: int, texts: int, length: int) -> int:
    """Return the bytes of a training step of all weights with `remat` "full"; arguments as of `scoring_minimum`."""
    weights, positions = Weights.of(config), texts * length
    chunks = -(-length // chunk_size(texts, config.vocab_size))
    update = 4 * weights.all * (2 + 4 + 2)  # parameters, moments, gradient
    cast = (4 + size) * (weights.layers + weights.head)
    products = size * (3 * weights.layers + chunks * (3 + 2) * weights.head)
    layers = config.depth * (4 * stage_values(config) + 2 * config.width)
    return update + cast + products + size * positions * (layers + 2 * 3 * config.width)


def pieces(settings: CompiledBench) -> int:
    """Return how many programs are compiled."""
    return len(TARGETS)


def measure(settings: CompiledBench, announce: Announce) -> tuple[list[Figure], dict[str, Any]]:
    """Compile the programs and return their bytes over the minimum; `failed` names those above their target.

    Raises:
      UserError: no libtpu, or no such topology.
    """
    base, expert = pair_of(settings)
    dtype, length, slots = settings.dtype, settings.length, settings.slots
    size = DTYPES[dtype].dtype.itemsize
    mesh = make_mesh(devices=topology_devices(settings.topology)[:1])
    training = Training(batch_size=settings.batch_size, remat="full", objective="sft")
    experts = [(expert, dtype, mesh)]

    def scored(program: Program) -> int:
        return scoring_minimum(base, size, program.texts, length - 1)

    def trained(program: Program) -> int:
        return training_minimum(base, size, program.texts, length - 1)

    works: dict[str, tuple[Callable[[], Program], int, Callable[[Program], int]]] = {
        "base step": (
            partial(decoding_program, base, [], dtype, length, slots, mesh, False, "base", TURNS),
            TURNS,
            lambda program: decoding_minimum(base, size, program, "base"),
        ),
        "expert pass": (
            partial(decoding_program, base, experts, dtype, length, slots, mesh, False, "expert", TURNS),
            TURNS,
            lambda program: decoding_minimum(expert, size, program, "expert-1"),
        ),
        "scoring": (partial(scoring_program, "score base", base, dtype, dtype, length, mesh), 1, scored),
        "training step": (partial(training_program, base, experts, training, dtype, length, mesh, False), 1, trained),
    }
    figures, counted = [], {}
    for name, (make, runs, minimum) in works.items():
        announce(name)
        program = make()
        text = program.traced.lower(lowering_platforms=("tpu",)).compile().as_text()
        moved, least = hbm_bytes(text) / runs, minimum(program)
        counted[name] = {"hbm_bytes": round(moved), "minimum_bytes": least}
        figures.append(Figure(f"{name}: HBM bytes / minimum", moved / least, at_most=TARGETS[name]))
    failed = [figure.name for figure in figures if not figure.met]
    return figures, {"settings": settings.__dict__, "bytes": counted, "failed": failed, "left_out": {}}
