"""`colm plan` compiles for TPU topologies without hardware (libtpu); its figures agree with those counted by hand."""

import dataclasses
import json
import math
from functools import lru_cache
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from colm_jax.checkpoints import describe
from colm_jax.checkpoints.describe import packed_parts
from colm_jax.checkpoints.huggingface import load_model, read_config
from colm_jax.checkpoints.layout import abstract_decoder
from colm_jax.cli.main import main
from colm_jax.errors import UserError
from colm_jax.parallel import make_mesh
from colm_jax.plan.chips import CHIPS
from colm_jax.plan.plan import Plan, advice, collectives, compile_plan, matrix_flops
from colm_jax.plan.programs import model_of
from colm_jax.settings.training import Lora, Training
from tests.checkpoints.quantized.checkpoints import gpt_oss, quantized
from tests.checkpoints.quantized.packers import write
from tests.models.families import CONFIGS, weights
from tests.tiny import tiny_config

MODELS = Path(__file__).parents[2] / "configs/models"
TRAINING = Training(batch_size=8, remat="full")
TINY = tiny_config(width=128, ff=256, heads=8, kv_heads=4, head_dim=16, vocab_size=512)
PLAN = Plan("v5e:2x2", TINY, (TINY,), length=128, training=TRAINING)


@lru_cache
def costs(plan):
    return {cost.program: cost for cost, _ in compile_plan(plan)}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mesh": (1, 2, 2), "expert_mesh": (1, 1, 4), "expert_dtype": "int8", "online": True},
        {"expert_dtype": "int4", "training": dataclasses.replace(TRAINING, trainable="lora", lora=Lora(rank=4))},
        {"training": dataclasses.replace(TRAINING, objective="weak", packing=False, accumulate=2)},
    ],
    ids=["plain", "online-int8", "lora-int4", "weak-parts"],
)
def test_every_program_compiles_and_fits(changes):
    found = costs(dataclasses.replace(PLAN, **changes))
    assert list(found) == ["train", "score base", "score expert-1", "decode"]
    for cost in found.values():
        assert cost.fits
        assert sum(cost.resident.values()) < cost.peak < CHIPS["v5e"].memory
        assert cost.flops > 0
    assert bool(found["train"].resident["experts"]) == changes.get("online", False)


def test_memory_equals_that_of_the_shapes():
    found = costs(PLAN)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_decoder(TINY)))
    gate, norms = 128, TINY.width * (2 * TINY.depth + 1)
    train = found["train"].resident
    assert train["parameters"] == pytest.approx(4 * (count + gate) / 4, rel=1e-3)  # float32, four chips
    assert train["optimizer"] == pytest.approx(2 * train["parameters"], rel=1e-3)  # two moments
    assert found["score base"].resident["parameters"] == pytest.approx(2 * count / 4, abs=2 * norms)  # bfloat16


def test_flops_equal_those_of_the_products():
    """Scoring: two per weight and token, plus attention; the same on any number of chips."""
    found = costs(PLAN)
    train, score = found["train"], found["score base"]
    tokens = score.texts * 127
    weights = sum(leaf.size for leaf in jax.tree.leaves(abstract_decoder(TINY)))
    products = weights - 512 * 128 - 128 * (2 * TINY.depth + 1)  # without the embedding table and norms
    attention = 2 * 2 * 127 * 128 * TINY.depth  # every pair of tokens of a row
    assert score.flops * 4 == pytest.approx(tokens * (2 * products + attention), rel=1e-6)
    # The backward pass takes twice the forward pass, and `full` repeats the layers.
    assert 3.6 < train.flops / train.texts / (score.flops / score.texts) < 4.1


def test_loop_bodies_are_counted_once_per_iteration():
    def repeated(x):
        return jax.lax.scan(lambda x, _: (jax.lax.cond(x[0, 0] > 0, lambda: x @ x, lambda: x), None), x, length=5)[0]

    jaxpr = jax.make_jaxpr(jax.jit(repeated))(jnp.ones((8, 8)))
    assert matrix_flops(jaxpr.jaxpr) == 5 * 2 * 8**3


def test_collectives_are_parsed_from_the_compiled_text():
    text = """
  %all-gather.3 = bf16[4096,128]{1,0:T(8,128)} all-gather(%p), dimensions={0}
  %all-reduce-start.1 = f32[16]{0} all-reduce-start(%x), to_apply=%add
  %all-gather.4 = (bf16[8]{0}, bf16[64]{0}) all-gather-start(%q), dimensions={0}
  %fusion = f32[16]{0} fusion(%all-gather.3), kind=kLoop
"""
    found = collectives(text)
    assert found["all-gather"] == {"count": 2, "largest_bytes": 4096 * 128 * 2}
    assert found["all-reduce"] == {"count": 1, "largest_bytes": 64}


