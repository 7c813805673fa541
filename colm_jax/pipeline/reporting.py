"""Reports of generated answers, for runs, sweeps and the demo: answers read back, training curves, files written."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from colm_jax.decoding.risk import Mark, marked
from colm_jax.pipeline.files import ids_of_prompt
from colm_jax.report.contents import Curve, Piece, Report, ShownAnswer, View
from colm_jax.report.html import write_html
from colm_jax.report.markdown import write_markdown
from colm_jax.report.plots import write_png
from colm_jax.report.store import save_report
from colm_jax.storage import make_directory, read_lines
from colm_jax.team import CoLM, Generation

REPORT = "report.json"
WILSON = "Interval: Wilson's, at 95 %."
_POINTS = 200  # largest number of points of a training curve: more steps are averaged


def read_generations(path: Path, team: CoLM) -> list[Generation]:
    """Read generation lines, and encode their prompts."""
    answers = []
    for number, record in enumerate(read_lines(path), start=1):
        ids = ids_of_prompt(record, team.tokenizer, f"{path}:{number}")
        fields = ("text", "tokens", "sources", "p_defer", "threshold", "finish_reason", "expert_calls")
        answer = Generation(ids, *(record[name] for name in fields))
        if "check" in record:
            answer = replace(answer, risks=record["risks"], check=tuple(Mark(**mark) for mark in record["check"]))
        answers.append(answer)
    return answers


def answer_for_report(
    team: CoLM,
    answer: Generation,
    reference: str | None = None,
    correct: bool | None = None,
    alone: str | None = None,
    alone_correct: bool | None = None,
    views: Sequence[tuple[View, ...]] = (),
) -> ShownAnswer:
    """Return an answer as the report shows it: of each token the text, the writer, p_defer and each model's view."""
    count, texts = len(answer.tokens), team.pieces(answer)
    rates: Sequence[float | None] = answer.p_defer or [None] * count
    risks: Sequence[float | None] = answer.risks or [None] * count
    checks = marked(texts, answer.check or ())
    pieces = zip(texts, answer.sources, rates, views or [()] * count, risks, checks, strict=True)
    return ShownAnswer(
        prompt=team.tokenizer.decode(answer.prompt_ids),
        pieces=tuple(Piece(*piece) for piece in pieces),
        reference=reference,
        correct=correct,
        threshold=answer.threshold[-1] if answer.threshold else None,
        alone=alone,
        alone_correct=alone_correct,
    )


def write_files(report: Report, directory: Path) -> None:
    """Write report.html, report.md, report.json and a PNG for each plot."""
    make_directory(directory)
    images = []
    for i, plot in enumerate(report.plots):
        images.append(f"curve-{i + 1}.png")
        write_png(plot, directory / images[-1])
    write_html(report, directory / "report.html")
    write_markdown(report, directory / "report.md", tuple(images))
    save_report(report, directory / REPORT)


def training_curves(metrics: Path) -> list[Curve]:
    """Return the loss by step and, if base and gate were trained together, deferral rate and entropy."""
    lines = read_lines(metrics)

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
