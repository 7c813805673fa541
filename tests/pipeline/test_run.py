"""The whole run, from files to report: its numbers, and that a kill in any stage changes nothing."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from colm_jax import CoLM
from colm_jax.calibration import risk
from colm_jax.errors import UserError
from colm_jax.evaluation.mixture import mixture_of
from colm_jax.pipeline.executor import steps
from colm_jax.pipeline.graph import run_graph
from colm_jax.pipeline.run import run_pipeline
from colm_jax.pipeline.stage import StageDirectory
from colm_jax.pipeline.stages import team as team_stages
from colm_jax.report.store import load_report
from colm_jax.settings.calibration import Calibration
from colm_jax.settings.generation import Correction
from colm_jax.settings.models import Model
from colm_jax.settings.run import STAGES, RunConfig
from colm_jax.settings.training import GateInit, Training
from colm_jax.storage import sha256_of
from tests.tiny import edit_json


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture
def inputs(tmp_path, tiny_model):
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefgh "))

    def lines(n):
        texts = ["".join(rng.choice(letters, rng.integers(8, 40))) for _ in range(n)]
        return [{"prompt": text[:5], "completion": text[5:]} for text in texts]

    return {
        "base": str(tiny_model("base")),
        "experts": (str(tiny_model("expert", seed=1)),),
        "data": write_lines(tmp_path / "train.jsonl", lines(40)),
        "dev": write_lines(tmp_path / "dev.jsonl", lines(6)),
        "test": write_lines(tmp_path / "test.jsonl", lines(6)),
        "strategies": ("defer", "base"),
    }


def tokens_of(file):
    """The number of tokens of a data file: BOS, prompt and completion, EOS; a character each."""
    lines = [json.loads(line) for line in Path(file).read_text().splitlines()]
    return sum(2 + len(line["prompt"]) + len(line["completion"]) for line in lines)


TRAINING = Training(batch_size=8, epochs=2, learning_rate=1e-3, checkpoint_every=2)


def files(directory):
    """Hash of every file a run leaves, but for training checkpoints and logs, which hold times."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not {"checkpoints", "logs"} & set(path.parts)
    }


@pytest.mark.parametrize("trainable", ["all", "gate"])
def test_a_run_leaves_a_team_that_does_what_the_evaluation_says(tmp_path, inputs, trainable):
    training = Training(trainable=trainable, batch_size=8, learning_rate=1e-3)
    if trainable == "all":  # once with all that a run does where nothing is said
        del inputs["strategies"]
    config = RunConfig(**inputs, task="exact", max_new_tokens=12, training=training)
    result = run_pipeline(config, tmp_path / "run").evaluation
    text = result["text"]
    assert text["oracle"] < text["team"] < text["base"] + 1
    team = CoLM.from_pretrained(tmp_path / "run/team")
    assert len(team.experts) == 1
    texts = {split: tokens_of(inputs[split]) for split in ("data", "dev", "test")}
    read = {"scores/base": "data", "scores/expert-1": "data", "hidden": "data", "calibrate": "dev", "evaluate": "test"}
    for stage, split in read.items():
        summary = json.loads((tmp_path / "run" / stage / "summary.json").read_text())
        models = {"calibrate": 2, "evaluate": 2}.get(stage, 1)
        if stage == "calibrate":  # greedy choices, and the ends of answers, are passes too
            assert summary["tokens"] >= 2 * models * texts[split]
        else:
            assert summary["tokens"] == models * texts[split]
        assert 0.5 * summary["tokens"] < summary["positions"] < 2.5 * summary["tokens"]
    calibration = json.loads((tmp_path / "run/calibrate/calibration.json").read_text())
    assert team.calibrated_threshold == calibration["threshold"]
    lines = [json.loads(line) for line in (tmp_path / "run/generate/defer.jsonl").read_text().splitlines()]
    prompts = [{"prompt": line["prompt"]} for line in lines]
    for line, answer in zip(lines, team.generate(prompts, max_new_tokens=12)):
        assert line["tokens"] == answer.tokens
        assert len(line["tokens"]) == len(line["sources"]) == len(line["p_defer"]) == len(line["threshold"])
    scored = team.score([json.loads(line) for line in Path(inputs["test"]).read_text().splitlines()])
    mask = np.concatenate([s.mask for s in scored])
    assert -np.concatenate([s.base_log_prob for s in scored])[mask].mean() == pytest.approx(text["base"], abs=1e-5)
    gate = np.concatenate([s.gate_logits for s in scored])[mask][:, 0]
    expert = np.concatenate([s.expert_log_probs for s in scored])[mask][:, 0]
    base = np.concatenate([s.base_log_prob for s in scored])[mask]
    p = 1 / (1 + np.exp(-gate))
    assert -np.log((1 - p) * np.exp(base) + p * np.exp(expert)).mean() == pytest.approx(text["team"], abs=1e-5)
    assert (tmp_path / "run/report/report.html").exists()
    if trainable == "gate":  # another setting makes the stage anew, and what hangs on it
        other = replace(config, calibration=Calibration(source="generations"))
        run_pipeline(other, tmp_path / "run", until="calibrate")
        again = json.loads((tmp_path / "run/calibrate/calibration.json").read_text())
        assert (calibration["source"], again["source"]) == ("texts", "generations")
        assert json.loads((tmp_path / "run/team/colm.json").read_text())["calibration"] == again


