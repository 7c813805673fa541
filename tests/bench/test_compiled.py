"""`colm bench compiled`: its programs compile without hardware, its minima are those of the shapes, and it can fail."""

import json

import pytest

from colm_jax.bench import compiled
from colm_jax.bench.compiled import Weights, decoding_minimum, scoring_minimum, stage_values, training_minimum
from colm_jax.bench.models import pair_of
from colm_jax.cli.main import main
from colm_jax.errors import UserError
from colm_jax.parallel import make_mesh
from colm_jax.plan.programs import decoding_program
from colm_jax.scoring.chunks import chunk_size
from colm_jax.settings.bench import CompiledBench
from tests.tiny import tiny_config

SMALL = {"vocab_size": 512, "base_width": 256, "base_heads": 2, "base_ff": 512, "base_depth": 1}
SMALL |= {"expert_width": 256, "expert_heads": 2, "expert_ff": 512, "expert_depth": 1}
FLAGS = [*(f"--gin.CompiledBench.{name}={value}" for name, value in SMALL.items()), "--length", "128"]
pytestmark = pytest.mark.usefixtures("unchecked_types")  # programs are compiled from shapes


def test_the_command_prints_every_figure_and_fails_above_a_target(capsys, monkeypatch):
    monkeypatch.setitem(compiled.TARGETS, "scoring", 0.01)
    assert main(["bench", "compiled", "--topology", "v5e:2x2", *FLAGS]) == 1
    said = capsys.readouterr()
    result = json.loads(said.out)
    assert [figure["name"].partition(":")[0] for figure in result["figures"]] == list(compiled.TARGETS)
    assert result["failed"] == ["scoring: HBM bytes / minimum"]
    assert "above the target: scoring: HBM bytes / minimum" in said.err
    base, expert = (result["bytes"][name]["hbm_bytes"] for name in ("base step", "expert pass"))
    weights = 2 * (4 * 256**2 + 3 * 256 * 512 + 256 * 512)
    assert min(base, expert) > weights  # they are read in each of the loop's turns


def test_without_libtpu_the_remedy_is_named(capsys, monkeypatch):
    def missing(**_):
        raise RuntimeError("no libtpu")

    monkeypatch.setattr("jax.experimental.topologies.get_topology_desc", missing)
    assert main(["bench", "compiled", *FLAGS]) == 2
    assert "pip install 'colm-jax[plan]'" in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("tied", [False, True])
def test_minima_are_those_of_the_shapes(tied):
    config = tiny_config(width=8, depth=3, heads=4, kv_heads=2, head_dim=2, ff=16, vocab_size=32, tied=tied)
    weights = Weights.of(config)
    layer = 8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 16 + 2 * 8
    assert (weights.layers, weights.table) == (3 * layer + 8, 32 * 8)
    assert weights.all == weights.layers + (1 if tied else 2) * 32 * 8
    # Of a token: query, key and value [8 + 16]; attention [16 + 8]; its output [8 + 8 + 8]; [8 + 16]; [16 + 8 + 8].
    stages = 24 + 24 + 24 + 24 + 32
    assert stage_values(config) == stages
    assert scoring_minimum(config, 2, 4, 10) == 2 * (weights.layers + weights.head + 40 * (3 * stages + 3 * 8))
    few = chunk_size(4, config.vocab_size) + 1  # one position too many for one chunk
    twice = 2 * (weights.layers + 2 * weights.head + 4 * few * (3 * stages + 3 * 8))
    assert scoring_minimum(config, 2, 4, few) == twice
    training = 32 * weights.all + 6 * (weights.layers + weights.head) + 2 * (3 * weights.layers + 5 * weights.head)
    training += 2 * 40 * (3 * (4 * stages + 2 * 8) + 6 * 8)
    assert training_minimum(config, 2, 4, 10) == training
    program = decoding_program(config, [], "bfloat16", 64, 2, make_mesh(), False, "base")
    cache = 2 * 3 * (2 * 2 * (64 + 16) * 2) * 2 + 2 * 4  # with room for a pass, and the lengths
    read = weights.layers + weights.head
    assert decoding_minimum(config, 2, program, "base") == pytest.approx(2 * read + cache, abs=8)


def test_heads_that_do_not_divide_the_width_are_an_error():
    with pytest.raises(UserError, match="base_width 100 must be a multiple of CompiledBench"):
        CompiledBench(base_width=100)
    assert pair_of(CompiledBench(length=64))[0].context == 64
