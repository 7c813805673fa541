"""Two processes of one job, over loopback: their files equal those of one process, they end together, and resume."""

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from colm_jax.cli.main import main
from colm_jax.data.tokens import open_tokens
from colm_jax.errors import UserError
from colm_jax.parallel import barrier, global_batch, join, local_rows, make_mesh, on_first
from colm_jax.scoring import load_scores
from colm_jax.storage import read_lines
from tests.jobs import end, until
from tests.pipeline.test_run import files, write_lines
from tests.tiny import write_team

BASE = ["--gin.Training.batch_size=8", "--gin.Training.learning_rate=1e-3", "--gin.Training.checkpoint_every=4"]


@pytest.fixture
def command(tmp_path, tiny_model):
    rng = np.random.default_rng(0)
    texts = [{"text": "".join(rng.choice(list("abcdefgh "), rng.integers(8, 40)))} for _ in range(160)]
    data = write_lines(tmp_path / "train.jsonl", texts)
    models = ["--base", str(tiny_model("base")), "--expert", str(tiny_model("expert", seed=1))]
    return ["train", *models, "--data", data, *BASE]


def steps(out):
    path = out / "train/metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def signalled(processes, out, at, number, what):
    """Send a signal to one process after step `at`, and wait for the end of the job."""
    until(lambda: len(steps(out)) >= at, processes)
    processes[number].send_signal(what)
    return end(processes)


def test_two_processes_train_as_one_and_resume_after_sigterm(tmp_path, command, jobs):
    one, two, command = tmp_path / "one", tmp_path / "two", [*command, "--gin.Training.epochs=2"]
    assert main([*command, "--out", str(one), "--mesh", "1,4,2"]) == 0
    # SIGTERM is sent to one of them; both finish and save the same step.
    codes, outputs = signalled(jobs(command, two, 2), two, 6, 1, signal.SIGTERM)
    assert codes == [128 + signal.SIGTERM] * 2, outputs
    stopped = len(steps(two))
    assert all(f"stopped by SIGTERM after step {stopped}, which is saved" in output for output in outputs)
    assert max(int(path.name) for path in (two / "train/checkpoints").iterdir()) == stopped
    # They resume from there and finish.
    codes, outputs = end(jobs(command, two, 2))
    assert codes == [0, 0], outputs
    assert_same_up_to_rounding(one, two)
    assert (two / "scores/base/shard-00001.npz").exists()  # so both have written shards


# The death of process 0 ends the other at once; that of process 1 is noticed by its missing heartbeats.
@pytest.mark.parametrize("dies", [0, pytest.param(1, marks=pytest.mark.soak)])
def test_two_processes_score_as_one_also_after_a_kill(tmp_path, command, jobs, dies):
    one, two = tmp_path / "one", tmp_path / "two"
    score = ["score", "--model", command[2], "--data", command[command.index("--data") + 1]]
    assert main([*score, "--out", str(one), "--mesh", "1,4,2"]) == 0
    processes = jobs(score, two, 2)
    until(lambda: (two / "tokens/summary.json").exists(), processes)
    processes[dies].kill()
    codes, outputs = end(processes, timeout=60)
    assert codes[dies] == -signal.SIGKILL and codes[1 - dies] not in (0, 2), outputs
    for number, output in enumerate(outputs):  # also for the killed one, which could not print anything
        assert f"colm: process {number} of 2 ended early" in output.splitlines()[-1]
        assert "rerun the same command to resume" in output.splitlines()[-1]
    codes, outputs = end(jobs(score, two, 2))
    assert codes == [0, 0], outputs
    assert not any("ended early" in output for output in outputs)
    assert files(one).keys() == files(two).keys()
    assert files(one / "tokens") == files(two / "tokens")
    assert_same_scores(one, two, open_tokens(one / "tokens"))


@pytest.mark.parametrize("count", [1, 2])
def test_sigterm_to_one_stops_all_during_scoring(tmp_path, command, jobs, count):
    score = ["score", "--model", command[2], "--data", command[command.index("--data") + 1]]
    processes = jobs(score, tmp_path / "out", count)
    until(lambda: (tmp_path / "out/tokens/summary.json").exists(), processes)
    stops(processes)


def stops(processes):
    """Send SIGTERM to the last one and check that all end."""
    processes[-1].terminate()
    codes, outputs = end(processes, timeout=60)
    assert codes == [128 + signal.SIGTERM] * len(processes), outputs
    last = "colm: stopped by SIGTERM; rerun the same command to resume"
    assert [output.splitlines()[-1] for output in outputs] == [last] * len(processes)