def test_what_a_run_learns_of_wrong_answers_is_in_its_team_and_marks_its_answers(tmp_path, inputs, monkeypatch):
    def graded(task, texts, *rest):
        return replace(real(task, texts, *rest), grades=tuple(float(i % 2) for i in range(len(texts))))

    real = team_stages.score_answers
    monkeypatch.setattr(team_stages, "score_answers", graded)  # a random pair has no right answers
    monkeypatch.setattr(risk, "FEWEST", 1)
    training = Training(trainable="gate", batch_size=8)
    config = RunConfig(**inputs, task="exact", max_new_tokens=12, training=training)
    run = run_pipeline(config, tmp_path / "run")
    learned = json.loads((tmp_path / "run/risk/risk.json").read_text())
    facts = json.loads((tmp_path / "run/team/colm.json").read_text())
    assert learned["why"] is None and facts["risk"] == learned["risk"]
    lines = {
        name: [json.loads(line) for line in (tmp_path / f"run/generate/{name}.jsonl").read_text().splitlines()]
        for name in ("defer", "base")
    }
    team = CoLM.from_pretrained(tmp_path / "run/team")
    answers = team.generate([{"prompt": line["prompt"]} for line in lines["defer"]], max_new_tokens=12)
    for line, answer in zip(lines["defer"], answers):
        assert line["risks"] == pytest.approx(answer.risks, abs=1e-3) and 0 <= line["risk"] <= 1
        assert line["check"] == [asdict(mark) for mark in answer.check]
    assert not any("risk" in line for line in lines["base"])
    assert "marks" in run.evaluation["task"]["defer"] and "marks" not in run.evaluation["task"]["base"]
    assert "Where to check (test)" in (tmp_path / "run/report/report.md").read_text()


def test_a_run_with_few_dev_prompts_says_why_there_are_no_marks(tmp_path, inputs):
    config = RunConfig(**inputs, task="exact", max_new_tokens=4, training=Training(trainable="gate"))
    run_pipeline(config, tmp_path / "run")
    learned = json.loads((tmp_path / "run/risk/risk.json").read_text())
    assert learned["risk"] is None and "there are 6 dev prompts" in learned["why"]
    assert CoLM.from_pretrained(tmp_path / "run/team").engine.risk is None
    assert learned["why"] in (tmp_path / "run/report/report.md").read_text()


