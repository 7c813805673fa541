"""The contract at the command line: commands, files, and one clear line with exit status 2 for what is wrong."""

import importlib
import json
import os
import signal
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from colm_jax import CoLM
from colm_jax.cli.commands import SUMMARIES, score
from colm_jax.cli.main import main
from colm_jax.cli.parser import FLAGS_ONLY, parser_of
from colm_jax.objectives import marginal_nll
from colm_jax.settings.run import STAGES
from tests.tiny import write_team

TEAM = "babyllama-105-colm"


@pytest.fixture
def pair(tiny_model):
    return str(tiny_model("base")), str(tiny_model("expert", seed=1))


def write(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def refused(capsys, *arguments):
    """Runs a command that must fail as the user's fault; returns its one line."""
    status = main(list(map(str, arguments)))
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("colm: ")]
    assert status == 2
    assert len(lines) == 1
    assert "Traceback" not in captured.err
    return lines[0]


@pytest.mark.parametrize("command", sorted(SUMMARIES))
def test_the_help_of_commands_that_read_settings_says_so(command):
    module = importlib.import_module(f"colm_jax.cli.commands.{command}")
    reads = "bindings" in Path(module.__file__).read_text(encoding="utf-8") or command == "check"
    assert reads == (command not in FLAGS_ONLY)
    assert ("--gin.NAME=VALUE" in parser_of(command).format_help()) == reads


@pytest.mark.parametrize("arguments", ["demo", "show RUN", "lm_eval run", "score --model M --data D --out O"])
def test_a_setting_that_a_command_does_not_read_is_refused(arguments, capsys):
    line = refused(capsys, *arguments.split(), "--gin.Training.epochs=1")
    assert "--gin.Training.epochs=1: would change nothing, as" in line


def test_generate_writes_the_contract_lines(shared, tmp_path, capsys):
    prompts = write(tmp_path / "p.jsonl", {"id": "x", "prompt": "Once upon a time there was a"}, {"input_ids": [1, 3]})
    out = tmp_path / "out" / "a.jsonl"
    models = ["--base", str(shared / "models" / TEAM), "--expert", str(shared / "models/babyllama-361")]
    options = ["--threshold", "0.3", "--max_new_tokens", "96"]
    assert main(["generate", *models, "--prompts", prompts, "--out", str(out), *options]) == 0
    first, second = (json.loads(line) for line in out.read_text().splitlines())
    fields = "id prompt text tokens sources p_defer threshold finish_reason expert_calls".split()
    assert list(first) == fields
    assert (first["id"], second["id"]) == ("x", "1")
    case = json.loads((shared / "vectors/decode_public.json").read_text())[2]
    assert first["tokens"] == case["tokens"]
    assert first["text"].strip() == case["text"].strip()
    assert first["finish_reason"] == "length"
    assert first["expert_calls"] == sum(s > 0 for s in first["sources"])
    assert json.loads(capsys.readouterr().out)["answers"] == 2


def test_strategies_without_a_gate_report_no_p_defer(pair, tmp_path):
    prompts, out = write(tmp_path / "p.jsonl", {"prompt": "abc"}), tmp_path / "a.jsonl"
    models = ["--base", pair[0], "--expert", pair[1]]
    options = ["--strategy", "confidence", "--max_new_tokens", "4"]
    assert main(["generate", *models, "--prompts", prompts, "--out", str(out), *options]) == 0
    assert json.loads(out.read_text())["p_defer"] is None


def test_train_calibrate_export_and_read_back(pair, tmp_path, capsys):
    data = write(tmp_path / "d.jsonl", *({"prompt": "ab", "completion": c * 6} for c in "abcdefgh"))
    run = str(tmp_path / "run")
    models = ["--base", pair[0], "--expert", pair[1]]
    assert main(["train", *models, "--data", data, "--out", run, "--trainable", "gate"]) == 0
    team = f"{run}/team"
    assert main(["calibrate", "--base", team, "--data", data, "--out", str(tmp_path / "c.json")]) == 0
    assert 0 <= json.loads((tmp_path / "c.json").read_text())["threshold"] <= 1
    for form in ("colm", "reference"):
        assert main(["export", "--run", run, "--out", str(tmp_path / form), "--format", form]) == 0
    prompts = write(tmp_path / "p.jsonl", {"prompt": "abc"})
    tokens = []
    for base in (tmp_path / "colm", tmp_path / "reference"):
        out = tmp_path / "a.jsonl"
        options = ["--expert", pair[1], "--threshold", "0.4", "--max_new_tokens", "16"]
        assert main(["generate", "--base", str(base), "--prompts", prompts, "--out", str(out), *options]) == 0
        line = json.loads(out.read_text())
        tokens.append((line["tokens"], line["sources"]))
    assert tokens[0] == tokens[1]