@pytest.fixture
def team(tmp_path, tiny_model):
    base, expert = tiny_model("small"), tiny_model("large", seed=1)
    return str(write_team(tmp_path / "team", base, expert))


def test_local_cluster_generates_as_one_process(tmp_path, team):
    lines = [{"id": f"é{i}", "prompt": "abcdefgh"[i:]} for i in range(6)]
    prompts = write_lines(tmp_path / "some prompts.jsonl", lines)
    generate = ["generate", "--base", team, "--prompts", prompts, "--max_new_tokens", "12", "--mesh", "1,4,2"]
    generate += ["--log_probs", "--batch_size", "4", "--temperature", "1", "--seed", "3"]
    one, two = tmp_path / "one.jsonl", tmp_path / "it's two.jsonl"
    assert main([*generate, "--out", str(one)]) == 0
    # Both resume from the files of an interrupted run.
    write_lines(tmp_path / "it's two.jsonl.part", [{"key": "another's"}])
    done = local_cluster("2", "--devices", "4", "--", "colm", *generate, "--out", str(two))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"answers": 6') == 1  # only the first prints it
    for mine, theirs in zip(read_lines(one), read_lines(two), strict=True):
        for name in ("p_defer", "log_probs"):
            np.testing.assert_allclose(mine.pop(name), theirs.pop(name), atol=1e-5)
        assert mine == theirs
    assert not list(tmp_path.glob("*.part"))


def test_sigterm_to_one_stops_all_during_generation(tmp_path, team, jobs):
    prompts = write_lines(tmp_path / "prompts.jsonl", [{"prompt": "abcdefgh"}] * 400)
    part = tmp_path / "answers.jsonl.part"
    generate = ["generate", "--base", team, "--prompts", prompts, "--max_new_tokens", "40", "--batch_size", "2"]
    processes = jobs(generate, tmp_path / "answers.jsonl", 2)
    until(lambda: part.exists() and part.read_text().count("\n") > 2, processes)
    stops(processes)
    kept = [line.split(" ", 1)[0] for line in part.read_text().splitlines()[1:]]
    assert 0 < len(kept) == len(set(kept)) < 400  # only the first writes them


