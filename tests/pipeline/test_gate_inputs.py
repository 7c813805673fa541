"""Runs whose gate reads the base's uncertainty: what is stored and made anew, and that the default keeps its keys."""

import json
from dataclasses import replace

import numpy as np

from colm_jax import CoLM
from colm_jax.pipeline.run import run_pipeline
from colm_jax.settings.run import RunConfig
from colm_jax.settings.training import Training
from tests.pipeline.test_run import inputs  # noqa: F401


def settings_of(run, stage):
    return json.loads((run / stage / "manifest.json").read_text())["settings"]


def test_a_run_stores_what_the_gate_reads_and_answers_by_it(tmp_path, inputs):  # noqa: F811
    out = tmp_path / "run"
    config = RunConfig(**inputs, max_new_tokens=8, training=Training(trainable="gate"))
    run_pipeline(config, out, until="train")
    assert settings_of(out, "hidden") == {"dtype": "float32"}
    assert "gate_inputs" not in settings_of(out, "train")  # runs from before there was a choice stay done
    kept = (out / "scores/base/manifest.json").stat().st_mtime_ns

    uncertain = replace(config, training=replace(config.training, gate_inputs="uncertainty"))
    evaluation = run_pipeline(uncertain, out).evaluation
    assert settings_of(out, "hidden") == {"dtype": "float32", "gate_inputs": "uncertainty"}
    assert settings_of(out, "train")["gate_inputs"] == "uncertainty"
    assert (out / "scores/base/manifest.json").stat().st_mtime_ns == kept
    assert np.load(out / "hidden/shard-00000.npy").shape[1] == 35
    team = CoLM.from_pretrained(out / "team")
    assert team.facts["gate"] == {"width": 32, "experts": 1, "inputs": "uncertainty"}
    assert np.abs(np.asarray(team.gate.kernel[32:])).min() > 0
    lines = [json.loads(line) for line in (out / "generate/defer.jsonl").read_text().splitlines()]
    prompts = [{"input_ids": team.tokenizer.encode(line["prompt"])} for line in lines]
    found = team.generate(prompts, threshold=team.calibrated_threshold, max_new_tokens=8)
    assert [answer.tokens for answer in found] == [line["tokens"] for line in lines]
    assert evaluation["text"]["team"] < evaluation["text"]["base"] + 1


def test_a_gate_of_zeros_has_a_row_for_each_value(tmp_path, inputs):  # noqa: F811
    training = Training(batch_size=8, epochs=1, gate_inputs="uncertainty")
    config = RunConfig(**inputs, expert_scores="online", training=training)
    run_pipeline(config, tmp_path / "run", until="train")
    assert np.load(tmp_path / "run/gate/kernel.npy").shape == (35, 1)
    assert CoLM.from_pretrained(tmp_path / "run/train/team", experts=[]).gate.kernel.shape == (35, 1)
