"""A run's report from real answers: what models held likely, outcomes, costs, and where `colm run` says it lies."""

import json

import numpy as np
import pytest

from colm_jax import CoLM
from colm_jax.cli.main import main
from colm_jax.data.records import Examples
from colm_jax.pipeline.study import CANDIDATES, END, read_study, write_study
from colm_jax.report.store import load_report
from tests.tiny import write_model


def write(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of a tiny pair by the command line, and what it printed."""
    place = tmp_path_factory.mktemp("run")
    base, expert = write_model(place / "base"), write_model(place / "expert", seed=1)
    lines = [
        {"prompt": text[:4], "completion": text[4:]} for text in ("abcdefgh", "hgfe dcb", "aabb ccdd", "dead beef")
    ]
    data, test = write(place / "train.jsonl", *lines), write(place / "test.jsonl", *lines[:3])
    arguments = ["run", "--base", base, "--expert", expert, "--data", data, "--dev", test, "--out", place / "run"]
    arguments += ["--trainable", "gate", "--task", "exact", "--gin.Run.max_new_tokens=12", "--gin.Run.report_answers=2"]
    arguments += ["--gin.Calibration.max_new_tokens=12", "--gin.Training.gate_ridge=0.1"]
    assert main(list(map(str, arguments))) == 0
    return place


def test_colm_run_ends_with_the_reports_path(finished, capsys):
    arguments = ["run", "--base", finished / "base", "--expert", finished / "expert", "--out", finished / "run"]
    arguments += ["--data", finished / "train.jsonl", "--dev", finished / "test.jsonl", "--trainable", "gate"]
    arguments += ["--task", "exact", "--gin.Run.max_new_tokens=12", "--gin.Run.report_answers=2"]
    arguments += ["--gin.Calibration.max_new_tokens=12", "--gin.Training.gate_ridge=0.1"]
    assert main(list(map(str, arguments))) == 0
    captured = capsys.readouterr()
    assert "report: nothing to do" in captured.err
    last = captured.out.splitlines()[-1]
    path = finished / "run" / "report" / "report.html"
    assert last == f"report: {path}"
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_the_report_holds_as_many_answers_as_asked_for_and_every_part(finished):
    report = load_report(finished / "run/report/report.json")
    assert len(report.answers) == 2
    assert [section.title for section in report.sections] == [
        "Cost",
        "Calibration",
        "What the gate learned",
        "Training",
    ]
    assert report.tables[0].columns[:3] == ("strategy", "accuracy", "95 % interval")
    assert {answer.correct for answer in report.answers} <= {True, False}
    assert all(answer.outcome in ("same", "better", "worse") for answer in report.answers)
    pictures = sorted(path.name for path in (finished / "run/report").glob("*.png"))
    assert len(pictures) == len(report.plots)
    page = (finished / "run/report/report.md").read_text(encoding="utf-8")
    assert all(f"({name})" in page for name in pictures)


def test_greedy_writers_held_likeliest_what_they_wrote(finished):
    study = read_study(finished / "run/study")
    lines = (finished / "run/generate/defer.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(study.views) == 2 < len(lines)
    for line in map(json.loads, lines[:2]):
        views = study.views[line["id"]]
        assert len(views) == len(line["tokens"]) > 0
        for view, source in zip(views, line["sources"], strict=True):
            assert len(view) == 2
            assert view[source].written == pytest.approx(view[source].candidates[0][1], abs=1e-5)
    stored = [json.loads(line) for line in (finished / "run/study" / CANDIDATES).read_text().splitlines()]
    tokenizer = CoLM.from_pretrained(finished / "run/team").tokenizer
    for line in stored:
        for model in line["models"]:
            for ids, texts in zip(model["tokens"], model["texts"], strict=True):
                shown = [END if i in tokenizer.eos_ids else tokenizer.decode([i]) for i in ids]
                assert texts == shown  # of a tokenizer of single characters


def test_probabilities_are_those_of_scoring(finished):
    team = CoLM.from_pretrained(finished / "run/team")
    line = json.loads((finished / "run/generate/defer.jsonl").read_text().splitlines()[0])
    prompt = [1, *team.tokenizer.backend.encode(line["prompt"], add_special_tokens=False)]
    ids = [*prompt, *line["tokens"]]
    (scored,) = team.score([{"input_ids": ids, "labels": ids}])
    log_probs = np.column_stack([scored.base_log_prob, scored.expert_log_probs])[len(prompt) - 1 :]
    written = [[view.written for view in views] for views in read_study(finished / "run/study").views["0"]]
    np.testing.assert_allclose(written, np.exp(log_probs), atol=2e-6)


def test_an_expert_held_likeliest_what_it_wrote_and_an_existing_study_is_kept(finished, tmp_path):
    team = CoLM.from_pretrained(finished / "run/team")
    (answer,) = team.generate(["abc"], threshold=0.0, max_new_tokens=5)
    assert set(answer.sources) == {1}
    nothing = Examples([], 0)
    write_study(team, [answer], ["x"], nothing, tmp_path)
    before = (tmp_path / CANDIDATES).stat().st_mtime_ns
    write_study(team, [answer], ["x"], nothing, tmp_path)
    assert (tmp_path / CANDIDATES).stat().st_mtime_ns == before
    study = read_study(tmp_path)
    assert study.agreement is None
    for _, expert in study.views["x"]:
        assert expert.written == pytest.approx(expert.candidates[0][1], abs=1e-5)


def test_the_terminal_shows_a_run(finished, capsys):
    assert main(["show", str(finished / "run"), "--width", "100"]) == 0
    shown = capsys.readouterr().out
    for text in ("Task: exact", "95 % interval", "2 of 2 answers;", "What the gate learned", "Deferral by token class"):
        assert text in shown
    assert "\x1b" not in shown
    assert [len(line) for line in shown.splitlines() if "Co-LLM run" in line] == [100]
    assert main(["show", str(finished / "run"), "--answer", "2"]) == 0
    shown = capsys.readouterr().out
    assert "expert 1's top token" in " ".join(shown.split())
    report = load_report(finished / "run/report/report.json")
    assert shown.count("“") >= 3 * len(report.answers[1].pieces)
    changed = sum(answer.outcome != "same" for answer in report.answers)
    assert main(["show", str(finished / "run"), "--changed"]) == 0
    assert f"{changed} of {changed} answers of which the expert changed" in capsys.readouterr().out


def test_the_terminal_shows_generation_lines(finished, tmp_path, capsys):
    lines = finished / "run/generate/defer.jsonl"
    assert main(["show", str(lines), "--answers", "0"]) == 0  # the tokenizer is that of the run it lies in
    shown = capsys.readouterr().out
    assert "3 of 3 answers;" in shown
    first = json.loads(lines.read_text().splitlines()[0])
    assert first["text"] in shown
    elsewhere = tmp_path / "answers.jsonl"
    write(elsewhere, {**first, "sources": [1] * len(first["sources"])})
    assert main(["show", str(elsewhere)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert first["text"] in shown
    assert "give the model as base" in shown
    assert "by expert 1 (" not in shown
    assert main(["show", str(elsewhere), "--base", str(finished / "base"), "--answer", "1"]) == 0
    shown = capsys.readouterr().out
    assert "by expert 1 (mean p_defer): " in shown
    assert f"“{first['text'][0]}”" in shown


LINE = {
    "prompt": "a",
    "text": "bc",
    "tokens": [5, 6],
    "sources": [0, 1],
    "p_defer": [0.1, 0.9],
    "threshold": [0.5, 0.5],
}


@pytest.mark.parametrize(
    "line, options, said",
    [
        (LINE, ["--answer", "2"], "answer 2: {path} has answers 1 to 1"),
        (LINE, ["--changed"], "changed: {path} does not hold what the base writes alone"),
        (LINE, ["--answers", "-1"], "answers must be at least 1, or 0 for all, got -1"),
        (LINE, ["--width", "5"], "width must be at least 20, got 5"),
        ({**LINE, "sources": [0]}, [], "{path}:1: tokens, sources and p_defer have 2, 1, 2 entries"),
        ({"prompt": "a"}, [], "{path}:1: no 'text'"),
        (None, [], "{path}: no such file"),
    ],
)
def test_show_refuses(tmp_path, capsys, line, options, said):
    path = tmp_path / "answers.jsonl"
    if line is not None:
        write(path, line)
    assert main(["show", str(path), *options]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("colm: " + said.format(path=path))
    assert errors.count("\n") == 1


def test_a_directory_without_a_run_is_refused(tmp_path, capsys):
    assert main(["show", str(tmp_path)]) == 2
    assert "run colm run to its end" in capsys.readouterr().err
