"""Measure marks that say where to check on two real models, one of which has read a document, for docs/marks.md:

    python -m docs.tables.document_marks TEAM EXPERT [--questions N]

TEAM has the gate that `docs.tables.documents` trained (DIR/EXPERT/run/train/team). The risk is learned twice from dev
questions: about documents of other kinds than those of the test questions, and about other documents of the same kinds.
The tables are those of docs/tables/marks.py.
"""

import argparse

from colm_jax import CoLM, console
from colm_jax.calibration.risk import Graded, learn_risk
from colm_jax.decoding.requests import Generation
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


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("team", metavar="TEAM")
    parser.add_argument("expert", metavar="EXPERT")
    parser.add_argument("--questions", type=int, default=120, metavar="N", help="of dev, and of test (%(default)s)")
    parser.add_argument("--threshold", type=float, default=0.5, metavar="X", help="of the gate (%(default)s)")
    flags = parser.parse_args()
    team = CoLM.from_pretrained(flags.team, [flags.expert])
    asked = questions(flags.questions)
    references = [f" {q.answers[0]}" for q in asked]
    for name, kinds in (("other kinds", OTHERS), ("the same kinds", KINDS)):
        team.engine.risk = None
        dev, grades = answer(team, questions(flags.questions, kinds, seed=2), flags.threshold)
        graded = [Graded(a.evidence, grade) for a, grade in zip(dev, grades) if a.evidence is not None]
        team.engine.risk, summary = learn_risk(graded)
        print(f"\nLearned on documents of {name}: {summary}\n")
        print_figures(team, *answer(team, asked, flags.threshold), references)


if __name__ == "__main__":
    main()