def test_a_run_with_two_experts(tmp_path, inputs, tiny_model):
    experts = (*inputs["experts"], str(tiny_model("third", seed=2)))
    inputs |= {"experts": experts, "strategies": ("defer", "expert")}
    config = RunConfig(**inputs, max_new_tokens=8, training=Training(trainable="gate"))
    text = run_pipeline(config, tmp_path / "run").evaluation["text"]
    assert len(text["experts"]) == 2
    assert text["oracle"] < text["team"]
    team = CoLM.from_pretrained(tmp_path / "run/team")
    assert team.gate.kernel.shape == (32, 2)
    lines = [json.loads(line) for line in (tmp_path / "run/generate/expert.jsonl").read_text().splitlines()]
    assert all(source == 1 for line in lines for source in line["sources"])


def test_the_stages_run_one_by_one_and_leave_what_a_whole_run_leaves(tmp_path, inputs):
    config = RunConfig(**inputs, max_new_tokens=8, training=Training(trainable="gate"))
    run_pipeline(config, tmp_path / "whole")
    found = []
    for stage in STAGES:
        run_pipeline(config, tmp_path / "steps", until=stage)
        found.append(len(files(tmp_path / "steps")))
    assert found == sorted(set(found))  # each left something more
    assert files(tmp_path / "steps") == files(tmp_path / "whole")


def test_the_steps_of_the_graph_are_those_that_until_may_name():
    assert steps(run_graph(experts=2)) == STAGES


def test_a_second_run_does_nothing_and_a_changed_input_only_what_depends_on_it(tmp_path, inputs):
    out = tmp_path / "run"
    config = RunConfig(**inputs, task="exact", max_new_tokens=8, training=TRAINING)
    run_pipeline(config, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("manifest.json")}
    run_pipeline(config, out)
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("manifest.json")}
    with open(inputs["test"], "a") as file:
        file.write(json.dumps({"prompt": "abc", "completion": "def"}) + "\n")
    run_pipeline(config, out)
    changed = {p.parent.name for p, t in before.items() if p.stat().st_mtime_ns != t}
    assert changed == {"generate", "evaluate", "study", "report"}


def test_hidden_states_outlive_an_exchange_of_experts(tmp_path, inputs, tiny_model):
    out = tmp_path / "run"
    config = RunConfig(**inputs, training=Training(trainable="gate"))

    def written():
        return {path.parent.name: path.stat().st_mtime_ns for path in out.rglob("manifest.json")}

    run_pipeline(config, out, until="calibrate")
    before = written()
    experts = (str(tiny_model("third", seed=2)), *inputs["experts"])
    run_pipeline(replace(config, experts=experts), out, until="calibrate")
    assert {name for name, time in before.items() if written()[name] == time} == {"tokens", "base", "hidden"}
    shorter = (str(tiny_model("short", seed=3, context=16)),)
    run_pipeline(replace(config, experts=shorter), out, until="calibrate")  # texts are cut elsewhere
    assert before["hidden"] != written()["hidden"]


