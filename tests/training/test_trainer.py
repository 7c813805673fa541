"""Training lowers its objective, resumes to the same bits, and says where it broke."""

import dataclasses
import json
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx

from colm_jax.checkpoints.team import make_gate
from colm_jax.errors import UserError
from colm_jax.models.gate import Gate
from colm_jax.models.lora import Lora
from colm_jax.scoring import score_examples
from colm_jax.training.config import Training
from colm_jax.training.trainer import train
from tests.scoring.test_scorer import texts
from tests.tiny import tiny_decoder

SETTINGS = Training(learning_rate=3e-3, batch_size=4, epochs=3, checkpoint_every=4)


def run(directory, settings=SETTINGS, report=lambda *a: None, kernel=None):
    examples = texts(22)
    base, expert = tiny_decoder(), tiny_decoder(seed=1)
    gate = Gate(32, 1) if kernel is None else make_gate(kernel)
    scores = score_examples(base, examples), [score_examples(expert, examples)]
    return train(base, gate, examples, *scores, settings, directory, report)


def leaves(team):
    return [np.asarray(leaf) for module in team for leaf in jax.tree.leaves(nnx.state(module))]


def metrics(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("objective", ["marginal", "em", "sft", "weak"])
def test_every_objective_falls(tmp_path, objective):
    run(tmp_path, dataclasses.replace(SETTINGS, objective=objective, epochs=8))
    losses = [line["loss"] for line in metrics(tmp_path)]
    assert len(losses) == 44
    assert np.mean(losses[-6:]) < np.mean(losses[:6]) - 0.05


def test_em_and_marginal_take_the_same_steps(tmp_path):
    one = run(tmp_path / "marginal", dataclasses.replace(SETTINGS, objective="marginal"))
    two = run(tmp_path / "em", dataclasses.replace(SETTINGS, objective="em"))
    for a, b in zip(leaves(one), leaves(two)):
        np.testing.assert_allclose(a, b, atol=2e-4)


def test_a_stopped_run_ends_in_the_same_bits(tmp_path):
    whole = leaves(run(tmp_path / "whole"))

    class Stopped(Exception):
        pass

    for at in (3, 4, 11):

        def stop(step, steps, values, at=at):
            if step == at:
                raise Stopped

        directory = tmp_path / f"stopped-{at}"
        with pytest.raises(Stopped):
            run(directory, report=stop)
        again = leaves(run(directory))
        assert all(np.array_equal(a, b) for a, b in zip(whole, again))
        assert metrics(directory) == metrics(tmp_path / "whole")


def test_a_killed_process_ends_in_the_same_bits(tmp_path):
    script = (
        "import sys, pathlib, numpy as np; from tests.training.test_trainer import *\n"
        "out = pathlib.Path(sys.argv[1]); result = leaves(run(out, report=lambda s, n, m: print(s, flush=True)))\n"
        "np.savez(out / 'result.npz', *result)"
    )

    def command(name):
        return [sys.executable, "-c", script, str(tmp_path / name)]

    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    subprocess.run(command("whole"), check=True, env=environment, stdout=subprocess.DEVNULL)
    for at in (5, 9):
        with subprocess.Popen(command("killed"), stdout=subprocess.PIPE, text=True, env=environment) as process:
            for line in process.stdout:
                if int(line) == at:
                    process.send_signal(signal.SIGKILL)
                    break
        assert process.returncode == -signal.SIGKILL
    subprocess.run(command("killed"), check=True, env=environment, stdout=subprocess.DEVNULL)
    with np.load(tmp_path / "whole/result.npz") as whole, np.load(tmp_path / "killed/result.npz") as killed:
        assert all(np.array_equal(whole[name], killed[name]) for name in whole)


def test_a_loss_that_is_not_finite_names_step_and_examples(tmp_path):
    with pytest.raises(UserError, match=r"step 1, examples \["):
        run(tmp_path, kernel=np.full((32, 1), np.nan, np.float32))


@pytest.mark.parametrize(
    "field, value",
    [("objective", "mle"), ("trainable", "head"), ("batch_size", 0), ("epochs", 1.5), ("learning_rate", -1.0)],
)
def test_bad_settings_name_themselves(field, value):
    with pytest.raises(UserError, match=field):
        Training(**{field: value})


def test_lora_moves_only_its_own_matrices_and_comes_back_merged(tmp_path):
    settings = dataclasses.replace(
        SETTINGS, trainable="lora", epochs=8, lora=Lora(rank=4, modules="attention/(query|value)")
    )
    trained, _ = run(tmp_path, settings)
    losses = [line["loss"] for line in metrics(tmp_path)]
    assert np.mean(losses[-6:]) < np.mean(losses[:6]) - 0.05
    before, after = (dict(nnx.to_flat_state(nnx.state(d))) for d in (tiny_decoder(), trained))
    assert set(before) == set(after)
    moved = {path for path in before if not np.array_equal(before[path][...], after[path][...])}
    assert moved == {("layers", "attention", name, "kernel") for name in ("query", "value")}


def test_lora_resumes_to_the_same_bits(tmp_path):
    settings = dataclasses.replace(SETTINGS, trainable="lora")
    whole = leaves(run(tmp_path / "whole", settings))

    class Stop(Exception):
        pass

    def stop(step, steps, values):
        if step == 7:
            raise Stop

    with pytest.raises(Stop):
        run(tmp_path / "half", settings, stop)
    for one, two in zip(whole, leaves(run(tmp_path / "half", settings)), strict=True):
        np.testing.assert_array_equal(one, two)
