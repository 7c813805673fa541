"""`colm demo`: makes the pair, trains three teams on the same problems, and compares them.

The three runs (Co-LLM, weak supervision, plain fine-tuning) share scores and gate initialisation. The other baselines
need no training.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from colm_jax import console
from colm_jax.checks import check_seed
from colm_jax.demo.pair import TEXTS, TRAINING, make_pair
from colm_jax.evaluation.cost import bytes_per_weight
from colm_jax.evaluation.tasks import score_answers
from colm_jax.models.decoder import Decoder
from colm_jax.pipeline.executor import Stage, StageContext, StageKey, run_stages
from colm_jax.pipeline.files import write_generations
from colm_jax.pipeline.reporting import (
    REPORT,
    WILSON,
    answer_for_report,
    read_generations,
    training_curves,
    write_files,
)
from colm_jax.pipeline.run import FinishedRun, run_pipeline
from colm_jax.pipeline.stage import StageDirectory
from colm_jax.pipeline.study import read_study, write_study
from colm_jax.report.contents import Report, Section, ShownAnswer, Table
from colm_jax.report.gate_study import gate_section
from colm_jax.report.results import calibration_section, cost_section, interval, with_area
from colm_jax.report.store import load_report
from colm_jax.report.terminal import show_report
from colm_jax.settings.calibration import Calibration
from colm_jax.settings.run import RunConfig
from colm_jax.storage import read_json, read_lines, write_json
from colm_jax.team import CoLM

RATES = (0.05, 0.1, 0.13, 0.15, 0.17, 0.2, 0.3, 0.5)  # deferral rates whose thresholds calibration tries
TASK, NEW_TOKENS, BATCH = "number", 40, 64
SHOWN = 200  # answers in the report: all
CURVE = (0.05, 0.1, 0.13, 0.2, 0.4)  # deferral rates whose thresholds the plot shows
TABLE = "table.json"


@dataclass(frozen=True)
class DemoRuns:
    """What the demo's last stages read: the pair and the three runs on it."""

    seed: int
    pair: StageDirectory
    colm: FinishedRun
    weak: FinishedRun
    tuned: FinishedRun

    @property
    def problems(self) -> list[dict[str, Any]]:
        """The test problems."""
        return [record for _, record in self.colm.inputs.records["test"]]


DemoContext = StageContext[DemoRuns]


def run_demo(out: Path, seed: int) -> dict[str, Any]:
    """Run the demo into `out`; print its table, the places of its plots and a few answers. Return the table."""
    seed = check_seed("seed", seed)
    pair = run_stages(PAIR, seed, out)["pair"]
    config = RunConfig(
        base=str(pair.directory / "base"),
        experts=(str(pair.directory / "expert"),),
        data=str(pair.directory / "train.jsonl"),
        dev=str(pair.directory / "dev.jsonl"),
        test=str(pair.directory / "test.jsonl"),
        task=TASK,
        max_new_tokens=NEW_TOKENS,
        batch_size=BATCH,
        training=replace(TRAINING, seed=seed),
        calibration=Calibration(rates=RATES, max_new_tokens=NEW_TOKENS),
    )
    configs = {
        "colm": config,
        "weak": replace(config, training=replace(config.training, objective="weak")),
        "sft": replace(config, dev=None, training=replace(config.training, objective="sft")),
    }
    runs = [run_pipeline(each, out / name, out / "stages", "calibrate") for name, each in configs.items()]
    stages = run_stages(COMPARISON, DemoRuns(seed, pair, *runs), out)
    report = stages["report"].directory
    show_report(load_report(report / REPORT), console.output)
    for name in ("report.html", "curve-1.png", "report.md"):
        console.output.print(f"{report / name}", soft_wrap=True)
    return read_json(stages["answers"].directory / TABLE)


def _write_pair(run: StageContext[int], directory: Path) -> None:
    """Train the pair."""
    with console.bar("training the pair") as bar:
        make_pair(directory, run.inputs, bar.to)


def _answers_key(run: DemoContext) -> StageKey:
    """Return the three teams and the pair."""
    runs = {"colm": run.inputs.colm, "weak": run.inputs.weak, "sft": run.inputs.tuned}
    teams = {name: each.stages["team"].digest for name, each in runs.items()}
    return StageKey(teams | {"pair": run.inputs.pair.digest}, {"curve": CURVE})