def test_program_without_readable_text_is_still_measured(monkeypatch):
    def unreadable(self):
        raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure")

    monkeypatch.setattr(jax.stages.Compiled, "as_text", unreadable)
    cost = next(cost for cost, _ in compile_plan(PLAN, only="score base"))
    assert cost.collectives is None
    assert cost.fits


def test_activations_are_sharded_by_texts_and_parameters_gathered_within_their_layer():
    """Without constraints the compiler shards the residual stream like the weights and needs a whole batch's logits."""
    plan = dataclasses.replace(PLAN, length=2048, training=Training(batch_size=4, remat="full"))
    base = dataclasses.replace(read_config(MODELS / "llama2-7b"), depth=4)
    cost = costs_of_training(dataclasses.replace(plan, base=base, mesh=(1, 4, 1)))
    layer = base.width * base.ff * 2  # bytes of its largest kernel, bfloat16
    head = base.width * base.vocab_size * 2
    assert layer < head  # which is split by vocabulary
    for kind in ("all-gather", "all-reduce"):
        assert cost.collectives[kind]["largest_bytes"] <= layer
    rest = cost.peak - sum(cost.resident.values())
    assert rest < 3 * 2**30  # 14 GiB if the stream is sharded over D


@pytest.mark.parametrize(
    "fields, mesh",
    [
        ({"tied": True}, (1, 4, 1)),
        ({"tied": False}, (1, 4, 1)),
        ({"tied": True, "vocab_size": 8191}, (1, 4, 1)),
        ({"tied": True}, (1, 2, 2)),
    ],
    ids=str,
)
def test_no_device_gathers_the_vocabulary(fields, mesh):
    """Neither the table's and the head's weights nor their gradients: they are exchanged in parts."""
    base = dataclasses.replace(TINY, **{"vocab_size": 8192, **fields})
    cost = costs_of_training(dataclasses.replace(PLAN, base=base, mesh=mesh, length=32))
    layer = base.width * base.ff * 2  # bytes of its largest kernel, bfloat16
    assert layer < base.width * base.vocab_size * 2 / 4
    for kind in ("all-gather", "all-reduce"):
        assert cost.collectives[kind]["largest_bytes"] <= layer
    assert cost.collectives["all-to-all"]["largest_bytes"] >= base.width * base.vocab_size * 2 // 4


def costs_of_training(plan):
    return next(cost for cost, _ in compile_plan(plan, only="train"))


@pytest.mark.parametrize("program", ["train", "score base"])
def test_memory_beside_weights_grows_with_the_tokens_not_with_their_square(program):
    base = tiny_config(width=256, ff=256, heads=8, kv_heads=4, head_dim=32, vocab_size=512)
    plan = dataclasses.replace(PLAN, base=base, training=Training(batch_size=4, remat="full", packing=True))
    rest = []
    for length in (2048, 8192):
        cost = next(compile_plan(dataclasses.replace(plan, length=length), only=program))[0]
        rest.append(cost.peak - sum(cost.resident.values()))
    assert rest[1] <= 4.4 * rest[0]
    assert rest[1] < 4 * 8192**2  # bytes of a single head's scores


def test_flops_per_chip_do_not_grow_with_the_chips():
    """At constant texts per chip, flops per chip are the same on 4 and on 16."""
    few, many = (
        costs_of_training(
            dataclasses.replace(PLAN, topology=t, training=dataclasses.replace(TRAINING, batch_size=2 * n))
        )
        for t, n in (("v5e:2x2", 4), ("v5e:4x4", 16))
    )
    assert few.flops == pytest.approx(many.flops, rel=1e-6)
    assert many.peak < few.peak


@pytest.mark.parametrize(
    "topology, mesh, program",
    [("v5e:4x4", (1, 2, 8), "train"), ("v5p:2x2x2", (1, 8, 1), "score expert-1"), ("v6e:4x4", (1, 2, 8), "decode")],
)
def test_llama_2_7b_with_70b_fits(topology, mesh, program):
    base, expert = (read_config(MODELS / name) for name in ("llama2-7b", "llama2-70b"))
    training = Training(batch_size=16, remat="full")
    plan = Plan(topology, base, (expert,), mesh=mesh, training=training)
    cost = next(cost for cost, _ in compile_plan(plan, only=program))
    assert cost.fits
    if program == "decode":
        assert 140e9 / 16 < sum(cost.resident.values()) < 200e9 / 16  # 7 + 70 billion, two bytes each, and caches
    if program == "train":
        assert sum(cost.resident.values()) == pytest.approx(6.74e9 * 12 / 16, rel=0.01)  # float32 and two moments


