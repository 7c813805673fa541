"""From a finished run's files to its report: report.html, report.md, pictures, and the summary in the terminal."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from colm_jax import console
from colm_jax.data.records import Examples
from colm_jax.data.tokens import counts
from colm_jax.evaluation.cost import BYTES
from colm_jax.evaluation.tasks import reference_of
from colm_jax.parallel import is_first
from colm_jax.pipeline.answering import GRADES
from colm_jax.pipeline.files import ids_of_prompt
from colm_jax.pipeline.stage import Stage
from colm_jax.pipeline.study import Study, read_study, write_study
from colm_jax.report.contents import Curve, Piece, Report, Section, ShownAnswer, Table, View
from colm_jax.report.gate_study import gate_section
from colm_jax.report.html import write_html
from colm_jax.report.markdown import write_markdown
from colm_jax.report.plots import write_png
from colm_jax.report.results import calibration_section, cost_section, interval
from colm_jax.report.store import load_report, save_report
from colm_jax.report.terminal import show_report
from colm_jax.settings.references import text_of
from colm_jax.storage import make_directory, read_json, read_lines
from colm_jax.team import CoLM, Generation

if TYPE_CHECKING:
    from colm_jax.pipeline.run import Run

REPORT = "report.json"
WILSON = "Interval: Wilson's, at 95 %."
_POINTS = 200  # of a training curve, at most: more steps are averaged


def read_generations(path: Path, team: CoLM) -> list[Generation]:
    """Generation lines with the ids of their prompts."""
    answers = []
    for number, record in enumerate(read_lines(path), start=1):
        ids = ids_of_prompt(record, team.tokenizer, f"{path}:{number}")
        fields = ("text", "tokens", "sources", "p_defer", "threshold", "finish_reason", "expert_calls")
        answers.append(Generation(ids, *(record[name] for name in fields)))
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
    """An answer as the report shows it: its tokens' texts, who wrote each, p_defer, and what each model held likely."""
    count = len(answer.tokens)
    rates: Sequence[float | None] = answer.p_defer or [None] * count
    pieces = zip(team.pieces(answer), answer.sources, rates, views or [()] * count, strict=True)
    return ShownAnswer(
        prompt=team.tokenizer.decode(answer.prompt_ids),
        pieces=tuple(Piece(*piece) for piece in pieces),
        reference=reference,
        correct=correct,
        threshold=answer.threshold[-1] if answer.threshold else None,
        alone=alone,
        alone_correct=alone_correct,
    )


def study_answers(run: "Run", team: Stage, generated: Stage) -> Stage:
    """Asks every model once more about the first answers and test texts, as many as the report shows."""
    count = run.config.report_answers
    split = run.test_split
    assert split is not None  # there are answers

    def work(directory: Path) -> None:
        answers = read_generations(_answers_file(run, generated), run.team)[:count]
        examples = run.examples[split]
        with console.bar("asking again") as bar:
            ids = [str(i) for i in range(len(answers))]
            write_study(run.team, answers, ids, Examples(examples.items[:count], examples.cut), directory, bar.to)

    inputs = {"team": team.digest, "generate": generated.digest, "test": run.hashes[split]}
    return run.do("study", inputs, {"answers": count}, work)


def _answers_file(run: "Run", generated: Stage) -> Path:
    """The answers that the report shows, by the first strategy."""
    return generated.directory / f"{run.config.answered_by[0]}.jsonl"


def write_report(run: "Run", calibrated: Stage | None, generated: Stage, evaluated: Stage, studied: Stage) -> None:
    """Writes RUN/report and prints its summary and place."""
    inputs = {"evaluate": evaluated.digest, "generate": generated.digest, "study": studied.digest}
    inputs |= {"tokens": run.stage("tokens").digest}
    inputs |= {} if calibrated is None else {"calibrate": calibrated.digest}

    def work(directory: Path) -> None:
        contents = _contents(run, calibrated, generated, evaluated, studied)  # by all: they load the team together
        if is_first():
            write_files(contents, directory)

    stage = run.do("report", inputs, {"answers": run.config.report_answers}, work)
    if is_first():
        show_report(load_report(stage.directory / REPORT), console.output)
        console.output.print(f"report: {stage.directory / 'report.html'}", soft_wrap=True)


def write_files(report: Report, directory: Path) -> None:
    """report.html, report.md, report.json and a PNG per plot."""
    make_directory(directory)
    images = []
    for i, plot in enumerate(report.plots):
        images.append(f"curve-{i + 1}.png")
        write_png(plot, directory / images[-1])
    write_html(report, directory / "report.html")
    write_markdown(report, directory / "report.md", tuple(images))
    save_report(report, directory / REPORT)


