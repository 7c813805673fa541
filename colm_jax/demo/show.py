"""`colm demo`: makes the pair, trains three teams on the same problems, and shows them side by side.

Co-LLM, weak supervision and plain fine-tuning share scores and gate start; the baselines need no training of their own.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from colm_jax import console
from colm_jax.checks import check_seed
from colm_jax.data.records import read_jsonl
from colm_jax.demo.pair import TEXTS, TRAINING, make_pair
from colm_jax.evaluation.cost import BYTES
from colm_jax.evaluation.tasks import score_answers
from colm_jax.pipeline.files import write_generations
from colm_jax.pipeline.reporting import (
    REPORT,
    WILSON,
    answer_for_report,
    read_generations,
    training_curves,
    write_files,
)
from colm_jax.pipeline.run import Run
from colm_jax.pipeline.stage import Stage
from colm_jax.pipeline.study import Study, read_study, write_study
from colm_jax.report.contents import Report, Section, Table
from colm_jax.report.gate_study import gate_section
from colm_jax.report.results import calibration_section, cost_section, interval, with_area
from colm_jax.report.store import load_report
from colm_jax.report.terminal import show_report
from colm_jax.settings.calibration import Calibration
from colm_jax.settings.run import RunConfig
from colm_jax.storage import read_json, write_json
from colm_jax.team import CoLM

RATES = (0.05, 0.1, 0.13, 0.15, 0.17, 0.2, 0.3, 0.5)  # deferral rates whose thresholds calibration tries
TASK, NEW_TOKENS, BATCH = "number", 40, 64
SHOWN = 200  # answers in the report: all
CURVE = (0.05, 0.1, 0.13, 0.2, 0.4)  # deferral rates whose thresholds the picture shows


def run_demo(out: Path, seed: int) -> dict[str, Any]:
    """Runs the demo into `out` and prints its table, pictures' places and a few answers. Returns the table."""
    seed = check_seed("seed", seed)
    pair = Stage("pair", out / "pair")

    def make(directory: Path) -> None:
        with console.bar("training the pair") as bar:
            make_pair(directory, seed, bar.to)

    worked = pair.run({}, {"seed": seed, "texts": TEXTS}, make)
    console.errors.print(f"[bold]pair[/]: {'done' if worked else 'nothing to do'}")

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
    store = out / "stages"  # where the three runs have stages in common
    colm = Run(config, out / "colm", store)
    weak = Run(replace(config, training=replace(config.training, objective="weak")), out / "weak", store)
    plain = replace(config, dev=None, training=replace(config.training, objective="sft"))
    tuned = Run(plain, out / "sft", store)
    teams = {"colm": colm.make_team()[0], "weak": weak.make_team()[0], "sft": tuned.make_team()[0]}

    answers = Stage("answers", out / "answers")
    inputs = {name: stage.digest for name, stage in teams.items()} | {"pair": pair.digest}
    answers.run(inputs, {"curve": CURVE}, lambda directory: _answer(directory, colm, weak, tuned))
    table = json.loads((answers.directory / "table.json").read_text(encoding="utf-8"))
    study = Stage("study", out / "study")
    study.run({"answers": answers.digest}, {"answers": SHOWN}, lambda d: _study(d, colm, answers.directory))

    def write(directory: Path) -> None:
        write_files(_report(colm, answers.directory, read_study(study.directory), table, seed), directory)

    report = Stage("report", out / "report")
    report.run({"answers": answers.digest, "study": study.digest}, {"answers": SHOWN}, write)
    show_report(load_report(report.directory / REPORT), console.output)
    for name in ("report.html", "curve-1.png", "report.md"):
        console.output.print(f"{out / 'report' / name}", soft_wrap=True)
    return table


def _answer(directory: Path, colm: Run, weak: Run, tuned: Run) -> None:
    """Decodes the test problems under every row of the table and every point of the picture."""
    records = read_jsonl(colm.config.test or "")
    prompts = [{"prompt": record["prompt"]} for _, record in records]
    references = [record["completion"] for _, record in records]
    untrained = CoLM(colm.base, colm.experts, colm.expert_tokenizers, colm.mesh)
    steps = 7 + 2 * len(CURVE)

    with console.bar("answering test problems", steps) as bar:
        done = 0

        def decode(name: str, team: CoLM, strategy: str, threshold: float = 0.5, rate: float = 0.0) -> dict[str, Any]:
            nonlocal done
            before = team.engine.expert_passes.copy()
            found = team.generate(prompts, threshold, strategy, max_new_tokens=NEW_TOKENS, rate=rate, batch_size=BATCH)
            columns = [[getattr(a, key) for a in found] for key in ("text", "sources", "expert_calls")]
            score = score_answers(TASK, columns[0], references, columns[1], columns[2])
            write_generations(directory / f"{name}.jsonl", prompts, found, [str(i) for i in range(len(prompts))])
            done += 1
            bar.to(done, steps, name)
            return {
                "accuracy": score.accuracy,
                "deferral_rate": score.deferral_rate,
                "expert_calls": score.expert_calls,
                "expert_passes": int((team.engine.expert_passes - before).sum()),
                "threshold": threshold if strategy == "defer" else None,
                "correct": list(score.correct),
            }

        table = {"co-llm": decode("co-llm", colm.team, "defer", colm.threshold())}
        rate = table["co-llm"]["deferral_rate"]
        table |= {
            "base": decode("base", untrained, "base"),
            "base fine-tuned": decode("base-fine-tuned", tuned.team, "base"),
            "expert": decode("expert", untrained, "expert"),
            "random": decode("random", colm.team, "random", rate=rate),
            "confidence": decode("confidence", tuned.team, "confidence"),
            "weak supervision": decode("weak-supervision", weak.team, "defer", weak.threshold()),
        }
        curves: dict[str, list[tuple[float, float]]] = {}
        for name, run in (("co-llm", colm), ("weak supervision", weak)):
            calibration = json.loads((run.out / "calibrate" / "calibration.json").read_text(encoding="utf-8"))
            points = [decode(f"curve-{name}", run.team, "defer", eta) for eta in _thresholds(calibration)]
            points.append(table[name])  # at its calibrated threshold
            curves[name] = sorted({(point["deferral_rate"], point["accuracy"]) for point in points})
            (directory / f"curve-{name}.jsonl").unlink()
    write_json(directory / "table.json", {"rows": table, "curves": curves})


