"""Print the table of PubMedQA's decisions in docs/results.md, from files of answers:

    prompts="--prompts texts/decisions/test.jsonl --max_new_tokens 4 --batch_size 12"
    colm generate --base BASE --strategy base $prompts --out decisions/base.jsonl
    colm generate --base EXPERT --strategy base $prompts --out decisions/expert.jsonl
    python -m docs.tables.real_decisions --texts texts --answers decisions/base.jsonl --answers decisions/expert.jsonl

TEXTS is what `docs.tables.real_texts` wrote. Every file is compared with always answering "yes", and with the
first one, by the paired bootstrap over the questions.
"""

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from colm_jax.evaluation.compare import paired_bootstrap, wilson
from colm_jax.evaluation.tasks import find_task, score_answers
from colm_jax.storage import read_lines

TASK = "pubmedqa"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, required=True, metavar="DIR", help="of docs.tables.real_texts")
    parser.add_argument("--answers", type=Path, action="append", required=True, metavar="FILE", help="of colm generate")
    flags = parser.parse_args()
    records = read_lines(flags.texts / "decisions" / "test.jsonl")
    task = find_task(TASK)
    references = [task.reference(record, f"line {i}") for i, record in enumerate(records, start=1)]
    files = {path.stem: read_lines(path) for path in flags.answers}
    always = [{"text": " yes", "sources": [0], "expert_calls": 0} for _ in records]
    rows: dict[str, list[dict[str, Any]]] = {"always yes": always, **files}

    scores = {}
    for name, lines in rows.items():
        columns = [[line[key] for line in lines] for key in ("text", "sources", "expert_calls")]
        scores[name] = score_answers(TASK, columns[0], references, columns[1], columns[2])
    print(f"{len(records)} questions: {dict(Counter(references))}\n")
    first = flags.answers[0].stem
    print(f"| answers | right | 95 % | − always yes | p | − {first} | p | answered | deferred |\n|{' --- |' * 9}")
    for name, score in scores.items():
        low, high = wilson(sum(score.correct), len(records))
        cells = [name, f"{sum(score.correct)}", f"{low:.2f} to {high:.2f}"]
        for other in ("always yes", first):
            compared = paired_bootstrap(score.grades, scores[other].grades)
            cells += [f"{compared.difference:+.2f} ({compared.low:+.2f} to {compared.high:+.2f})", f"{compared.p:.2g}"]
        assert task.answer is not None  # this task has one
        said = Counter(task.answer(line["text"]) or "none" for line in rows[name])
        cells += [", ".join(f"{word} {count}" for word, count in said.most_common()), f"{score.deferral_rate:.2f}"]
        print(f"| {' | '.join(cells)} |")
    for name, lines in files.items():
        at_first = [line["p_defer"][0] for line in lines if line["p_defer"]]
        if at_first:
            shown = ", ".join(f"{x:.3f}" for x in np.quantile(at_first, [0, 0.25, 0.5, 0.75, 1]))
            print(f"\n{name}: p_defer at the answer's first token, quartiles {shown}")


if __name__ == "__main__":
    main()
