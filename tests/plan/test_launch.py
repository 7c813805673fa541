"""`colm plan --launch`: hours from costs and workload, compared with cases computed by hand."""

import dataclasses
import json

import pytest

from colm_jax.cli.main import main
from colm_jax.cli.parser import parse
from colm_jax.plan.chips import CHIPS, Chip
from colm_jax.plan.launch import (
    Machine,
    as_json,
    estimate,
    expert_passes,
    generate_estimates,
    held_up,
    score_estimate,
    scoring_batches,
    train_estimate,
    training_rows,
    training_steps,
)
from colm_jax.plan.plan import Cost, Plan
from colm_jax.plan.workload import count_texts
from colm_jax.settings.fields import default_of
from colm_jax.settings.plan import Rates, Workload
from colm_jax.settings.training import Training
from colm_jax.text.tokenizer import load_tokenizer
from tests.tiny import tiny_config, write_tokenizer

# Round numbers per second: 100 products, 10 bytes of memory, 4 bytes of interconnect.
CHIP = Chip(memory=1000, flops=100.0, bandwidth=10.0, interconnect=4.0)
RATES = Rates(efficiency=0.5, disk_bandwidth=8e-9, input_rate=16.0, price_per_chip_hour=3.0)
ON = Machine(CHIP, chips=8, hosts=2, rates=RATES)
BASE = tiny_config(width=4, depth=3)
PLAN = Plan("v5e:2x4", BASE, (BASE,), mesh=(1, 4, 2), length=10, rows=4, training=Training(batch_size=8))
WORK = Workload(texts=100, tokens=700)


def cost(program="score base", **fields):
    given = {"resident": {}, "peak": 500, "flops": 200.0, "seconds_at_peak": 2.0, "collectives": None, "fits": True}
    return Cost(program, **{**given, "reads": {"base": 30}, "texts": 8, "saved": 0, **fields})


TRAIN = cost("train", flops=4000.0, resident={"parameters": 60, "optimizer": 120}, reads={"base": 60}, saved=1600)
COSTS = [
    TRAIN,
    cost(),
    cost("score expert-1", flops=2000.0, reads={"expert-1": 300}),
    cost("decode", reads={"base": 40, "expert-1": 400}, texts=4),
]


def test_scoring_costs():
    found = score_estimate(cost(), BASE, PLAN, WORK, ON, (1, 4, 2))
    # 200 products at half of 100 per second; 30 bytes of each of four shards, read at 10; three received shards and, in
    # 3 layers, 2 all-reduces of 2 rows of 10 positions, width 4, in 2 bytes, half sent and half received.
    assert found.parts == {"products": 4.0, "memory": 12.0, "collectives": (3 * 30 + 3 * 2 * 2 * 0.5 * 160) / 4}
    assert (found.runs, found.bound) == (9, "collectives")  # 700 tokens in batches of 8 rows of 10
    assert found.hours == pytest.approx(9 * 262.5 / 3600)


def test_one_device_has_no_collectives():
    assert score_estimate(cost(), BASE, PLAN, WORK, ON, (8, 1, 1)).parts["collectives"] == 0


@pytest.mark.parametrize("tokens, rows, batches", [(700, 8, 9), (7000, 8, 88), (700, 70, 3)])
def test_scoring_batches_are_full_and_do_not_cross_shards(tokens, rows, batches):
    assert scoring_batches(Workload(texts=300, tokens=tokens), rows, 10) == batches


def test_training_costs():
    plan = dataclasses.replace(PLAN, training=Training(batch_size=8, epochs=40, checkpoint_every=100))
    found = train_estimate(TRAIN, plan, WORK, ON, (1, 4, 2), (1, 4, 2))
    assert found.runs == 500
    # Weights are gathered twice, in half of float32's bytes, gradients scattered once; all-reduces of two passes over 2
    # texts per group of chips.
    sent = 2 * 3 * 30 + 3 * 60 + 2 * (3 * 2 * 2 * 0.5 * 160)
    assert found.parts == {
        "products": 80.0,
        "memory": (2 * 30 * 4 + 2 * 180) / 10,
        "collectives": sent / 4,
        "input": 8 * 10 / 2 / 16,
        "checkpoints": 1600 / 8 / 100,
    }
    split = dataclasses.replace(plan, training=dataclasses.replace(plan.training, accumulate=2, remat="full"))
    parts = train_estimate(TRAIN, split, WORK, ON, (1, 4, 2), (1, 4, 2)).parts
    assert parts["collectives"] == 2 * (2 * 3 * 30 + 3 * 60 + 3 * (3 * 2 * 2 * 0.5 * 80)) / 4
    assert parts["memory"] == (2 * 2 * 30 * 4 + 2 * 180) / 10