def test_program_that_does_not_fit_suggests_changes():
    base = read_config(MODELS / "llama2-7b")
    deep = dataclasses.replace(base, depth=2)
    plan = dataclasses.replace(PLAN, base=deep, length=2048, mesh=(4, 1, 1), training=Training(batch_size=32))
    cost, change = next(compile_plan(plan, only="train"))
    assert not cost.fits
    assert cost.peak > CHIPS["v5e"].memory
    assert change[0].startswith("--gin.Training.")
    assert any("remat" in line for line in change)
    assert any("accumulate=2" in line for line in change)
    assert advice(dataclasses.replace(cost, fits=True), plan) == []


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("name", ["int8, one run", "int8, two runs", "gptq", "gpt_oss"])
def test_quantised_shapes_equal_those_of_loading(tmp_path, name, stacked):
    mesh = make_mesh(1, 2, 2)
    if name.startswith("int8"):
        config = CONFIGS["deepseek-v3" if "two" in name else "llama"]
        model, kind, how = write(tmp_path, config, weights(config)), "int8", {"quantize": "int8"}
    else:
        model = gpt_oss(tmp_path)[0] if name == "gpt_oss" else quantized(name, tmp_path)[0]
        kind, how = packed_parts(model), {"packed": True}
    loaded, _ = load_model(model, "bfloat16", mesh, stacked=stacked, **how)
    planned = model_of(read_config(model), kind, "bfloat16", mesh, stacked)

    def described(decoder):
        flat = jax.tree.leaves_with_path(nnx.to_pure_dict(nnx.state(decoder)))
        return {
            jax.tree_util.keystr(path): (leaf.shape, leaf.dtype, leaf.sharding.shard_shape(leaf.shape))
            for path, leaf in flat
        }

    assert described(planned) == described(loaded)


def test_an_expert_stored_in_few_bits_is_planned_so(tmp_path):
    model, _ = quantized("gptq", tmp_path)
    config = read_config(model)
    plan = dataclasses.replace(PLAN, base=config, experts=(config,))
    few = dataclasses.replace(plan, packed=(packed_parts(model),))
    plain, packed, decode = (
        next(compile_plan(each, only=name))[0]
        for each, name in ((plan, "score expert-1"), (few, "score expert-1"), (few, "decode"))
    )
    assert packed.fits and decode.fits
    assert packed.resident["parameters"] < 0.7 * plain.resident["parameters"]
    assert decode.resident["experts"] == packed.resident["parameters"]


def test_a_quantised_expert_without_its_weights_is_refused(tmp_path, monkeypatch):
    model, _ = quantized("gptq", tmp_path)
    (model / "model.safetensors").unlink()
    monkeypatch.setattr(describe, "resolve", lambda name, weights: model)
    with pytest.raises(UserError, match=r"model 'owner/name': is quantised, and its weights are not downloaded"):
        packed_parts("owner/name")


def test_command_prints_the_plan(capsys, tiny_model):
    models = ["--base", str(tiny_model("a")), "--expert", str(tiny_model("b"))]
    options = ["--topology", "v5e:2x2", "--length", "64", "--gin.Training.batch_size=8", "--launch", "--texts", "400"]
    assert main(["plan", *models, *options, "--prompts", "9", "--price_per_chip_hour", "2"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert result["fits"] is True
    assert [program["program"] for program in result["programs"]][-1] == "decode"
    launch = result["launch"]
    assert launch["workload"]["tokens"] == 400 * 64
    assert {stage["stage"]: stage["runs"] for stage in launch["stages"]} == {
        "score base": 7,
        "score expert-1": 7,
        "hidden states": 7,
        "train": 100,
        "read prompts": 3,
        "generate": 512,
    }
    assert launch["price"] == pytest.approx(2 * 4 * launch["hours"])
    assert "v5e:2x2: 4 chips, 400 texts" in captured.err


@pytest.mark.parametrize(
    "options, message",
    [
        (["--topology", "v9:2x2"], "must be KIND:SHAPE"),
        (["--topology", "v5e:3x3"], "topology v5e:3x3"),
        (["--topology", "v5e:2x2", "--mesh", "1,2,1"], "has 4 chips, not 2"),
        (["--topology", "v5e:2x2", "--gin.Training.batch_size=6"], "batch_size 6"),
        (["--topology", "v5e:2x2", "--length", "0"], "at least 1"),
    ],
)
def test_invalid_plan_options_are_a_one_line_error(capsys, tiny_model, options, message):
    models = ["--base", str(tiny_model("a")), "--expert", str(tiny_model("b"))]
    assert main(["plan", *models, *options]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error
    assert error.startswith("colm: ")