def test_score_reports_nats_per_token(shared, tmp_path, capsys):
    data = shared / "data/stories/tinystories_sample.txt"
    model = shared / "models/babyllama-105"
    assert main(["score", "--model", str(model), "--data", str(data), "--out", str(tmp_path / "s")]) == 0
    assert json.loads(capsys.readouterr().out)["nats_per_token"] == pytest.approx(0.6149, abs=1e-3)


def test_score_and_train_say_what_was_cut_and_left_out(pair, tmp_path, capsys):
    lines = {"text": "abc"}, {"text": "a" * 200}, {"input_ids": [5]}, {"prompt": "ab", "completion": "c"}
    data = write(tmp_path / "d.jsonl", *lines)
    said = "3 texts of 137 tokens, of which 132 count in the loss; 1 texts cut at 128 tokens; left out: 1 of a single"
    assert main(["score", "--model", pair[0], "--data", data, "--out", str(tmp_path / "s")]) == 0
    captured = capsys.readouterr()
    assert f"{data}: {said}" in captured.err
    result = json.loads(captured.out)
    assert (result["texts"], result["texts_cut"], result["texts_left_out"]) == (3, 1, 1)
    assert (result["tokens"], result["tokens_counted"]) == (137, 132)
    assert result["positions"] == 2 * 128  # rows as long as the context
    assert result == json.loads((tmp_path / "s/summary.json").read_text())
    models = ["--base", pair[0], "--expert", pair[1], "--trainable", "gate"]
    for _ in range(2):  # the second does nothing
        assert main(["train", *models, "--data", data, "--out", str(tmp_path / "run")]) == 0
        assert f"{data}: {said}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line, said",
    [
        ("{", "d.jsonl:3: not valid JSON"),
        ('{"text": 3}', "d.jsonl:3: 'text' must be a string, got 3"),
        ('{"input_ids": [1, 99]}', "d.jsonl:3: input_ids[1] is 99"),
    ],
)
@pytest.mark.parametrize("command", ["run", "score", "train"])
def test_a_bad_data_line_is_named_and_leaves_nothing(pair, tmp_path, capsys, command, line, said):
    (tmp_path / "d.jsonl").write_text(f'{{"text": "ab"}}\n\n{line}\n')
    models = ["--model", pair[0]] if command == "score" else ["--base", pair[0], "--expert", pair[1]]
    assert said in refused(capsys, command, *models, "--data", tmp_path / "d.jsonl", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def without_weights(directory):
    """Takes a model's weights away: whatever is refused now is refused before they are read."""
    (Path(directory) / "model.safetensors").unlink()
    return directory


@pytest.fixture
def gated(tmp_path, pair):
    """A team directory of the pair; neither model has its weights any more."""
    team = write_team(tmp_path / "team", Path(pair[0]), Path(pair[1]))
    without_weights(pair[1])
    return str(without_weights(team))


@pytest.mark.parametrize(
    "options, said",
    [
        (["--strategy", "typo"], "strategy must be one of defer"),
        (["--strategy", "proxy"], "strategy 'proxy' needs 2 expert(s), this team has 1"),
        (["--strategy", "defer", "--expert", "E", "--expert", "E"], "the gate was trained for 1 expert(s), 2 given"),
        (["--stop", ""], "stop must not hold an empty string"),
        (["--threshold", "nan"], "threshold must be a number from 0 to 1, got nan"),
        (["--temperature", "inf"], "temperature must be a number of at least 0, got inf"),
        (["--top_p", "nan"], "top_p must be a number above 0 and at most 1, got nan"),
        (["--rate", "nan"], "rate must be a number from 0 to 1, got nan"),
        (["--seed", str(2**64)], "seed must be a whole number from 0 to 18446744073709551615"),
        (["--seed", "-1"], "seed must be a whole number from 0"),
        (["--gin.Correction.bound=1e999"], "Correction.bound must be a number at most 0, got inf"),
        (["--prompts", "LONG"], "long.jsonl:2: 151 tokens leave no room in the context of 128"),
        (["--prompts", "CHAT"], "chat.jsonl:1: 'messages' need a chat template"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_generate_refuses_before_it_reads_weights(pair, gated, tmp_path, capsys, options, said):
    named = {"E": pair[1], "LONG": tmp_path / "long.jsonl", "CHAT": tmp_path / "chat.jsonl"}
    prompts = write(tmp_path / "p.jsonl", {"prompt": "ab"})
    write(named["LONG"], {"prompt": "ab"}, {"prompt": "a" * 150})
    write(named["CHAT"], {"messages": [{"role": "user", "content": "ab"}]})
    arguments = ["--base", gated, "--prompts", prompts, "--out", tmp_path / "a.jsonl"]
    assert said in refused(capsys, "generate", *arguments, *(named.get(option, option) for option in options))


def test_calibrate_refuses_before_it_reads_weights(pair, gated, tmp_path, capsys):
    out, text, long = ["--out", tmp_path / "c.json"], {"text": "abc"}, {"prompt": "a" * 150, "completion": "b"}
    good = write(tmp_path / "good.jsonl", text)
    bad, long = write(tmp_path / "bad.jsonl", text, {"text": 3}), write(tmp_path / "long.jsonl", long)
    calibrate = ["calibrate", "--base", gated, *out, "--data"]
    assert "bad.jsonl:2: 'text' must be a string" in refused(capsys, *calibrate, bad)
    assert "good.jsonl:1: a task" in refused(capsys, *calibrate, good, "--task", "exact")
    assert "long.jsonl: no token counts" in refused(capsys, *calibrate, long)
    assert "rates must be a number above 0" in refused(capsys, *calibrate, good, "--gin.Calibration.rates=(0.0,)")
    without_weights(pair[0])
    plain = ["calibrate", "--base", pair[0], "--expert", pair[1], "--data", good, *out]
    assert "needs a gate and this base has none" in refused(capsys, *plain)


@pytest.mark.parametrize("command", ["run", "train"])
@pytest.mark.parametrize("split", ["dev", "test"])
@pytest.mark.parametrize(
    "line, task, said",
    [
        ({"foo": 1}, None, ":2: needs 'text'"),
        ({"prompt": "a" * 150, "completion": "b"}, None, ":2: 151 tokens leave no room in the context of 128"),
        ({"text": "abc"}, "exact", ":2: a"),
    ],
    ids=["unknown", "long", "ungraded"],
)
def test_a_bad_dev_or_test_line_stops_a_run_at_once(pair, tmp_path, capsys, command, split, line, task, said):
    good = {"prompt": "ab", "completion": "cdef"}
    data, dev, bad = (tmp_path / f"{name}.jsonl" for name in ("data", "dev", "bad"))
    write(data, good), write(dev, good), write(bad, good, line)
    files = {"data": data, "dev": dev} | {split: bad}
    bound = [f"--gin.Run.{name}={str(file)!r}" for name, file in files.items()]
    bound += [] if task is None else [f"--gin.Run.task={task!r}"]
    models = ["--base", pair[0], "--expert", pair[1], "--trainable", "gate"]
    assert f"{bad}{said}" in refused(capsys, command, *models, *bound, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["generate", "run", "train", "demo"])
def test_a_seed_beyond_64_bits_is_one_line(pair, tmp_path, capsys, command):
    data = write(tmp_path / "d.jsonl", {"prompt": "ab", "completion": "cd"})
    models = ["--base", pair[0], "--expert", pair[1]]
    arguments = {"generate": [*models[:2], "--strategy", "base", "--prompts", data], "demo": []}
    given = arguments.get(command, [*models, "--data", data])
    for seed in (-1, 2**64):
        said = refused(capsys, command, *given, "--out", tmp_path / "out", "--seed", seed)
        assert f"seed must be a whole number from 0 to {2**64 - 1}, got {seed}" in said
    assert not (tmp_path / "out").exists()


def test_check_generate_reads_settings(capsys):
    words = ["check", "generate", "--base", "B", "--prompts", "F", "--out", "A"]
    assert "strategy must be one of" in refused(capsys, *words, "--strategy", "typo")
    assert "top_p must be" in refused(capsys, *words, "--top_p", "2")


def test_inspect_says_what_will_be_loaded(shared, capsys):
    assert main(["inspect", str(shared / "models" / TEAM), "--mesh", "1,2,2", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["format"] == "original Co-LLM (deferral row)"
    assert facts["vocabulary"]["words"] == 105
    assert facts["parameters_per_device"] < facts["parameters"]


def test_a_mesh_splits_a_team_and_changes_no_answer(shared, tmp_path, capsys):
    prompts = write(tmp_path / "p.jsonl", {"prompt": "Once upon a time there was a"})
    models = ["--base", str(shared / "models" / TEAM), "--expert", str(shared / "models/babyllama-361")]
    answers = []
    for name, sizes in (("one", []), ("eight", ["--mesh", "1,2,4"])):
        out = tmp_path / f"{name}.jsonl"
        options = ["--threshold", "0.3", "--max_new_tokens", "24", *sizes]
        assert main(["generate", *models, "--prompts", prompts, "--out", str(out), *options]) == 0
        answers.append(json.loads(out.read_text())["tokens"])
    assert answers[0] == answers[1]
    capsys.readouterr()
    options = ["--prompts", prompts, "--out", tmp_path / "a.jsonl"]
    assert "needs 16 devices" in refused(capsys, "generate", *models, *options, "--mesh", "1,2,8")
    assert "three whole numbers" in refused(capsys, "generate", *models, *options, "--mesh", "2")


def test_evaluate(tmp_path, capsys):
    predictions = write(tmp_path / "p.jsonl", {"text": "so 7"}, {"text": "8"})
    references = write(tmp_path / "r.jsonl", {"answer": "#### 7"}, {"answer": "9"})
    files = ["--predictions", predictions, "--references", references, "--out", str(tmp_path / "e.json")]
    assert main(["evaluate", "--task", "gsm8k", *files]) == 0
    assert json.loads((tmp_path / "e.json").read_text())["accuracy"] == 0.5


@pytest.mark.parametrize(
    "options, said",
    [
        (["--threshold", "1.5"], "threshold must be a number from 0 to 1, got 1.5"),
        (["--strategy", "guess"], "strategy must be one of defer"),
        (["--strategy", "defer"], "needs a gate and this base has none"),
        (["--strategy", "proxy"], "needs 2 expert(s), this team has 1"),
        (["--strategy", "base", "--temperature", "-1"], "temperature must be a number of at least 0"),
        (["--strategy", "base", "--top_p", "0"], "top_p must be a number above 0"),
        (["--strategy", "base", "--max_new_tokens", "0"], "max_new_tokens must be a whole number"),
        (["--strategy", "base", "--schedule", "steps"], "schedule must be one of"),
        (["--strategy", "base", "--expert", "no/such/dir"], "no such directory"),
    ],
)
def test_generate_refuses(pair, tmp_path, capsys, options, said):
    prompts, out = write(tmp_path / "p.jsonl", {"prompt": "abc"}), tmp_path / "a.jsonl"
    models = ["--base", pair[0], "--expert", pair[1]]
    assert said in refused(capsys, "generate", *models, "--prompts", prompts, "--out", out, *options)
    assert not out.exists()


@pytest.mark.parametrize(
    "lines, said",
    [
        ("", "the file has no data"),
        ('{"prompt": "a"}\n{"prompt": \n', "p.jsonl:2: not valid JSON"),
        ('{"prompt": 3}\n', "p.jsonl:1: 'prompt' must be a string, got 3"),
        ('{"input_ids": [1, 99]}\n', "p.jsonl:1: input_ids[1] is 99"),
        ('{"messages": [{"role": "user", "content": "a"}]}\n', "p.jsonl:1: 'messages' need a chat template"),
        (json.dumps({"prompt": "a" * 200}), "p.jsonl:1: 201 tokens leave no room in the context of 128"),
    ],
)
def test_bad_prompts_name_file_and_line(pair, tmp_path, capsys, lines, said):
    (tmp_path / "p.jsonl").write_text(lines)
    arguments = ["--base", pair[0], "--prompts", tmp_path / "p.jsonl", "--out", tmp_path / "a.jsonl"]
    assert said in refused(capsys, "generate", *arguments, "--strategy", "base")
    assert not (tmp_path / "a.jsonl").exists()


def damage(name):
    """Ways to break a model directory, each with what must be said of it."""

    def truncated(directory):
        file = directory / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])

    def without_weights(directory):
        (directory / "model.safetensors").unlink()

    def without_tokenizer(directory):
        (directory / "tokenizer.json").unlink()

    def broken_config(directory):
        (directory / "config.json").write_text("{")

    return locals()[name]


@pytest.mark.parametrize(
    "how, said",
    [
        ("truncated", "model.safetensors: not a readable safetensors file"),
        ("without_weights", "model.safetensors: weights file is missing"),
        ("without_tokenizer", "no tokenizer"),
        ("broken_config", "config.json: not valid JSON"),
    ],
)
@pytest.mark.parametrize("command", ["run", "score", "generate"])
def test_damaged_models_are_refused_and_leave_nothing(tiny_model, pair, tmp_path, capsys, command, how, said):
    directory = tiny_model("broken")
    damage(how)(directory)
    data, out = write(tmp_path / "d.jsonl", {"prompt": "ab", "completion": "cd"}), tmp_path / "out"
    arguments = {
        "run": ["--base", directory, "--expert", pair[1], "--data", data],
        "score": ["--model", directory, "--data", data],
        "generate": ["--base", directory, "--prompts", data, "--strategy", "base"],
    }[command]
    assert said in refused(capsys, command, *arguments, "--out", out)
    assert not out.exists()


def test_gin_mistakes_are_one_line(pair, tmp_path, capsys):
    data = write(tmp_path / "d.jsonl", {"text": "abc"})
    start = ["run", "--base", pair[0], "--expert", pair[1], "--data", data, "--out", tmp_path / "o"]
    assert "no_such_rate" in refused(capsys, *start, "--gin.Training.no_such_rate=1")
    assert "no such file" in refused(capsys, *start, "--gin_file", tmp_path / "x.gin")
    assert "epochs must be a whole number" in refused(capsys, *start, "--gin.Training.epochs=0")
    assert "batch_size 12 must be a multiple" in refused(
        capsys, *start, "--mesh", "2,4,1", "--gin.Training.batch_size=12"
    )
    assert "looks like" in refused(capsys, *start, "--gin.Training.epochs")
    assert not (tmp_path / "o").exists()


def test_every_stage_can_be_the_last(capsys):
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    assert f"--until {{{','.join(STAGES)}}}" in " ".join(capsys.readouterr().out.split())


def test_sigterm_ends_a_command_with_one_line(monkeypatch, capsys, tmp_path):
    def scores(flags):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(20)

    monkeypatch.setattr(score, "run", scores)
    before = signal.getsignal(signal.SIGTERM)
    assert main(["score", "--model", "m", "--data", "d", "--out", str(tmp_path / "o")]) == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "colm: stopped by SIGTERM; rerun the same command to resume\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_no_memory_left_is_one_line(monkeypatch, capsys, tmp_path):
    def scores(flags):
        np.asarray(jax.jit(lambda: jnp.ones((2**45,)))())

    monkeypatch.setattr(score, "run", scores)
    assert main(["score", "--model", "m", "--data", "d", "--out", str(tmp_path / "o")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("colm: no memory left: Out of memory allocating") and "--mesh" in line


def test_addresses_of_other_stores_are_no_paths(pair, tmp_path, capsys):
    models = ["--base", pair[0], "--expert", pair[1]]
    said = refused(capsys, "train", *models, "--data", "train.jsonl", "--out", "s3://bucket/RUN")
    assert "--out s3://bucket/RUN: is no path; of addresses only gs://BUCKET/NAME" in said
    assert "--expert hdfs://b/e" in refused(capsys, "train", *models, "--expert", "hdfs://b/e", "--out", "RUN")
    bound = refused(capsys, "train", *models, "--gin.Run.data='s3://b/d.jsonl'", "--out", tmp_path / "o")
    assert "s3://b/d.jsonl: is no path" in bound
    assert not (tmp_path / "o").exists()


def test_check_reads_words_and_settings_and_runs_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train = ["check", "train", "--base", "B", "--expert", "E", "--data", "F", "--out", "RUN"]
    assert main([*train, "--mesh", "1,16,1", "--gin.Training.batch_size=32"]) == 0
    assert main(["check", "generate", "--base", "B", "--prompts", "F", "--out", "A", "--mesh", "1,2,8"]) == 0
    assert "batch_size 8 must be a multiple of" in refused(
        capsys, *train, "--mesh", "1,16,1", "--gin.Training.batch_size=8"
    )
    assert "did you mean batch_size" in refused(capsys, *train, "--gin.Training.batch_sizes=8")
    assert "--mesh: 1,2: three whole numbers" in refused(
        capsys, "check", "score", "--model", "M", "--data", "F", "--out", "S", "--mesh", "1,2"
    )
    assert "write the command after it" in refused(capsys, "check")
    for wrong in (["check", "trian"], [*train, "--lenght", "3"]):
        refused(capsys, *wrong)
    assert not list(tmp_path.iterdir())


def test_score_names_a_missing_file(shared, tmp_path, capsys):
    arguments = ["--model", str(shared / "models/babyllama-105"), "--data", str(tmp_path / "no.jsonl")]
    assert main(["score", *arguments, "--out", str(tmp_path / "out")]) == 2
    assert "no.jsonl: cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for command in (
        "demo",
        "run",
        "score",
        "train",
        "refresh",
        "calibrate",
        "generate",
        "evaluate",
        "show",
        "judge",
        "lm_eval",
        "config",
        "check",
        "sweep",
        "plan",
        "convert",
        "inspect",
        "export",
        "bench",
    ):
        assert command in shown


def tensors(directory):
    return load_file(directory / "model.safetensors")


def nats_per_token(team, data):
    """Of a team under its own gate, on what counts in a data file."""
    scored = CoLM.from_pretrained(team).score([json.loads(line) for line in Path(data).read_text().splitlines()])
    columns = [[getattr(text, name)[text.mask] for text in scored] for name in ("base_log_prob", "expert_log_probs")]
    gate = np.concatenate([text.gate_logits[text.mask] for text in scored])[None]
    base, experts = (np.concatenate(column)[None] for column in columns)
    total, count = marginal_nll(gate, base, experts, np.ones(base.shape, bool))
    return float(total / count)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_refresh_takes_up_another_expert_and_leaves_the_base(pair, tiny_model, tmp_path, capsys, dtype):
    rng = np.random.default_rng(0)
    lines = [{"prompt": "ab", "completion": "".join(rng.choice(list("abcdefgh "), 12))} for _ in range(24)]
    files = ["--data", write(tmp_path / "d.jsonl", *lines)]
    dev = ["--dev", write(tmp_path / "v.jsonl", *lines[:4])]
    run, out, fresh, new = tmp_path / "run", tmp_path / "out", tmp_path / "fresh", str(tiny_model("new", seed=2))
    train = ["train", "--dtype", dtype, "--gin.Training.batch_size=8", *files]
    assert main([*train, "--base", pair[0], "--expert", pair[1], "--out", str(run)]) == 0
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    refresh = ["refresh", "--run", str(run), *files, *dev, "--out", str(out)]
    assert main([*refresh, "--expert", new]) == 0
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    old, now = tensors(run / "team"), tensors(out / "team")
    assert old.keys() == now.keys()
    assert all(old[name].dtype == now[name].dtype and (old[name] == now[name]).all() for name in old)
    facts = json.loads((out / "team/colm.json").read_text())
    assert [expert["model"] for expert in facts["experts"]] == [new]
    assert facts["threshold"] is not None
    options = ["--base", str(run / "team"), "--expert", new, "--trainable", "gate", "--out", str(fresh)]
    assert main([*train, *options]) == 0
    assert nats_per_token(out / "team", files[1]) <= nats_per_token(fresh / "team", files[1]) + 1e-6
    hidden = {path: path.stat().st_mtime_ns for path in out.glob("hidden/*")}
    files_of_stage = {"manifest.json", "summary.json", "shard-00000.npy", "shard-00000.json"}
    assert {path.name for path in hidden} == files_of_stage
    assert main([*refresh, "--expert", new, "--expert", pair[1]]) == 0  # again, with two: the hidden states serve
    assert hidden == {path: path.stat().st_mtime_ns for path in out.glob("hidden/*")}
    assert CoLM.from_pretrained(out / "team").gate.kernel.shape == (32, 2)


def test_refresh_refuses(pair, tmp_path, capsys):
    data = write(tmp_path / "d.jsonl", {"prompt": "ab", "completion": "cd"})
    start = ["refresh", "--expert", pair[1], "--data", data, "--dev", data]
    assert "no trained team in it" in refused(capsys, *start, "--run", pair[0], "--out", tmp_path / "out")
    run = tmp_path / "run"
    models = ["--base", pair[0], "--expert", pair[1], "--trainable", "gate"]
    assert main(["train", *models, "--data", data, "--out", str(run)]) == 0
    capsys.readouterr()
    assert "is the run itself" in refused(capsys, *start, "--run", run, "--out", run)
    missing = ["--run", run, "--out", tmp_path / "out", "--expert", "no/such/dir"]
    assert "no such directory" in refused(capsys, *start, *missing)
    assert not (tmp_path / "out").exists()