def local_cluster(*words, script="launch/local_cluster.sh"):
    """Run the script with this environment's colm."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = ["bash", script, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=250, env={**os.environ, "PATH": path})


def test_local_cluster_arguments():
    for words, line in [
        (["two", "--", "colm", "score"], "two: must be the number of processes"),
        (["2", "--devices", "0", "--", "colm", "score"], "--devices 0: must be a whole number"),
        (["2", "--device", "1", "--", "colm", "score"], "--device: no such flag"),
        (["2", "--devices", "4"], "write the command after --"),
        (["2", "--", "colm", "export"], "colm export: only run, score, train, calibrate and generate"),
    ]:
        done = local_cluster(*words)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert line in done.stderr
    score = ["colm", "score", "--model", "a model", "--data", "my data.jsonl", "--out", "S"]
    done = local_cluster("2", "--devices", "4", "--dry_run", "--", *score)
    (first, second) = map(shlex.split, done.stdout.splitlines())
    assert first[-10:-1] == second[-10:-1] == [*score, "--distributed"]
    assert [where.partition(",")[2] for where in (first[-1], second[-1])] == ["2,0", "2,1"]
    assert first[2].endswith("--xla_force_host_platform_device_count=4")


@pytest.mark.soak
def test_two_processes_run_every_stage(tmp_path, command, jobs):
    """Training rounds differently, so answers may differ; the set of files is the same."""
    dev = write_lines(tmp_path / "dev.jsonl", [{"prompt": "abcdefgh"[:i], "completion": " abc"} for i in range(3, 8)])
    command = ["run", *command[1:], "--dev", dev, "--task", "exact"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert main([*command, "--out", str(one), "--mesh", "1,4,2"]) == 0
    codes, outputs = end(jobs(command, two, 2))
    assert codes == [0, 0], outputs
    assert set(files(one)) == set(files(two))
    a, b = (json.loads((out / "evaluate/evaluation.json").read_text())["text"] for out in (one, two))
    assert b["team"] == pytest.approx(a["team"], rel=1e-4)
    assert b["experts"] == pytest.approx(a["experts"], rel=1e-4)
    assert "report:" in outputs[0] and "report:" not in outputs[1]


@pytest.mark.soak
def test_two_processes_calibrate_as_one(tmp_path, jobs, team):
    lines = [{"prompt": "abcdefgh"[:i], "completion": " abc"} for i in range(3, 8)]
    data = write_lines(tmp_path / "dev.jsonl", lines)
    command = ["calibrate", "--base", team, "--data", data, "--task", "exact", "--gin.Calibration.max_new_tokens=8"]
    assert main([*command, "--out", str(tmp_path / "one.json"), "--mesh", "1,4,2"]) == 0
    codes, outputs = end(jobs(command, tmp_path / "two.json", 2))
    assert codes == [0, 0], outputs
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json"))
    assert two["threshold"] == pytest.approx(one["threshold"], abs=1e-6)
    assert two["score"] == one["score"]


@pytest.mark.soak
@pytest.mark.parametrize(
    "options",
    [
        ["--trainable", "gate"],
        ["--trainable", "lora", "--gin.Training.packing=False"],
        ["--expert_scores", "online", "--expert_mesh", "2,2,2"],
    ],
    ids=lambda options: options[1],
)
def test_two_processes_train_as_one_with_other_settings(tmp_path, command, jobs, options):
    one, two = tmp_path / "one", tmp_path / "two"
    assert main([*command, *options, "--out", str(one), "--mesh", "1,4,2"]) == 0
    codes, outputs = end(jobs([*command, *options], two, 2))
    assert codes == [0, 0], outputs
    assert_same_up_to_rounding(one, two)


def assert_same_up_to_rounding(one, two):
    """Compare runs: two processes sum scores and gradients in another order; the other files are equal bit for bit."""
    hashes, others = files(one), files(two)
    assert set(hashes) == set(others)
    rounded = {"train/metrics.jsonl", *(f"{name}/manifest.json" for name in ("labels", "train", "team"))}
    rounded |= {name for name in hashes if name.endswith(".safetensors") or name.startswith(("scores/", "gate/"))}
    assert {name for name in hashes if hashes[name] != others[name]} <= rounded
    for a, b in zip(steps(one), steps(two), strict=True):
        assert b == pytest.approx(a, rel=1e-4)
    for name in ("model", "gate"):
        a, b = (load_file(out / f"team/{name}.safetensors") for out in (one, two))
        for key in a:
            np.testing.assert_allclose(a[key], b[key], rtol=0, atol=1e-4)
    for name in ("base", "expert-1"):
        assert_same_scores(one / "scores" / name, two / "scores" / name, open_tokens(one / "tokens"))


def assert_same_scores(one, two, examples):
    """Compare scores: the head's parts are summed over processes in another order than within one."""
    for a, b in zip(load_scores(one, examples).log_prob, load_scores(two, examples).log_prob, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6)


def test_invalid_input_ends_all_processes(tmp_path, command, jobs):
    (tmp_path / "out/scores/base").mkdir(parents=True)
    (tmp_path / "out/scores/base/notes.txt").write_text("mine")
    codes, outputs = end(jobs(command, tmp_path / "out", 2))
    assert codes == [2, 2], outputs
    assert all("holds files that are not this program's" in output for output in outputs)
    assert (tmp_path / "out/scores/base/notes.txt").read_text() == "mine"


def test_mesh_of_several_processes_must_cover_all_devices(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="has 2 of 8 devices; several processes share all of them, as in mesh 1,8,1"):
        make_mesh(1, 2, 1)


@pytest.mark.parametrize("where", ["", "host", "host:80", "host:80,2", "host:80,2,2"])
def test_invalid_address_is_a_one_line_error(where):
    with pytest.raises(UserError, match=r"^distributed"):
        join(where)


def test_single_process_does_not_wait():
    barrier()
    assert on_first(lambda: [1, "a"]) == [1, "a"]


def test_rows_of_a_process_follow_the_batch_sharding():
    mesh, batch = make_mesh(2, 2, 2), np.arange(24).reshape(8, 3)
    assert local_rows(mesh, 8) == list(range(8))
    here = [5, 2, 7, 0, 1, 6, 3, 4]
    spread = global_batch(mesh, 8, here, batch[here])
    np.testing.assert_array_equal(spread, batch)
    assert {shard.data.shape for shard in spread.addressable_shards} == {(2, 3)}