def test_texts_in_which_nothing_counts_change_nothing_but_the_counts(tmp_path, inputs):
    """Blank, cut off or masked texts between the others: the same scores, labels, states, gate and steps."""
    lines = Path(inputs["data"]).read_text().splitlines()
    odd = [
        '{"text": ""}',
        json.dumps({"prompt": "a" * 200, "completion": "b"}),
        "",
        '{"input_ids": [5, 6], "labels": [-100, -100]}',
    ]
    mixed = [line for i, text in enumerate(lines) for line in ([odd[i // 5]] if i % 5 == 0 and i < 20 else []) + [text]]
    (tmp_path / "mixed.jsonl").write_text("\n".join(mixed))
    for name, data in (("plain", inputs["data"]), ("mixed", str(tmp_path / "mixed.jsonl"))):
        config = RunConfig(**{**inputs, "data": data}, max_new_tokens=8, training=TRAINING)
        run_pipeline(config, tmp_path / name)
    for path in ("scores/base/shard-00000.npz", "labels/labels.npy", "hidden/shard-00000.npy", "gate/kernel.npy"):
        assert (tmp_path / "plain" / path).read_bytes() == (tmp_path / "mixed" / path).read_bytes()
    assert (tmp_path / "plain/train/metrics.jsonl").read_text() == (tmp_path / "mixed/train/metrics.jsonl").read_text()
    summaries = [json.loads((tmp_path / name / "tokens/summary.json").read_text()) for name in ("plain", "mixed")]
    left_out = [summary.pop("texts_left_out") for summary in summaries]
    assert left_out[1] == {"one_token": 1, "nothing_counts": 1, "cut_off": 1}
    assert summaries[0] == summaries[1]
    report = (tmp_path / "mixed/report/report.md").read_text()
    assert "40 texts of " in report
    assert "left out: 1 of a single token, 1 in which no token counts in the loss, 1 in which" in report


def test_texts_are_cut_at_length_and_the_cut_is_bound_to_the_scores(tmp_path, inputs):
    out = tmp_path / "run"
    config = RunConfig(**inputs, length=16, training=Training(trainable="gate"))
    run_pipeline(config, out, until="score")
    summary = json.loads((out / "tokens/summary.json").read_text())
    assert summary["length"] == 16
    assert 0 < summary["texts_cut"] < 40
    before = {path: path.stat().st_mtime_ns for path in out.rglob("manifest.json")}
    run_pipeline(replace(config, length=17), out, until="score")
    assert all(path.stat().st_mtime_ns != time for path, time in before.items())


def test_scores_of_other_data_are_not_read_even_where_a_manifest_says_they_belong(tmp_path, inputs):
    """Scores copied into a run by hand, and named in its manifest; lengths are the same."""
    swapped = tmp_path / "swapped.jsonl"
    swapped.write_text(Path(inputs["data"]).read_text().replace("a", "#").replace("b", "a").replace("#", "b"))
    config = RunConfig(**inputs, training=Training(trainable="gate"))
    run_pipeline(config, tmp_path / "a", until="score")
    run_pipeline(replace(config, data=str(swapped)), tmp_path / "b", until="score")
    for name in ("base", "expert-1"):
        carried, own = (tmp_path / run / "scores" / name for run in ("b", "a"))
        files = json.loads((carried / "manifest.json").read_text())["files"]
        for file in files:
            (own / file).write_bytes((carried / file).read_bytes())
        edit_json(own / "manifest.json", files=files)
    with pytest.raises(UserError, match=r"scores/base/shard-00000.npz: was made from other data"):
        run_pipeline(config, tmp_path / "a", until="labels")


def test_hidden_states_are_made_where_they_are_read(tmp_path, inputs):
    config = RunConfig(**inputs, training=TRAINING, gate_init=GateInit(solver="zero"))
    run_pipeline(config, tmp_path / "a", until="calibrate")
    assert not (tmp_path / "a/hidden").exists()
    run_pipeline(replace(config, training=Training(trainable="gate")), tmp_path / "b", until="calibrate")
    assert (tmp_path / "b/hidden/manifest.json").exists()


@pytest.mark.parametrize("expert_mesh", [None, (2, 1, 2)], ids=str)
def test_experts_that_score_online_train_what_their_scores_train(tmp_path, inputs, expert_mesh):
    """The same team up to rounding, with no score of an expert on disk; experts may lie otherwise than the base."""
    config = RunConfig(**inputs, training=TRAINING, gate_init=GateInit(solver="zero"), max_new_tokens=8)
    run_pipeline(config, tmp_path / "cached", until="train")
    expert = None if expert_mesh is None else Model(mesh=expert_mesh)
    online = replace(config, expert_scores="online", base_model=Model(mesh=(1, 4, 1)), expert_model=expert)
    online = replace(online, gate_init=GateInit())
    run_pipeline(online, tmp_path / "online", until="generate")
    assert sorted(path.name for path in (tmp_path / "online/scores").iterdir()) == ["base"]
    assert json.loads((tmp_path / "online/gate/manifest.json").read_text())["settings"]["solver"] == "zero"
    assert not (tmp_path / "online/labels").exists()
    for name in ("model", "gate"):
        a, b = (load_file(tmp_path / out / f"train/team/{name}.safetensors") for out in ("cached", "online"))
        for key in a:
            np.testing.assert_allclose(a[key], b[key], rtol=0, atol=1e-4)
    # Another expert is another team, though no score of it is on disk.
    done = StageDirectory("train", tmp_path / "online" / "train").digest
    assert StageDirectory("train", tmp_path / "online" / "train").digest == done
    other = replace(online, experts=(inputs["base"],))
    run_pipeline(other, tmp_path / "online", until="train")
    assert StageDirectory("train", tmp_path / "online" / "train").digest != done


def test_an_online_run_may_label_by_the_base_alone(tmp_path, inputs):
    start = GateInit(solver="newton", label_method="b")
    run_pipeline(
        RunConfig(**inputs, training=TRAINING, expert_scores="online", gate_init=start), tmp_path, until="gate"
    )
    assert np.abs(np.load(tmp_path / "gate/kernel.npy")).max() > 0
    labels, base = np.load(tmp_path / "labels/labels.npy"), np.load(tmp_path / "scores/base/shard-00000.npz")
    np.testing.assert_array_equal(labels[:, 0], ~base["is_argmax"])
    two = RunConfig(**{**inputs, "experts": inputs["experts"] * 2}, expert_scores="online", gate_init=start)
    run_pipeline(two, tmp_path, until="gate")
    assert np.load(tmp_path / "gate/kernel.npy").shape == (32, 2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"training": Training(trainable="gate")}, "Training.trainable 'gate' .* Run.expert_scores must be 'cached'"),
        ({"training": Training(objective="weak")}, "Training.objective 'weak' .* Run.expert_scores must be 'cached'"),
        ({"gate_init": GateInit(solver="newton")}, r"GateInit.solver 'newton' .*\(method a\)"),
        ({"expert_scores": "later"}, "expert_scores must be one of cached, online, got 'later'"),
    ],
)
def test_what_an_online_run_cannot_do_is_refused(inputs, fields, message):
    with pytest.raises(UserError, match=message):
        RunConfig(**{**inputs, "expert_scores": "online", **fields})


def test_an_expert_mesh_takes_the_devices_of_the_base(tmp_path, inputs):
    with pytest.raises(UserError, match="expert_mesh 1,2,4: must use all 4 devices"):
        run_pipeline(
            RunConfig(**inputs, base_model=Model(mesh=(1, 4, 1)), expert_model=Model(mesh=(1, 2, 4))), tmp_path / "run"
        )


def test_what_is_said_of_the_data_is_of_this_data(tmp_path, inputs):
    """A line that leaves the tokens as they were trains nothing anew; the report and colm.json know of it."""
    config = RunConfig(**inputs, training=Training(trainable="gate"), max_new_tokens=4)
    run_pipeline(config, tmp_path / "run")
    trained = StageDirectory("train", tmp_path / "run" / "train").digest
    with open(inputs["data"], "a") as file:
        file.write(json.dumps({"text": ""}) + "\n")
    run_pipeline(config, tmp_path / "run")
    assert StageDirectory("train", tmp_path / "run" / "train").digest == trained
    assert "1 of a single token" in (tmp_path / "run/report/report.html").read_text()
    facts = json.loads((tmp_path / "run/team/colm.json").read_text())
    assert facts["provenance"]["data"]["data"]["sha256"] == sha256_of(Path(inputs["data"]))


def test_killed_in_any_stage_it_ends_in_the_same_files(tmp_path, inputs):
    """SIGKILL as a stage that trains or answers begins; the last start leaves what an undisturbed run leaves.

    `pytest -m soak` kills at any moment.
    """
    arguments = ["run", "--base", inputs["base"], "--expert", inputs["experts"][0], "--task", "exact"]
    arguments += [word for name in ("data", "dev", "test") for word in (f"--{name}", inputs[name])]
    arguments += ["--gin.Training.batch_size=8", "--gin.Training.checkpoint_every=2", "--gin.Run.max_new_tokens=8"]
    arguments += ["--gin.Run.strategies=('defer', 'base')"]
    arguments += ["--gin.Training.learning_rate=1e-3"]

    def start(name):
        command = [sys.executable, "-m", "colm_jax.cli.main", *arguments, "--out", str(tmp_path / name)]
        cache = {
            "JAX_ENABLE_COMPILATION_CACHE": "true",
            "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        environment = {**os.environ, **cache}  # only to be quick
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)

    whole = start("whole")
    _, errors = whole.communicate()
    assert whole.returncode == 0, errors.decode()
    for stage in ("train", "generate"):
        process = start("killed")
        begun = tmp_path / "killed" / stage
        deadline = time.monotonic() + 120
        while not begun.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        assert begun.exists(), errors.decode()
        assert process.returncode == -signal.SIGKILL
    last = start("killed")
    _, errors = last.communicate()
    assert last.returncode == 0, errors.decode()
    assert files(tmp_path / "whole") == files(tmp_path / "killed")


def test_the_real_pair_reaches_the_plain_logistic_gate(tmp_path, shared):
    """Of a plain one, nats per token: base 0.615, expert 0.674, half-half 0.582, oracle 0.501, gate 0.581.

    In a process of its own, whose programs are optimised: it computes far more than it compiles.
    """
    models, data = shared / "models", shared / "data/stories"
    flags = {
        "--base": models / "babyllama-105",
        "--expert": models / "babyllama-361",
        "--data": data / "train.jsonl",
        "--test": data / "tinystories_sample.txt",
        "--trainable": "gate",
        "--out": tmp_path / "run",
    }
    command = [
        sys.executable,
        "-m",
        "colm_jax.cli.main",
        "run",
        *(str(word) for pair in flags.items() for word in pair),
    ]
    command += ["--gin.Run.strategies=('base',)", "--gin.Run.max_new_tokens=2"]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    text = json.loads((tmp_path / "run/evaluate/evaluation.json").read_text())["text"]
    assert text["base"] == pytest.approx(0.615, abs=1e-3)
    assert text["experts"] == [pytest.approx(0.674, abs=1e-3)]
    assert text["uniform"] == pytest.approx(0.582, abs=1e-3)
    assert text["oracle"] == pytest.approx(0.501, abs=1e-3)
    assert text["team"] <= 0.582


def test_inputs_are_checked_before_anything_is_written(tmp_path, inputs, tiny_model):
    words = ("<unk>", "<s>", "</s>", *"zyxwvutsrqponmlkjihgfedcba .?")
    other = tiny_model("other", words=words)
    with pytest.raises(UserError, match="tokenizers disagree: id 3"):
        run_pipeline(RunConfig(**{**inputs, "experts": (str(other),), "spans": "tokens"}), tmp_path / "run")
    with pytest.raises(UserError, match=r"Run\.experts: name at least one"):
        RunConfig(**{**inputs, "experts": ()})
    with pytest.raises(UserError, match=r"missing.jsonl"):
        run_pipeline(RunConfig(**{**inputs, "dev": "missing.jsonl"}), tmp_path / "run")
    with pytest.raises(UserError, match=r"missing.jsonl"):
        run_pipeline(RunConfig(**{**inputs, "data": "missing.jsonl"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_constant_mixture_is_chosen_on_texts_that_the_base_was_not_trained_on(tmp_path, inputs):
    """On dev, also where no threshold is calibrated; else on the training texts of a frozen base."""

    def evaluated(name, trainable, **changed):
        kept = {key: value for key, value in inputs.items() if changed.get(key, "") is not None}
        training = Training(trainable=trainable, batch_size=8, epochs=6, learning_rate=1e-2)
        config = RunConfig(**{**kept, "strategies": ("base",)}, max_new_tokens=2, training=training)
        return run_pipeline(config, tmp_path / name).evaluation

    trained = evaluated("trained", "all")
    team = CoLM.from_pretrained(tmp_path / "trained/team")
    lines = [json.loads(line) for line in Path(inputs["dev"]).read_text().splitlines()]
    weights = mixture_of(team.score(lines))
    assert trained["mixture"] == {"weights": pytest.approx(weights, abs=1e-4), "split": "dev"}
    assert "chosen on the dev texts" in (tmp_path / "trained/report/report.md").read_text()
    unknown = evaluated("no dev", "all", dev=None)
    assert unknown["mixture"] == {"weights": None, "split": None} and unknown["bits_per_byte"]["mixture"] is None
    assert "choose its weights on dev texts" in (tmp_path / "no dev/report/report.md").read_text()
    frozen = evaluated("frozen", "gate", dev=None)
    assert frozen["mixture"]["split"] == "data"
    assert "chosen on the training texts" in (tmp_path / "frozen/report/report.md").read_text()


def test_a_run_answers_by_every_strategy_that_it_is_asked_for(tmp_path, inputs):
    asked = ("compose", "untrained", "proxy", "random")
    training = Training(batch_size=8, learning_rate=1e-2)
    config = RunConfig(
        **{**inputs, "strategies": asked}, task="exact", max_new_tokens=8, training=training, random_rate=1.0
    )
    result = run_pipeline(config, tmp_path / "run").evaluation
    assert set(result["task"]) == {"name", *asked}
    grades = json.loads((tmp_path / "run/evaluate/grades.json").read_text())
    assert {name: len(found) for name, found in grades.items()} == dict.fromkeys(asked, 6)

    def written(name):
        lines = (tmp_path / f"run/generate/{name}.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    prompts = [{"prompt": line["prompt"]} for line in written("compose")]

    def answers(base, experts, strategy):
        return [
            a.tokens for a in CoLM.from_pretrained(base, experts).generate(prompts, strategy=strategy, max_new_tokens=8)
        ]

    trained, given, expert = tmp_path / "run/team", inputs["base"], inputs["experts"][0]
    assert [line["tokens"] for line in written("untrained")] == answers(given, [], "base")
    assert answers(given, [], "base") != answers(trained, None, "base")
    assert [line["tokens"] for line in written("proxy")] == answers(trained, [expert, given], "proxy")
    assert all(source == 1 for line in written("random") for source in line["sources"])  # at a rate of 1


def test_settings_of_correction_reach_a_run(tmp_path, inputs, monkeypatch):
    config = RunConfig(
        **{**inputs, "strategies": ("backtrack",)}, max_new_tokens=4, training=replace(TRAINING, trainable="gate")
    )
    asked, answers = [], CoLM.answers

    def noted(self, prompts, settings, **more):
        asked.append((settings.strategy, settings.correction))
        return answers(self, prompts, settings, **more)

    monkeypatch.setattr(CoLM, "answers", noted)
    for correction in (Correction(), Correction(candidates=5)):
        run_pipeline(replace(config, correction=correction), tmp_path / "run", until="generate")
    assert asked == [("backtrack", Correction()), ("backtrack", Correction(candidates=5))]


def test_all_strategies_answer_the_same_prompts(tmp_path, inputs, monkeypatch):
    inputs["strategies"] = ("defer", "untrained", "proxy")
    config = RunConfig(**inputs, max_new_tokens=2, training=replace(TRAINING, trainable="gate"))
    asked, answers = [], CoLM.answers

    def noted(self, prompts, *rest, **more):
        asked.append(list(prompts))
        return answers(self, prompts, *rest, **more)

    run_pipeline(config, tmp_path / "run", until="calibrate")  # which answers the dev prompts
    monkeypatch.setattr(CoLM, "answers", noted)
    run = run_pipeline(config, tmp_path / "run", until="generate")
    assert asked == [run.inputs.prompts] * 3
    lines = [json.loads(line) for line in (tmp_path / "run/generate/defer.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in lines] == [prompt["prompt"] for prompt in run.inputs.prompts]


def test_the_report_shows_the_grades_that_evaluation_wrote(tmp_path, inputs):
    training = replace(TRAINING, trainable="gate")
    config = RunConfig(**inputs, task="exact", max_new_tokens=4, training=training)
    run_pipeline(config, tmp_path / "run")
    grades = {"defer": [1, 1, 0, 0, 1, 0], "base": [1, 0, 1, 0, 0.5, 0]}
    evaluated = tmp_path / "run/evaluate"
    (evaluated / "grades.json").write_text(json.dumps(grades))
    written = json.loads((evaluated / "manifest.json").read_text())["files"]
    edit_json(evaluated / "manifest.json", files={name: sha256_of(evaluated / name) for name in written})
    run_pipeline(config, tmp_path / "run")  # the manifest of `evaluate` is another, so the report is made again
    answers = load_report(tmp_path / "run/report/report.json").answers
    assert [answer.correct for answer in answers] == [True, True, False, False, True, False]
    assert [answer.alone_correct for answer in answers] == [True, False, True, False, False, False]


def test_a_model_is_trained_alone(tmp_path, inputs):
    inputs["strategies"] = ()
    inputs = {**inputs, "experts": ()}
    training = Training(batch_size=8, learning_rate=1e-2, objective="sft", trainable="lora")
    result = run_pipeline(
        RunConfig(**inputs, task="exact", max_new_tokens=4, training=training), tmp_path / "run"
    ).evaluation
    assert set(result["task"]) == {"name", "base", "untrained"}
    team = CoLM.from_pretrained(tmp_path / "run/team")
    assert team.gate is None and team.experts == []
    assert not (tmp_path / "run/calibrate").exists()
    given = CoLM.from_pretrained(inputs["base"], [])
    records = [json.loads(line) for line in Path(inputs["test"]).read_text().splitlines()]
    scores = [np.concatenate([s.base_log_prob for s in model.score(records)]).mean() for model in (team, given)]
    assert scores[0] > scores[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strategies": ("defer", "best")}, "Run.strategies must be one of"),
        ({"strategies": ("random", "defer")}, "random defers as often as defer does, which must come before it"),
        ({"strategies": ("random",)}, "or set Run.random_rate"),
        ({"random_rate": 1.5}, "random_rate must be a number from 0 to 1"),
        ({"experts": ()}, "name at least one"),
        ({"experts": ("a", "b"), "strategies": ("proxy",)}, "proxy takes one expert"),
        ({"experts": ("a", "b"), "strategies": ("contrastive",)}, "'contrastive' needs 1 expert"),
    ],
)
def test_strategies_that_the_team_could_not_follow_are_refused_at_once(inputs, settings, message):
    with pytest.raises(UserError, match=message):
        RunConfig(**{**inputs, **settings})


def test_runs_with_a_store_share_stages_and_no_others(tmp_path, inputs):
    store, one = tmp_path / "store", RunConfig(**inputs, training=replace(TRAINING, trainable="gate"))
    run_pipeline(one, tmp_path / "a", store, "train")
    times = {path: path.stat().st_mtime_ns for path in store.rglob("manifest.json")}
    run_pipeline(replace(one, training=replace(one.training, objective="em")), tmp_path / "b", store, "train")
    assert {path: path.stat().st_mtime_ns for path in times} == times
    new = {path.parent.parent.name for path in store.rglob("manifest.json")} - {
        path.parent.parent.name for path in times
    }
    assert len(list((store / "train").glob("*/manifest.json"))) == 2 and not new
    assert (tmp_path / "b/scores/base").resolve() == (tmp_path / "a/scores/base").resolve()
    with pytest.raises(UserError, match="is a stage of a run without a store"):
        run_pipeline(one, tmp_path / "plain", until="tokens")
        run_pipeline(one, tmp_path / "plain", store, "tokens")