def _write_answers(run: DemoContext, directory: Path) -> None:
    """Answer the test problems for every row of the table and every point of the plot."""
    colm, weak, tuned = run.inputs.colm, run.inputs.weak, run.inputs.tuned
    inputs = colm.inputs
    untrained = CoLM(inputs.base, inputs.experts, inputs.expert_tokenizers, inputs.mesh)
    with console.bar("answering test problems") as bar:
        answer = _Answerer(directory, run.inputs.problems, 7 + 2 * len(CURVE), bar.to)
        table = {"co-llm": answer("co-llm", colm.team, "defer", colm.threshold)}
        rate = table["co-llm"]["deferral_rate"]
        table |= {
            "base": answer("base", untrained, "base"),
            "base fine-tuned": answer("base-fine-tuned", tuned.team, "base"),
            "expert": answer("expert", untrained, "expert"),
            "random": answer("random", colm.team, "random", rate=rate),
            "confidence": answer("confidence", tuned.team, "confidence"),
            "weak supervision": answer("weak-supervision", weak.team, "defer", weak.threshold),
        }
        curves: dict[str, list[tuple[float, float]]] = {}
        for name, each in (("co-llm", colm), ("weak supervision", weak)):
            points = [answer(f"curve-{name}", each.team, "defer", eta) for eta in _thresholds(each.calibration)]
            points.append(table[name])  # at its calibrated threshold
            curves[name] = sorted({(point["deferral_rate"], point["accuracy"]) for point in points})
            (directory / f"curve-{name}.jsonl").unlink()
    write_json(directory / TABLE, {"rows": table, "curves": curves})


class _Answerer:
    """Answers the test problems, and grades the answers."""

    def __init__(
        self, directory: Path, problems: list[dict[str, Any]], total: int, progress: Callable[[int, int, str], None]
    ):
        """Args: the directory of answers, the problems, the number of calls, progress callback(done, total, name)."""
        self._directory, self._total, self._progress, self._done = directory, total, progress, 0
        self._prompts = [{"prompt": problem["prompt"]} for problem in problems]
        self._references = [problem["completion"] for problem in problems]

    def __call__(
        self, name: str, team: CoLM, strategy: str, threshold: float = 0.5, rate: float = 0.0
    ) -> dict[str, Any]:
        """Write the answers into NAME.jsonl; return their measures."""
        before = team.engine.expert_passes.copy()
        found = team.generate(
            self._prompts,
            threshold=threshold,
            strategy=strategy,
            max_new_tokens=NEW_TOKENS,
            rate=rate,
            batch_size=BATCH,
        )
        columns = [[getattr(a, key) for a in found] for key in ("text", "sources", "expert_calls")]
        score = score_answers(TASK, columns[0], self._references, columns[1], columns[2])
        names = [str(i) for i in range(len(found))]
        write_generations(self._directory / f"{name}.jsonl", self._prompts, found, names)
        self._done += 1
        self._progress(self._done, self._total, name)
        return {
            "accuracy": score.accuracy,
            "deferral_rate": score.deferral_rate,
            "expert_calls": score.expert_calls,
            "expert_passes": int((team.engine.expert_passes - before).sum()),
            "threshold": threshold if strategy == "defer" else None,
            "correct": list(score.correct),
        }


def _thresholds(calibration: dict[str, Any]) -> list[float]:
    """Return the thresholds whose deferral rates on dev came nearest to those of the plot."""

    def nearest(rate: float) -> float:
        return min(calibration["curve"], key=lambda point: abs(point["deferral_rate"] - rate))["threshold"]

    return list(dict.fromkeys(map(nearest, CURVE)))


def _write_study(run: DemoContext, directory: Path) -> None:
    """Score Co-LLM's answers and the test texts with both models."""
    colm = run.inputs.colm
    found = read_generations(run.directory("answers") / "co-llm.jsonl", colm.team)[:SHOWN]
    with console.bar("scoring answers") as bar:
        ids = [str(i) for i in range(len(found))]
        write_study(colm.team, found, ids, colm.inputs.examples["test"], directory, bar.to)


