"""Measure marks that say where to check on two real models, one of which has read a document, for docs/marks.md:

    python -m docs.tables.document_marks TEAM EXPERT [--questions N]

TEAM has the gate that `docs.tables.documents` trained (DIR/EXPERT/run/train/team). The risk is learned twice from dev
questions: about documents of other kinds than those of the test questions, and about other documents of the same kinds.
The tables are those of docs/tables/marks.py.
"""

import argparse
from dataclasses import replace

from colm_jax import CoLM, console
from colm_jax.calibration.risk import Graded, learn_risk
from colm_jax.decoding.requests import Generation
from colm_jax.decoding.risk import Risk, marks, shown
from docs.tables.document_facts import KINDS, OTHERS, Question, questions
from docs.tables.marks import print_figures


def answer(team: CoLM, asked: list[Question], threshold: float) -> tuple[list[Generation], list[float]]:
    """Return answers with their evidence, and whether each has the right value."""
    records = [{"prompt": q.prompt, "expert_prompt": q.with_document(0)} for q in asked]
    with console.bar("answering", len(asked)) as bar:
        answers = team.generate(
            records,
            threshold=threshold,
            max_new_tokens=20,
            batch_size=16,
            stop="\n",
            evidence=True,
            progress=bar.to,
        )
    return answers, [float(q.said(a.text) == q.values[0]) for q, a in zip(asked, answers, strict=True)]


def with_risk(team: CoLM, given: Generation, risk: Risk) -> Generation:
    """Return an answer with what a risk says of it, as a team that has learned the risk returns it."""
    assert given.evidence is not None
    risks, pieces = risk.of(given.evidence).tolist(), team.pieces(given)
    check = marks(pieces, shown(pieces, risks), risk.mark_above)
    return replace(given, risk=risk.of_answer(given.evidence), risks=risks, check=check)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("team", metavar="TEAM")
    parser.add_argument("expert", metavar="EXPERT")
    parser.add_argument("--questions", type=int, default=60, metavar="N", help="of dev, and of test (%(default)s)")
    parser.add_argument("--threshold", type=float, default=0.5, metavar="X", help="of the gate (%(default)s)")
    flags = parser.parse_args()
    team = CoLM.from_pretrained(flags.team, [flags.expert])
    asked = questions(flags.questions)
    answers, grades = answer(team, asked, flags.threshold)
    for name, kinds in (("other kinds", OTHERS), ("the same kinds", KINDS)):
        dev, right = answer(team, questions(flags.questions, kinds, seed=2), flags.threshold)
        graded = [Graded(a.evidence, grade) for a, grade in zip(dev, right) if a.evidence is not None]
        risk, summary = learn_risk(graded)
        print(f"\nLearned on documents of {name}: {summary}\n", flush=True)
        team.engine.risk = risk
        judged = answers if risk is None else [with_risk(team, each, risk) for each in answers]
        print_figures(team, judged, grades, [f" {q.answers[0]}" for q in asked])
        team.engine.risk = None


if __name__ == "__main__":
    main()
