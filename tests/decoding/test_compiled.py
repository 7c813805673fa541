"""What the compiled loop does not do: copy a cache or a weight, or read a model that is not called, step by step."""

import math
import re
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from colm_jax.checkpoints.team import make_gate
from colm_jax.decoding.engine import Engine
from colm_jax.decoding.loop import run_turns
from colm_jax.decoding.slots import ROOM, BatchShape
from colm_jax.decoding.speculation import DRAFTS
from colm_jax.models import transposed
from colm_jax.models.decoder import Decoder
from colm_jax.models.transposed import TransposedKernel
from colm_jax.parallel import make_mesh
from colm_jax.plan.plan import topology_devices
from colm_jax.plan.programs import decoding_program
from colm_jax.settings.generation import GenerationSettings
from colm_jax.settings.strategies import STRATEGIES
from tests.decoding.team import decoders, engine_of
from tests.models.test_sampling import computations, reached
from tests.tiny import tiny_config

# Sizes by whose prime factors each array is known: 3 and 19 of a cache, 3 and 11 or 13 of a weight.
LENGTH = 152 - ROOM  # of a cache with its room: 8 · 19
pytestmark = pytest.mark.usefixtures("unchecked_types")  # programs are compiled from shapes

MODEL = tiny_config(width=88, heads=6, kv_heads=3, head_dim=8, ff=104, vocab_size=34, depth=2)
ON_TPU = tiny_config(width=256, heads=8, kv_heads=4, head_dim=128, ff=512, vocab_size=512, depth=2)


@cache
def compiled(platform: str, rows: int, speculate: bool = False) -> str:
    """The text of a turn of the loop."""
    if platform == "cpu":
        config, dtype, devices = MODEL, "float32", jax.devices()[:1]
    else:
        config, dtype, devices = ON_TPU, "bfloat16", topology_devices("v5e:2x2")[:1]
    mesh = make_mesh(1, 1, 1, devices=devices)
    program = decoding_program(config, [(config, dtype, mesh)], dtype, LENGTH, rows, mesh, speculate)
    return program.traced.lower().compile().as_text()


def moved(text: str, size: int) -> list[str]:
    """Copies and transposes of so many elements outside the entry computation."""
    found, inside = [], False
    for line in text.splitlines():
        if line and not line[0].isspace():
            inside = not line.startswith("ENTRY")
        match = re.search(r"= \(?\w+\[([\d,]+)\]\S* (?:copy|transpose|copy-start)\(", line)
        if inside and match and math.prod(map(int, match[1].split(","))) == size:
            found.append(line.strip())
    return found


@pytest.mark.parametrize("speculate", [False, True])
@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_the_loop_copies_no_cache(platform, rows, speculate):
    config = MODEL if platform == "cpu" else ON_TPU
    size = rows * config.kv_heads * (LENGTH + ROOM) * config.head_dim
    text = compiled(platform, rows, speculate)
    if speculate:  # nor the drafts' logits, which the size of the vocabulary tells from other arrays of their size
        moves = moved(text, rows * DRAFTS * config.vocab_size)
        assert [move for move in moves if re.search(rf"[\[,]{config.vocab_size}[,\]]", move)] == []
    shape = f"[{rows},{config.kv_heads},{LENGTH + ROOM},{config.head_dim}]"
    assert shape in text  # the cache is there
    assert moved(text, size) == []


@pytest.mark.parametrize("rows", [1, 8])
def test_the_loop_moves_no_weight(rows):
    text = compiled("cpu", rows)
    projection = MODEL.width * MODEL.heads * MODEL.head_dim
    assert f"f32[{MODEL.heads},{MODEL.head_dim},{MODEL.width}]" in text  # the weights are there
    for size in (projection, projection // 2, MODEL.width * MODEL.ff):
        assert moved(text, size) == []


@pytest.mark.parametrize("rows", [1, 2])
def test_the_loop_moves_no_transposed_weight(rows, monkeypatch):
    monkeypatch.setattr(transposed, "LEAST", 0)

    def is_kernel(leaf):
        return isinstance(leaf, TransposedKernel)

    sizes = [dict(width=64 * n, heads=n, kv_heads=n, head_dim=64, ff=64 * (24 - n), depth=1) for n in (11, 13)]
    base, expert = (Decoder(replace(MODEL, **fields), nnx.Rngs(0)) for fields in sizes)
    gate = make_gate(np.zeros((base.config.width, 1), np.float32))
    engine = Engine(base, gate, [expert], np.ones(MODEL.vocab_size, bool), (), LENGTH)
    loop = engine.loop_config(GenerationSettings("defer"), rows)
    state = engine.empty_state(loop, BatchShape(rows, LENGTH))
    text = run_turns.lower(engine.graphs, loop, engine.models, state, jnp.int32(1)).compile().as_text()
    kernels = [leaf.rows.shape for leaf in jax.tree.leaves(engine.models, is_leaf=is_kernel) if is_kernel(leaf)]
    assert len(kernels) == 2 * (7 + 1)  # all kernels of both models' layers, and their heads
    for shape in set(kernels):
        assert "f32[" + ",".join(map(str, shape)) + "]" in text
        assert moved(text, math.prod(shape)) == []


@pytest.mark.parametrize(("strategy", "mentioned"), [("base", False), ("defer", True)])
def test_where_no_expert_is_called_the_loop_has_none(strategy, mentioned):
    engine = engine_of(1)
    graphs, models = engine.needed_by(STRATEGIES[strategy])
    loop = engine.loop_config(GenerationSettings(strategy), 2)
    state = engine.empty_state(loop, BatchShape(2))
    text = run_turns.lower(graphs, loop, models, state, jnp.int32(1)).as_text()
    expert = decoders()[1].config
    assert (f"tensor<{expert.width}x{expert.ff}xf32>" in text) == mentioned


@pytest.mark.parametrize("rows", [1, 8])
def test_a_step_of_greedy_slots_sorts_nothing(rows):
    """The vocabulary is sorted within a branch only, which a batch without top-k and top-p never runs."""
    bodies = computations(compiled("cpu", rows))
    sorts = {name for name, body in bodies.items() if re.search(r" (sort|topk)\(|TopK", body)}
    assert sorts <= reached(bodies, conditional=True) and sorts
    assert not sorts & reached(bodies, conditional=False)
