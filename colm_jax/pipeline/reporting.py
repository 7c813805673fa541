"""From a finished run's files to its report: report.html, report.md, pictures, and the summary in the terminal."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from colm_jax.data.tokens import counts
from colm_jax.pipeline import console
from colm_jax.pipeline.stage import Stage
from colm_jax.report.contents import Answer, Curve, Piece, Report, Table
from colm_jax.report.html import write_html
from colm_jax.report.markdown import write_markdown
from colm_jax.report.plots import write_png
from colm_jax.report.terminal import show_report
from colm_jax.team import CoLM, Generation

if TYPE_CHECKING:
    from colm_jax.pipeline.run import Run

_SHOWN = 50  # answers in the report
_POINTS = 200  # of a training curve, at most: more steps are averaged


def read_generations(path: Path, team: CoLM) -> list[Generation]:
    """Generation lines with the ids of their prompts."""
    from colm_jax.data.records import encode_prompt

    answers = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        record = json.loads(line)
        prompt = record["prompt"]
        key = "prompt" if isinstance(prompt, str) else "messages" if isinstance(prompt[0], dict) else "input_ids"
        ids = encode_prompt({key: prompt}, team.tokenizer, f"{path}:{number}")
        fields = ("text", "tokens", "sources", "p_defer", "threshold", "finish_reason", "expert_calls")
        answers.append(Generation(ids, *(record[name] for name in fields)))
    return answers


def answer_for_report(team: CoLM, answer: Generation, reference: str | None, correct: bool | None) -> Answer:
    """An answer as the report shows it: its tokens' texts, who wrote each, and p_defer."""
    rates: Sequence[float | None] = answer.p_defer or [None] * len(answer.tokens)
    pieces = tuple(Piece(*piece) for piece in zip(team.pieces(answer), answer.sources, rates))
    threshold = answer.threshold[-1] if answer.threshold else None
    return Answer(team.tokenizer.decode(answer.prompt_ids), pieces, reference, correct, threshold)


def write_report(run: "Run", calibrated: Stage | None, generated: Stage, evaluated: Stage) -> None:
    """Writes RUN/report and prints its summary and place."""
    result = json.loads((evaluated.directory / "evaluation.json").read_text(encoding="utf-8"))
    calibration = None
    if calibrated is not None:
        calibration = json.loads((calibrated.directory / "calibration.json").read_text(encoding="utf-8"))
    inputs = {"evaluate": evaluated.digest, "generate": generated.digest, "tokens": run.stage("tokens").digest}

    def work(directory: Path) -> None:
        write_files(_contents(run, calibration, generated, result), directory)

    run._do("report", inputs, {}, work)
    show_report(_contents(run, calibration, generated, result), console.output)
    console.output.print(f"report: {run.out / 'report' / 'report.html'}", soft_wrap=True)


def write_files(report: Report, directory: Path) -> None:
    """report.html, report.md and a PNG per curve."""
    directory.mkdir(parents=True, exist_ok=True)
    images = []
    for i, curve in enumerate(report.curves):
        images.append(f"curve-{i + 1}.png")
        write_png(curve, directory / images[-1])
    write_html(report, directory / "report.html")
    write_markdown(report, directory / "report.md", tuple(images))


def _contents(run: "Run", calibration: dict[str, Any] | None, generated: Stage, result: dict[str, Any]) -> Report:
    text = result["text"]
    models = [("base", text["base"]), *((f"expert {m + 1}", v) for m, v in enumerate(text["experts"]))]
    models += [("fixed mixture", text["uniform"]), ("per-token oracle", text["oracle"]), ("team", text["team"])]
    tables = [
        Table(
            f"Text: nats per token ({result['split']})",
            ("model", "nats per token"),
            tuple((name, None if value is None else round(value, 4)) for name, value in models),
            f"{text['tokens']} tokens, each text cut to the context of {run.context}; lower is better.",
        )
    ]
    if "task" in result:
        rows = tuple(
            (name, round(v["accuracy"], 4), round(v["deferral_rate"], 4), v["expert_calls"])
            for name, v in result["task"].items()
            if name != "name"
        )
        columns = ("strategy", "accuracy", "deferral rate", "expert calls")
        tables.append(Table(f"Task: {result['task']['name']} ({result['split']})", columns, rows))
    curves = []
    if calibration is not None:
        line = [(point["deferral_rate"], point["score"]) for point in calibration["curve"]]
        chosen = (calibration["deferral_rate"], calibration["score"])
        title = f"Calibration: {calibration['metric'].replace('_', ' ')} (dev)"
        point = {f"η = {calibration['threshold']:.3f}": chosen}
        curves.append(Curve(title, "deferral rate", calibration["metric"].replace("_", " "), {"team": line}, point))
    curves += training_curves(run.stage("train").directory / "metrics.jsonl")
    answers = read_generations(generated.directory / "defer.jsonl", run.team)[:_SHOWN]
    facts = (
        ("base", run.config.base),
        *((f"expert {m + 1}", expert) for m, expert in enumerate(run.config.experts)),
        ("training texts", counts(run.stage("tokens").directory)),
        ("objective", f"{run.config.training.objective}, trainable: {run.config.training.trainable}"),
        ("threshold", f"{run.threshold():.4f}"),
    )
    return Report(
        title="Co-LLM run",
        facts=facts,
        tables=tuple(tables),
        curves=tuple(curves),
        answers=tuple(answer_for_report(run.team, answer, None, None) for answer in answers),
        writers=("base", *(f"expert {m + 1}" for m in range(len(run.config.experts)))),
    )


def training_curves(metrics: Path) -> list[Curve]:
    """How the loss fell and, where base and gate trained together, what became of deferral and of its certainty."""
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]

    def line(name: str) -> list[tuple[float, float]]:
        values = np.array([(line["step"], line[name]) for line in lines if name in line])
        parts = np.array_split(values, min(_POINTS, len(values))) if len(values) else []
        return [(float(step), float(value)) for step, value in (part.mean(0) for part in parts)]

    curves = [Curve("Training: loss", "step", "nats per token", {"loss": line("loss")}, {})]
    if deferral := line("expected_deferral"):
        gate = {"expected deferral rate": deferral, "responsibilities' entropy, nats": line("responsibility_entropy")}
        shown = {name: points for name, points in gate.items() if points}
        curves.append(Curve("Training: the gate", "step", "mean per token", shown, {}))
    return curves