def test_training_costs_with_online_experts_and_replicated_weights():
    train = dataclasses.replace(TRAIN, reads={"base": 60, "expert-1": 50})
    alone, online = (train_estimate(c, PLAN, WORK, ON, (2, 4, 1), (1, 2, 4)).parts for c in (TRAIN, train))
    assert alone["collectives"] == (2 * 3 * 30 + 3 * 60 + 2 * 0.5 * 60) / 4  # gradients are summed over data
    # The expert's other shard is received, with all-reduces of 4 texts of 10 positions, three quarters each way.
    assert online["collectives"] - alone["collectives"] == pytest.approx((50 + 3 * 2 * 2 * 0.75 * 320) / 4)
    assert online["memory"] - alone["memory"] == pytest.approx(50 * 2 / 10)


def test_lora_gathers_the_weights_in_their_stored_type():
    plan = dataclasses.replace(PLAN, training=Training(batch_size=8, trainable="lora"))
    train = dataclasses.replace(TRAIN, resident={"parameters": 60, "optimizer": 4})
    parts = train_estimate(train, plan, WORK, ON, (1, 8, 1), (1, 8, 1)).parts
    assert parts["collectives"] == (2 * 7 * 60 + 7 * 2) / 4


def test_training_steps():
    assert training_steps(WORK, PLAN) == 25  # two epochs of 100 texts, 8 per step
    padded = dataclasses.replace(PLAN, training=Training(batch_size=8, packing=False))
    assert training_steps(WORK, padded) == 25
    assert training_rows(WORK, padded, 4) == 8
    assert training_rows(WORK, PLAN, 1) == 6  # 8 texts of 7 tokens in rows of 10
    assert training_rows(WORK, PLAN, 4) == 8


def test_packed_steps_cost_what_their_rows_cost():
    work = Workload(texts=100, tokens=500)  # half of each row
    padded = dataclasses.replace(PLAN, training=Training(batch_size=8, packing=False))
    packed, whole = (train_estimate(TRAIN, plan, work, ON, (1, 4, 2), (1, 4, 2)).parts for plan in (PLAN, padded))
    assert packed["products"] == whole["products"] / 2
    assert packed["input"] == whole["input"] / 2
    assert packed["memory"] == whole["memory"]
    assert packed["collectives"] < whole["collectives"]


def test_no_checkpoint_cost_if_the_run_ends_first():
    assert train_estimate(TRAIN, PLAN, WORK, ON, (1, 4, 2), (1, 4, 2)).parts["checkpoints"] == 0


def test_generation_costs():
    work = Workload(texts=1, tokens=1, prompts=10, prompt_tokens=100, new_tokens=50, deferral_rate=0.5)
    read, written = generate_estimates(COSTS[-1], {"base": 0.25, "expert-1": 2.5}, PLAN, work, ON)
    assert expert_passes(0.5, 4) == 0.9375
    assert written.runs == 3 * 50
    assert written.parts == pytest.approx({"products": 4 * (0.25 + 2.5) / 50, "memory": (40 + 0.9375 * 400) / 10})
    assert read.runs == 2  # 1000 tokens, 512 per pass
    assert read.parts == pytest.approx({"products": 512 * 2.75 / 50, "memory": 44.0})
    never = dataclasses.replace(work, deferral_rate=0.0)
    assert generate_estimates(COSTS[-1], {"base": 0.25, "expert-1": 2.5}, PLAN, never, ON)[1].parts["memory"] == 4.0


def test_total_hours_and_price():
    work = dataclasses.replace(WORK, prompts=4)
    stages = estimate(COSTS, PLAN, work, ON, hidden=True)
    names = ["score base", "score expert-1", "hidden states", "train", "read prompts", "generate"]
    assert [stage.stage for stage in stages] == names
    result = as_json(stages, [], PLAN, work, ON)
    assert result["hours"] == pytest.approx(sum(s.runs * max(s.parts.values()) for s in stages) / 3600)
    assert result["price"] == pytest.approx(result["hours"] * 8 * 3)
    online = estimate(COSTS, dataclasses.replace(PLAN, online=True), WORK, ON, hidden=False)
    assert [stage.stage for stage in online] == ["score base", "train"]


