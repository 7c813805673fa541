"""What taking tokens back gains where an expert is wrong on part of its domain: the table of docs/decoding.md.

`python -m docs.tables.correction DEMO`, where DEMO is what `colm demo --out DEMO` wrote. It trains the demo's
expert anew on texts in which two results of three of one operator are wrong (ten too many), and lets the demo's team,
trained with the right expert, call that one. Settings are chosen on dev, and graded on test.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from colm_jax import CoLM
from colm_jax.evaluation.tasks import score_answers
from colm_jax.settings.generation import Correction
from docs.tables.experts import write_expert

GRID = [Correction(sure=sure, bound=bound) for sure in (0.6, 0.75, 0.9) for bound in (-100.0, -4.0)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", metavar="DEMO", type=Path)
    demo = parser.parse_args().demo
    lines = {
        split: [json.loads(x) for x in (demo / f"pair/{split}.jsonl").read_text().splitlines()]
        for split in ("dev", "test")
    }
    teams = {
        "right": CoLM.from_pretrained(demo / "colm/team", [demo / "pair/expert"]),
        "wrong": CoLM.from_pretrained(demo / "colm/team", [write_expert(demo / "experts/wrong", "wrong", 0)]),
    }

    def grade(expert: str, split: str, strategy: str, correction: Correction | None = None):
        team, chosen = teams[expert], lines[split]
        passes, steps = team.engine.expert_passes.copy(), team.engine.base_steps
        answers = team.generate(
            [{"prompt": x["prompt"]} for x in chosen], strategy=strategy, correction=correction, batch_size=1
        )
        score = score_answers(
            "number",
            [a.text for a in answers],
            [x["answer"] for x in chosen],
            [a.sources for a in answers],
            [a.expert_calls for a in answers],
        )
        product = np.array([x["kind"] in ("product", "two-step") for x in chosen])
        right = np.array(score.correct)
        calls = int((team.engine.expert_passes - passes)[0]) / len(chosen)
        return (
            right.mean(),
            right[product].mean(),
            right[~product].mean(),
            calls,
            (team.engine.base_steps - steps) / len(chosen),
        )

    def show(name, figures):
        print(name.ljust(44), *(f"{x:8.3f}" for x in figures))

    print("".ljust(44), "accuracy  with ·  others   passes   steps   (an answer)")
    show("right expert, defer", grade("right", "test", "defer"))
    for strategy in ("base", "defer", "compose"):
        show(f"wrong expert, {strategy}", grade("wrong", "test", strategy))
    for strategy in ("backtrack", "lookahead"):
        best = max(GRID, key=lambda c: grade("wrong", "dev", strategy, c)[0])
        show(f"wrong expert, {strategy}", grade("wrong", "test", strategy, best))
        print("   chosen on dev:", best)
        show(f"right expert, {strategy}, same settings", grade("right", "test", strategy, best))


if __name__ == "__main__":
    main()
