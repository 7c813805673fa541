"""Stages `study` and `report`: what the models held likely in the first answers, and the run's report."""

from pathlib import Path
from typing import Any

from colm_jax import console
from colm_jax.data.tokens import counts
from colm_jax.evaluation.cost import bytes_per_weight
from colm_jax.evaluation.tasks import reference_of
from colm_jax.models.decoder import Decoder
from colm_jax.parallel import is_first
from colm_jax.pipeline.executor import StageKey
from colm_jax.pipeline.files import total_sent
from colm_jax.pipeline.reporting import WILSON, answer_for_report, read_generations, training_curves, write_files
from colm_jax.pipeline.stages.answers import EVALUATION, GRADES, test_split
from colm_jax.pipeline.stages.opened import RunContext, run_threshold, trained_team
from colm_jax.pipeline.stages.team import CALIBRATION, RISK
from colm_jax.pipeline.study import Study, read_study, write_study
from colm_jax.report.contents import Report, Section, ShownAnswer, Table
from colm_jax.report.gate_study import gate_section
from colm_jax.report.results import calibration_section, cost_section, interval
from colm_jax.settings.references import text_of
from colm_jax.storage import read_json, read_lines
from colm_jax.team import Generation

_MARKS = {
    "auroc": "AUROC",
    "mean_risk": "mean risk",
    "wrong": "wrong answers",
    "wrong_marked": "wrong ones with a mark",
    "right_marked": "right ones with a mark",
}
SHOWN = (
    "tokens",
    "train",
    "calibrate",
    "risk",
    "team",
    "generate",
    "evaluate",
    "study",
)  # the stages that a report shows


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
        write_study(team, answers, ids, examples.first(count), directory, bar.to)


def _answers_file(run: RunContext) -> Path:
    """Return the file of the answers that the report shows, those of the first strategy."""
    return run.directory("generate") / f"{run.inputs.config.answered_by[0]}.jsonl"


def report_key(run: RunContext) -> StageKey:
    """Return everything that the report shows."""
    hashes = run.digests("evaluate", "generate", "study", "tokens", "calibrate", "risk")
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
    decoders = [each for each in (team.base, *team.experts) if isinstance(each, Decoder)]
    models, sizes = [each.config for each in decoders], [bytes_per_weight(each) for each in decoders]
    lengths = [(len(answer.prompt_ids), answer.sources) for answer in written]
    calibrated = run.has("calibrate")
    sections = [
        cost_section(writers, models, sizes, lengths) if len(models) == len(writers) else None,
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
        ("marks that say where to check", _marks(run)),
        ("answers shown", f"{len(answers):,} of {len(written):,} (generate/{_answers_file(run).name})"),
        *([("sent to remote experts", _sent(run))] if "remote" in run.inputs.outline.kinds else []),
    )
    return Report(
        title="Co-LLM run",
        facts=facts,
        tables=(
            *([_task_table(result, len(written)), *_marks_table(result)] if "task" in result else []),
            _text_table(run, result),
        ),
        curves=(),
        answers=answers,
        writers=writers,
        sections=tuple(section for section in sections if section is not None),
    )


def _marks(run: RunContext) -> str:
    """Return what the marks are worth on dev, or why there are none."""
    if not run.has("risk"):
        return "none: there are no graded dev answers to learn them from"
    found = read_json(run.directory("risk") / RISK)
    if found["why"] is not None:
        return f"none: {found['why']}"
    return f"{found['marks']:.2f} tokens an answer on dev; of wrong and right dev answers, AUROC {found['auroc']:.3f}"


def _sent(run: RunContext) -> str:
    """Return what was sent for the answers of all strategies, and how many expert calls were lost."""
    files = [run.directory("generate") / f"{name}.jsonl" for name in run.inputs.config.answered_by]
    lines = [line for file in files for line in read_lines(file) if "sent" in line]
    sent, lost = total_sent(lines), sum(len(line.get("lost", ())) for line in lines)
    return f"{sent['characters']:,} characters in {sent['requests']:,} requests; {lost:,} expert calls lost"


def _text_table(run: RunContext, result: dict[str, Any]) -> Table:
    """Return nats per unit and bits per byte of each model, the constant mixtures, the oracle and the team."""
    texts, bits = result["text"], result["bits_per_byte"]
    unit = "token" if run.inputs.outline.shares_tokenizer else "span"
    models = [("base", texts["base"], bits["base"])]
    models += [(f"expert {m}", v, bits[f"expert-{m}"]) for m, v in enumerate(texts["experts"], start=1)]
    both = texts["base"], bits["base"]
    known = bits["mixture"] is not None and all(both)
    mixture = bits["mixture"] * both[0] / both[1] if known else None
    models += [("uniform mixture", texts["uniform"], None), ("best constant mixture", mixture, bits["mixture"])]
    models += [(f"per-{unit} oracle", texts["oracle"], bits["oracle"]), ("team", texts["team"], bits["team"])]
    rows = tuple((name, *(None if value is None else round(value, 4) for value in values)) for name, *values in models)
    size = f"{texts['tokens']} tokens" if unit == "token" else f"{texts['units']} spans"
    note = f"{size}, each text cut to the context of {run.inputs.context}; lower is better. "
    chosen = {"dev": "the dev texts", "data": "the training texts"}.get(result["mixture"]["split"])
    if chosen is None:
        note += "The best constant mixture is unknown: choose its weights on dev texts (--dev)."
    else:
        note += f"The best constant mixture has one weight a model, chosen on {chosen}: what the gate adds is the "
        note += "team's distance from it."
    columns = "model", f"nats per {unit}", "bits per byte"
    if unit == "span":  # of which other teams have others
        columns, rows = (columns[0], *columns[:0:-1]), tuple((row[0], *row[:0:-1]) for row in rows)
    name = f"nats per {unit}" if unit == "token" else "bits per byte"
    return Table(f"Text: {name} ({result['split']})", columns, rows, note)


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


def _marks_table(result: dict[str, Any]) -> list[Table]:
    """Return how good the marks are that say where to check, of the strategies whose answers have any."""
    task = {name: found for name, found in result["task"].items() if name != "name"}
    rows = tuple(
        (name, *(None if (value := found["marks"][key]) is None else round(value, 4) for key in _MARKS))
        for name, found in task.items()
        if "marks" in found
    )
    note = (
        "Risk: the probability that an answer is wrong, learned on dev. AUROC: how often a wrong answer has a higher "
    )
    note += "risk than a right one. The mean risk of calibrated marks is the share of wrong answers."
    return [Table(f"Where to check ({result['split']})", ("strategy", *_MARKS.values()), rows, note)] if rows else []


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
