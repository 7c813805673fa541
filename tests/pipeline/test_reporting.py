"""The report's curves are what training logged."""

import json

import pytest

from colm_jax.pipeline.reporting import training_curves


def logged(path, count, **more):
    lines = [{"step": step, "loss": 1 / step, **more} for step in range(1, count + 1)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_curves_of_a_joint_training(tmp_path):
    path = logged(tmp_path / "metrics.jsonl", 5, expected_deferral=0.25, responsibility_entropy=0.5)
    loss, gate = training_curves(path)
    assert loss.lines["loss"] == [(step, pytest.approx(1 / step)) for step in (1, 2, 3, 4, 5)]
    assert {y for line in gate.lines.values() for _, y in line} == {0.25, 0.5}


def test_a_gate_fitted_alone_logs_its_loss_only(tmp_path):
    (loss,) = training_curves(logged(tmp_path / "metrics.jsonl", 3))
    assert len(loss.lines["loss"]) == 3


def test_many_steps_are_averaged(tmp_path):
    (loss,) = training_curves(logged(tmp_path / "metrics.jsonl", 1000))
    points = loss.lines["loss"]
    assert len(points) == 200
    assert points[0] == (3.0, pytest.approx(sum(1 / step for step in range(1, 6)) / 5))
