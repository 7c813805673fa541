"""How well marks say where an answer goes wrong, against simpler scores, on the test answers of a finished run.

    python -m docs.tables.marks RUN [--prompts N]

RUN is a run directory with a task; its test prompts are answered again with the run's team and threshold. Scores at a
token: the learned risk; p_defer; the probability of the token under its writer, low first; the writer's entropy. Of
each, the table has the area under the ROC curve with which the highest score of an answer tells wrong from right, and
the shares of wrong answers that depart from their reference text in one of the 1 or 3 words with the highest scores
(where the answers follow the wording of their references). Below it, the marks: how many, where, and how calibrated.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from colm_jax.calibration.threshold import decoded_prompts, references_of
from colm_jax.data.records import read_jsonl
from colm_jax.decoding.requests import Generation
from colm_jax.decoding.risk import EVIDENCE, continues
from colm_jax.evaluation.marks import Judged, mark_figures, places_found, rank_area
from colm_jax.evaluation.tasks import score_answers
from colm_jax.pipeline.run import OPERATIVE_CONFIG
from colm_jax.storage import read_json
from colm_jax.team import CoLM


def filled(values: np.ndarray, evidence: np.ndarray) -> np.ndarray:
    """Scores of tokens; those of a span after its first have its score."""
    starts = np.where(~continues(evidence), np.arange(len(values)), 0)
    return values[np.maximum.accumulate(starts)] if len(values) else values


def setting(run: Path, name: str) -> str:
    """A setting of a run, from the gin file that it keeps."""
    lines = (run / OPERATIVE_CONFIG).read_text().splitlines()
    return next(line.partition("=")[2].strip().strip("'\"") for line in lines if line.startswith(f"{name} ="))


def print_figures(
    team: CoLM, answers: Sequence[Generation], grades: Sequence[float], references: Sequence[str]
) -> None:
    """Print the table and the marks.

    Args:
      team: which has learned the risk, or not.
      answers: its own, with evidence.
      grades: of each, from 0, wrong, to 1, right.
      references: right texts; places are judged only if most right answers equal them.
    """
    right = [grade >= 0.5 for grade in grades]
    same = np.mean([a.text.strip() == text.strip() for a, text, good in zip(answers, references, right) if good])
    known = [answer.evidence for answer in answers if answer.evidence is not None]
    column = {name: [found[:, i] for found in known] for i, name in enumerate(EVIDENCE)}
    scores = {
        "p_defer": column["gate"],
        "low probability": [-found for found in column["log_prob"]],
        "entropy": column["entropy"],
    }
    if team.engine.risk is not None:
        scores = {"learned risk": [team.engine.risk.of(found) for found in known], **scores}
    print(f"{len(answers)} answers, {right.count(False)} wrong; {same:.0%} of the right ones equal their reference\n")
    print("| score | AUROC, answers | place among the highest 1 | highest 3 |\n| --- | --- | --- | --- |")
    for name, values in scores.items():
        filled_in = [np.nan_to_num(filled(v, e), nan=-np.inf) for v, e in zip(values, known)]
        area = rank_area([float(v.max(initial=-np.inf)) for v in filled_in], [not each for each in right])
        judged = [
            Judged(team.pieces(answer), v.tolist(), ok, text if same > 0.5 else None)
            for answer, v, ok, text in zip(answers, filled_in, right, references)
        ]
        places = [places_found(judged, most) for most in (1, 3)]
        shown = [f"{found / count:.3f} ({found} of {count})" if count else "–" for found, count in places]
        print(f"| {name} | {'–' if area is None else f'{area:.3f}'} | {' | '.join(shown)} |")
    if team.engine.risk is not None:
        figures = mark_figures([a.risk or 0.0 for a in answers], [bool(a.check) for a in answers], grades)
        count = sum(len(answer.check or ()) for answer in answers)
        listed = ", ".join(f"{k.replace('_', ' ')} {v:.3f}" for k, v in figures.items() if v is not None)
        print(f"\n{count} marks ({count / len(answers):.2f} an answer). {listed}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", type=Path)
    parser.add_argument("--prompts", metavar="FILE", help="other lines than the run's test file")
    arguments = parser.parse_args()
    run, read = arguments.run, lambda name: setting(arguments.run, name)
    task, records = read("Run.task"), read_jsonl(arguments.prompts or read("Run.test"))
    team = CoLM.from_pretrained(run / "team")
    prompts, references = decoded_prompts(records, task, "generations"), references_of(records, task)
    most = int(read("Run.max_new_tokens"))
    answers = team.generate(prompts, max_new_tokens=most, evidence=True)
    columns = [[getattr(answer, key) for answer in answers] for key in ("text", "sources", "expert_calls")]
    grades = score_answers(task, columns[0], references, columns[1], columns[2]).grades
    print_figures(team, answers, grades, [r.get("completion") or r["messages"][-1]["content"] for _, r in records])
    if team.engine.risk is not None:
        print("Read from", run / "team", read_json(run / "team/colm.json")["risk_calibration"])


if __name__ == "__main__":
    main()