def _contents(run: DemoContext) -> Report:
    colm, answers = run.inputs.colm, run.directory("answers")
    table, study = read_json(answers / TABLE), read_study(run.directory("study"))
    team, inputs, writers = colm.team, colm.inputs, ("base", "expert")
    lowest, highest = colm.calibration["plateau"]
    chosen = f"chosen on {len(inputs.records['dev'])} dev problems (as good there: {lowest:.4f} to {highest:.4f})"
    lines = {name: [(x, y) for x, y in points] for name, points in table["curves"].items()}
    points = {
        name: (table["rows"][name]["deferral_rate"], table["rows"][name]["accuracy"])
        for name in ("base fine-tuned", "expert", "random", "confidence")
    }
    written = read_generations(answers / "co-llm.jsonl", team)
    lengths = [(len(answer.prompt_ids), answer.sources) for answer in written]
    alone = [line["text"] for line in read_lines(answers / "base.jsonl")]
    correct, alone_correct = (table["rows"][name]["correct"] for name in ("co-llm", "base"))
    shown: tuple[ShownAnswer, ...] = tuple(
        answer_for_report(
            team, answer, problem["completion"], correct[i], alone[i], alone_correct[i], study.views[str(i)]
        )
        for i, (answer, problem) in enumerate(zip(written[:SHOWN], run.inputs.problems))
    )
    decoders = team.base, team.resident_experts[0]
    sections = (
        cost_section(
            writers, [each.config for each in decoders], [bytes_per_weight(each) for each in decoders], lengths
        ),
        calibration_section(colm.calibration),
        gate_section(shown, study.agreement, "the test texts"),
        Section("Training", plots=tuple(training_curves(colm.stages["train"].directory / "metrics.jsonl"))),
    )
    return Report(
        title="Co-LLM demo: a small generalist calls a calculator",
        facts=(
            ("base", f"generalist, {_size(inputs.base.decoder)} parameters: knows the wording"),
            ("expert", f"calculator, {_size(decoders[1])} parameters: knows bare arithmetic"),
            ("threshold", f"{colm.threshold:.4f}, {chosen}"),
            ("base alone", "the base before any training with the expert"),
        ),
        tables=(_accuracy_table(table["rows"], run.inputs.seed),),
        curves=(with_area("Accuracy against deferral rate (test)", lines, points),),
        answers=shown,
        writers=writers,
        sections=tuple(section for section in sections if section is not None),
    )


def _accuracy_table(found: dict[str, Any], seed: int) -> Table:
    """Return the table of all strategies and baselines."""
    order = ("base", "base fine-tuned", "expert", "random", "confidence", "weak supervision", "co-llm")
    notes = {"random": "random, same rate", "co-llm": "Co-LLM, calibrated"}
    count = len(found["co-llm"]["correct"])
    rows: list[tuple[str | float | int, ...]] = []
    for name in order:
        row = found[name]
        shown = (round(row["accuracy"], 3), interval(row["accuracy"], count), round(row["deferral_rate"], 3))
        rows.append((notes.get(name, name), *shown, row["expert_calls"], row["expert_passes"]))
    columns = ("who writes", "accuracy", "95 % interval", "deferral rate", "expert calls", "expert passes")
    note = f"{count} held-out problems, seed {seed}. A pass serves all sequences of a batch that call at that step. "
    note += "Random defers each token at Co-LLM's rate; answers that it cuts short raise its mean over answers. "
    return Table("Accuracy on held-out problems", columns, tuple(rows), note + WILSON)


def _size(decoder: Decoder) -> str:
    return f"{sum(leaf.size for leaf in jax.tree.leaves(nnx.state(decoder))):,}"


PAIR: tuple[Stage[int], ...] = (
    Stage("pair", lambda run: StageKey({}, {"seed": run.inputs, "texts": TEXTS}), _write_pair),
)
COMPARISON: tuple[Stage[DemoRuns], ...] = (
    Stage("answers", _answers_key, _write_answers),
    Stage("study", lambda run: StageKey(run.digests("answers"), {"answers": SHOWN}), _write_study, needs=("answers",)),
    Stage(
        "report",
        lambda run: StageKey(run.digests("answers", "study"), {"answers": SHOWN}),
        lambda run, directory: write_files(_contents(run), directory),
        needs=("answers", "study"),
    ),
)