def _study(directory: Path, colm: Run, answers: Path) -> None:
    """Asks both models once more about Co-LLM's answers, and scores the test texts."""
    found = read_generations(answers / "co-llm.jsonl", colm.team)[:SHOWN]
    with console.bar("asking again") as bar:
        ids = [str(i) for i in range(len(found))]
        write_study(colm.team, found, ids, colm.examples["test"], directory, bar.to)


def _thresholds(calibration: dict[str, Any]) -> list[float]:
    """The thresholds whose decoding on dev came nearest to the rates of the picture."""

    def nearest(rate: float) -> float:
        return min(calibration["curve"], key=lambda point: abs(point["deferral_rate"] - rate))["threshold"]

    return list(dict.fromkeys(map(nearest, CURVE)))


def _report(colm: Run, answers: Path, study: Study, table: dict[str, Any], seed: int) -> Report:
    order = ("base", "base fine-tuned", "expert", "random", "confidence", "weak supervision", "co-llm")
    notes = {"random": "random, same rate", "co-llm": "Co-LLM, calibrated"}
    count = len(table["rows"]["co-llm"]["correct"])
    rows: list[tuple[str | float | int, ...]] = []
    for name in order:
        row = table["rows"][name]
        shown = (round(row["accuracy"], 3), interval(row["accuracy"], count), round(row["deferral_rate"], 3))
        rows.append((notes.get(name, name), *shown, row["expert_calls"], row["expert_passes"]))
    columns = ("who writes", "accuracy", "95 % interval", "deferral rate", "expert calls", "expert passes")
    note = f"{count} held-out problems, seed {seed}. A pass serves all sequences of a batch that call at that step. "
    note += "Random defers each token at Co-LLM's rate; answers that it cuts short raise its mean over answers. "
    lines = {name: [(x, y) for x, y in points] for name, points in table["curves"].items()}
    points = {
        name: (table["rows"][name]["deferral_rate"], table["rows"][name]["accuracy"])
        for name in ("base fine-tuned", "expert", "random", "confidence")
    }
    team, writers = colm.team, ("base", "expert")
    written = read_generations(answers / "co-llm.jsonl", team)
    alone = read_generations(answers / "base.jsonl", team)
    references = [record for _, record in read_jsonl(colm.config.test or "")]
    correct, alone_correct = (table["rows"][name]["correct"] for name in ("co-llm", "base"))
    shown_answers = tuple(
        answer_for_report(
            team,
            written[i],
            references[i]["completion"],
            correct[i],
            alone[i].text,
            alone_correct[i],
            study.views[str(i)],
        )
        for i in range(min(SHOWN, count))
    )
    calibration = read_json(colm.out / "calibrate" / "calibration.json")
    lowest, highest = calibration["plateau"]
    chosen = f"chosen on {len(colm.records['dev'])} dev problems (as good there: {lowest:.4f} to {highest:.4f})"
    lengths = [(len(answer.prompt_ids), answer.sources) for answer in written]
    sections = (
        cost_section(writers, [team.base.config, team.experts[0].config], [BYTES[colm.config.dtype]] * 2, lengths),
        calibration_section(calibration),
        gate_section(shown_answers, study.agreement, "the test texts"),
        Section("Training", plots=tuple(training_curves(colm.out / "train" / "metrics.jsonl"))),
    )
    return Report(
        title="Co-LLM demo: a small generalist calls a calculator",
        facts=(
            ("base", f"generalist, {_size(colm, 'base')} parameters: knows the wording"),
            ("expert", f"calculator, {_size(colm, 'expert')} parameters: knows bare arithmetic"),
            ("threshold", f"{colm.threshold():.4f}, {chosen}"),
            ("base alone", "the base before any training with the expert"),
        ),
        tables=(Table("Accuracy on held-out problems", columns, tuple(rows), note + WILSON),),
        curves=(with_area("Accuracy against deferral rate (test)", lines, points),),
        answers=shown_answers,
        writers=writers,
        sections=tuple(section for section in sections if section is not None),
    )


def _size(colm: Run, which: str) -> str:
    decoder = colm.base.decoder if which == "base" else colm.experts[0]
    return f"{sum(leaf.size for leaf in jax.tree.leaves(nnx.state(decoder))):,}"