def test_bottleneck_warnings_have_their_numbers():
    slow = dataclasses.replace(ON, chip=dataclasses.replace(CHIP, interconnect=1e9), rates=Rates(disk_bandwidth=1e-9))
    plan = dataclasses.replace(PLAN, training=Training(batch_size=8, checkpoint_every=5))
    stages = estimate(COSTS, plan, WORK, slow, hidden=True)
    said = held_up(COSTS, stages, plan, WORK, slow)
    # 1600 bytes at 1 per second, 5 steps of 100 s (4000 products at 0.4 of 100): every 16 steps is enough.
    assert any(
        line.startswith("train: checkpoints would dominate: ") and "checkpoint_every=16 " in line for line in said
    )
    assert any(line.startswith("hidden states: writing them would dominate: 1.12e-05 GB") for line in said)
    assert not any("collectives" in line for line in said)

    def of(on, costs=COSTS, work=WORK):
        return held_up(costs, estimate(costs, PLAN, work, on, hidden=False), PLAN, work, on)

    assert any(line.startswith("train: collectives would dominate: 570 s per run, against 80 s") for line in of(ON))
    starved = dataclasses.replace(ON, rates=Rates(input_rate=0.01), chip=CHIPS["v5e"])
    assert any(line.startswith("train: input would dominate: 4e+03 s per run") for line in of(starved))
    large = [dataclasses.replace(COSTS[0], fits=False, peak=3 * 2**30), *COSTS[1:]]
    assert any(line.startswith("train: does not fit: 3.0 GiB") for line in of(ON, large))
    waits = dataclasses.replace(WORK, tokenising=3600.0 * 9)
    assert any(line.startswith("tokens: one host tokenises for 9.00 hours") for line in of(ON, work=waits))
    calm = dataclasses.replace(ON, chip=dataclasses.replace(CHIP, interconnect=1e9))
    assert of(calm) == []


def test_texts_are_counted_as_in_training(tmp_path):
    tokenizer, data = load_tokenizer(write_tokenizer(tmp_path / "tokenizer")), tmp_path / "data.jsonl"
    records = [{"text": "abc"}, {"text": "abcdefghij"}, {"text": ""}, {"prompt": "abcdefg", "completion": "h"}]
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    texts, tokens, seconds = count_texts(data, tokenizer, length=8)
    assert (texts, tokens) == (2, 4 + 8)  # one is only <s>, one is truncated before its completion
    assert seconds > 0


def test_help_shows_the_defaults(capsys):
    with pytest.raises(SystemExit):
        parse(["plan", "--help"])
    shown = " ".join(capsys.readouterr().out.split()).partition("what is assumed:")[2]
    names = [(Workload, name) for name in ("prompts", "prompt_tokens", "new_tokens", "deferral_rate")]
    for kind, name in (*names, (Rates, "efficiency"), (Rates, "disk_bandwidth"), (Rates, "input_rate")):
        assert f"(default: {default_of(kind, name)})" in shown.partition(f"--{name} ")[2].partition(" --")[0]


@pytest.mark.parametrize(
    "options, message",
    [
        (["--texts", "5"], "--texts: is for --launch"),
        (["--launch"], "needs --data FILE, or --texts N"),
        (["--launch", "--texts", "5", "--data", "x"], "but not both"),
        (["--launch", "--data", "x", "--tokens", "5"], "--tokens: goes with --texts"),
        (["--launch", "--texts", "0"], "texts must be a whole number of at least 1, got 0"),
        (["--launch", "--texts", "5", "--deferral_rate", "2"], "deferral_rate must be a number from 0 to 1, got 2.0"),
        (
            ["--launch", "--texts", "5", "--efficiency", "0"],
            "efficiency must be a number above 0 and at most 1, got 0.0",
        ),
        (
            ["--launch", "--texts", "5", "--price_per_chip_hour", "-1"],
            "price_per_chip_hour must be a number above 0, got -1.0",
        ),
        (["--launch", "--data", "missing.jsonl"], "missing.jsonl: cannot be read"),
    ],
)
def test_invalid_launch_options_are_a_one_line_error(capsys, tiny_model, options, message):
    models = ["--base", str(tiny_model("a")), "--expert", str(tiny_model("b"))]
    assert main(["plan", "--topology", "v5e:2x2", *models, *options]) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_base_without_tokenizer_needs_text_and_token_counts(capsys, tiny_model):
    base = tiny_model("a")
    (base / "tokenizer.json").unlink()
    options = ["--launch", "--topology", "v5e:2x2", "--base", str(base), "--expert", str(tiny_model("b"))]
    assert main(["plan", *options, "--data", "x.jsonl"]) == 2
    assert "no tokenizer (tokenizer.json) in it; without it give --texts" in capsys.readouterr().err
