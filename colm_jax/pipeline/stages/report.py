"""Stages `study` and `report`: what the models held likely in the first answers, and the run's report."""

from pathlib import Path
from typing import Any

from colm_jax import console
from colm_jax.data.records import Examples
from colm_jax.data.tokens import counts
from colm_jax.evaluation.cost import bytes_per_weight
from colm_jax.evaluation.tasks import reference_of
from colm_jax.parallel import is_first
from colm_jax.pipeline.executor import StageKey
from colm_jax.pipeline.reporting import WILSON, answer_for_report, read_generations, training_curves, write_files
from colm_jax.pipeline.stages.answers import EVALUATION, GRADES, test_split
from colm_jax.pipeline.stages.opened import RunContext, run_threshold, trained_team
from colm_jax.pipeline.stages.team import CALIBRATION
from colm_jax.pipeline.study import Study, read_study, write_study
from colm_jax.report.contents import Report, Section, ShownAnswer, Table
from colm_jax.report.gate_study import gate_section
from colm_jax.report.results import calibration_section, cost_section, interval
from colm_jax.settings.references import text_of
from colm_jax.storage import read_json, read_lines
from colm_jax.team import Generation

SHOWN = ("tokens", "train", "calibrate", "team", "generate", "evaluate", "study")  # the stages that a report shows


def study_key(run: RunContext) -> StageKey:
    """Return the team, its answers and the test lines."""
    inputs = run.inputs
    hashes = run.digests("team", "generate") | {"test": inputs.hashes[test_split(inputs)]}
    return StageKey(hashes, {"answers": inputs.config.report_answers})


def write_run_study(run: RunContext, directory: Path) -> None:
    """Score the first answers and test texts with every model, as many as the report shows."""
    inputs, count = run.inputs, run.inputs.config.report_answers
    team = trained_team(run)
    answers = read_generations(_answers_file(run), team)[:count]
    examples = inputs.examples[test_split(inputs)]
    with console.bar("scoring answers") as bar:
        ids = [str(i) for i in range(len(answers))]
        write_study(team, answers, ids, Examples(examples.items[:count], examples.cut), directory, bar.to)


def _answers_file(run: RunContext) -> Path:
    """Return the file of the answers that the report shows, those of the first strategy."""
    return run.directory("generate") / f"{run.inputs.config.answered_by[0]}.jsonl"


def report_key(run: RunContext) -> StageKey:
    """Return everything that the report shows."""
    hashes = run.digests("evaluate", "generate", "study", "tokens", "calibrate")
    return StageKey(hashes, {"answers": run.inputs.config.report_answers})


def write_report(run: RunContext, directory: Path) -> None:
    """Write the report's page, Markdown, JSON and pictures."""
    contents = _contents(run)  # by every process: they load the team together
    if is_first():
        write_files(contents, directory)


def _contents(run: RunContext) -> Report:
    config, team = run.inputs.config, trained_team(run)
    result = read_json(run.directory("evaluate") / EVALUATION)
    study = read_study(run.directory("study"))
    written = read_generations(_answers_file(run), team)
    writers = ("base", *(f"expert {m + 1}" for m in range(len(config.experts))))
    answers = _report_answers(run, written[: config.report_answers], study)
    decoders = team.base, *team.experts
    models, sizes = [each.config for each in decoders], [bytes_per_weight(each) for each in decoders]
    lengths = [(len(answer.prompt_ids), answer.sources) for answer in written]
    calibrated = run.has("calibrate")
    sections = [
        cost_section(writers, models, sizes, lengths),
        calibration_section(read_json(run.directory("calibrate") / CALIBRATION)) if calibrated else None,
        gate_section(answers, study.agreement, f"the first {config.report_answers} {result['split']} texts"),
        Section("Training", plots=tuple(training_curves(run.directory("train") / "metrics.jsonl"))),
    ]
    facts = (
        ("base", config.base),
        *((f"expert {m + 1}", expert) for m, expert in enumerate(config.experts)),
        ("training texts", counts(run.directory("tokens"))),
        ("objective", f"{text_of(config.training.objective)}, trainable: {config.training.trainable}"),
        ("threshold", f"{run_threshold(run):.4f}"),
        ("answers shown", f"{len(answers):,} of {len(written):,} (generate/{_answers_file(run).name})"),
    )
    return Report(
        title="Co-LLM run",
        facts=facts,
        tables=(*([_task_table(result, len(written))] if "task" in result else []), _text_table(run, result)),
        curves=(),
        answers=answers,
        writers=writers,
        sections=tuple(section for section in sections if section is not None),
    )


def _text_table(run: RunContext, result: dict[str, Any]) -> Table:
    """Return nats per token of each model, the fixed mixture, the oracle and the team."""
    texts = result["text"]
    models = [("base", texts["base"]), *((f"expert {m + 1}", v) for m, v in enumerate(texts["experts"]))]
    models += [("fixed mixture", texts["uniform"]), ("per-token oracle", texts["oracle"]), ("team", texts["team"])]
    rows = tuple((name, None if value is None else round(value, 4)) for name, value in models)
    note = f"{texts['tokens']} tokens, each text cut to the context of {run.inputs.context}; lower is better."
    return Table(f"Text: nats per token ({result['split']})", ("model", "nats per token"), rows, note)


def _task_table(result: dict[str, Any], answers: int) -> Table:
    """Return each strategy's accuracy."""
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


def _report_answers(run: RunContext, written: list[Generation], study: Study) -> tuple[ShownAnswer, ...]:
    """Return the team's answers, graded if there is a task, each beside the text that the base writes alone."""
    config, count = run.inputs.config, len(written)
    path = run.directory("generate") / "base.jsonl"
    alone: list[str | None] = [None] * count
    if path.exists():
        alone = [line["text"] for line in read_lines(path)[:count]]
    references: list[str | None] = [None] * count
    grades: list[tuple[bool | None, bool | None]] = [(None, None)] * count
    if config.task is not None:
        records = run.inputs.records[test_split(run.inputs)][:count]
        references = [reference_of(record, where) for where, record in records]
        found = read_json(run.directory("evaluate") / GRADES)
        columns = [found.get(name, [None] * count) for name in (config.answered_by[0], "base")]
        grades = [(ours == 1, None if base is None else base == 1) for ours, base in zip(*columns)][:count]
    team = trained_team(run)
    return tuple(
        answer_for_report(team, answer, references[i], grades[i][0], alone[i], grades[i][1], study.views[str(i)])
        for i, answer in enumerate(written)
    )