def _contents(run: "Run", calibrated: Stage | None, generated: Stage, evaluated: Stage, studied: Stage) -> Report:
    result = read_json(evaluated.directory / "evaluation.json")
    study = read_study(studied.directory)
    count = run.config.report_answers
    texts = result["text"]
    models = [("base", texts["base"]), *((f"expert {m + 1}", v) for m, v in enumerate(texts["experts"]))]
    models += [("fixed mixture", texts["uniform"]), ("per-token oracle", texts["oracle"]), ("team", texts["team"])]
    tables = []
    written = read_generations(_answers_file(run, generated), run.team)
    if "task" in result:
        tables.append(_task_table(result, len(written)))
    tables.append(
        Table(
            f"Text: nats per token ({result['split']})",
            ("model", "nats per token"),
            tuple((name, None if value is None else round(value, 4)) for name, value in models),
            f"{texts['tokens']} tokens, each text cut to the context of {run.context}; lower is better.",
        )
    )
    writers = ("base", *(f"expert {m + 1}" for m in range(len(run.config.experts))))
    configs = [decoder.config for decoder in (run.team.base, *run.team.experts)]
    kinds = [run.config.dtype, *[run.config.expert_dtype or run.config.dtype] * len(run.config.experts)]
    answers = _answers(run, result["split"], generated, evaluated, written[:count], study)
    lengths = [(len(answer.prompt_ids), answer.sources) for answer in written]
    sections = [
        cost_section(writers, configs, [BYTES[kind] for kind in kinds], lengths),
        calibration_section(read_json(calibrated.directory / "calibration.json")) if calibrated else None,
        gate_section(answers, study.agreement, f"the first {count} {result['split']} texts"),
        Section("Training", plots=tuple(training_curves(run.stage("train").directory / "metrics.jsonl"))),
    ]
    facts = (
        ("base", run.config.base),
        *((f"expert {m + 1}", expert) for m, expert in enumerate(run.config.experts)),
        ("training texts", counts(run.stage("tokens").directory)),
        ("objective", f"{text_of(run.config.training.objective)}, trainable: {run.config.training.trainable}"),
        ("threshold", f"{run.threshold():.4f}"),
        ("answers shown", f"{len(answers):,} of {len(written):,} (generate/{_answers_file(run, generated).name})"),
    )
    return Report(
        title="Co-LLM run",
        facts=facts,
        tables=tuple(tables),
        curves=(),
        answers=answers,
        writers=writers,
        sections=tuple(section for section in sections if section is not None),
    )


def _task_table(result: dict[str, Any], answers: int) -> Table:
    rows = tuple(
        (
            name,
            round(found["accuracy"], 4),
            interval(found["accuracy"], answers),
            round(found["deferral_rate"], 4),
            found["expert_calls"],
        )
        for name, found in result["task"].items()
        if name != "name"
    )
    columns = ("strategy", "accuracy", "95 % interval", "deferral rate", "expert calls")
    return Table(f"Task: {result['task']['name']} ({result['split']})", columns, rows, f"{answers:,} answers. {WILSON}")


def _answers(
    run: "Run", split: str, generated: Stage, evaluated: Stage, written: list[Generation], study: Study
) -> tuple[ShownAnswer, ...]:
    """The team's answers, graded where there is a task, beside what the base writes alone."""
    count = len(written)
    path = generated.directory / "base.jsonl"
    alone: list[str | None] = [None] * count
    if path.exists():
        alone = [answer.text for answer in read_generations(path, run.team)[:count]]
    references: list[str | None] = [None] * count
    grades: list[tuple[bool | None, bool | None]] = [(None, None)] * count
    if run.config.task is not None:
        references = [reference_of(record, where) for where, record in run.records[split][:count]]
        found = read_json(evaluated.directory / GRADES)
        columns = [found.get(name, [None] * count) for name in (run.config.answered_by[0], "base")]
        grades = [(ours == 1, None if base is None else base == 1) for ours, base in zip(*columns)][:count]
    return tuple(
        answer_for_report(run.team, answer, references[i], grades[i][0], alone[i], grades[i][1], study.views[str(i)])
        for i, answer in enumerate(written)
    )


def training_curves(metrics: Path) -> list[Curve]:
    """How the loss fell and, where base and gate trained together, what became of deferral and of its certainty."""
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
