"""How often greedy decoding in bfloat16 leaves what float32 writes: the table of docs/decoding.md.

`python -m docs.tables.bfloat16 BASE EXPERT PROMPTS THRESHOLD [NEW]` decodes the prompts of a JSONL file in
both types, and counts answers that differ, where they part for the first time, and how close the choice was there.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from colm_jax import CoLM


def main() -> None:
    """Print the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("base", "expert", "prompts"):
        parser.add_argument(name)
    parser.add_argument("threshold", type=float)
    parser.add_argument("new", type=int, nargs="?", default=96, help="tokens of an answer, at most")
    arguments = parser.parse_args()
    lines = [json.loads(line) for line in Path(arguments.prompts).read_text(encoding="utf-8").splitlines()][:200]
    records = [{"prompt": line["prompt"]} if "prompt" in line else {"prompt": line["text"][:40]} for line in lines]
    teams = {
        dtype: CoLM.from_pretrained(arguments.base, [arguments.expert], dtype=dtype)
        for dtype in ("float32", "bfloat16")
    }
    for strategy in ("base", "expert", "defer"):
        wide, narrow = (
            team.generate(records, threshold=arguments.threshold, strategy=strategy, max_new_tokens=arguments.new)
            for team in teams.values()
        )
        parted, read, writers, gaps = 0, 0, 0, []
        for one, two in zip(wide, narrow):
            pairs = list(zip(one.tokens, two.tokens))
            first = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
            if first is None and len(one.tokens) != len(two.tokens):
                first = len(pairs)  # one ended where the other wrote on
            read += len(one.tokens) if first is None else first + 1
            if first is not None:
                parted += 1
                if first < len(pairs):
                    writers += one.sources[first] != two.sources[first]
                    ids = [*one.prompt_ids, *one.tokens[:first]]
                    gaps.append(gap(teams["float32"], ids, (one.tokens[first], two.tokens[first]), one.sources[first]))
        middle = f"{np.median(gaps):.3f}" if gaps else "-"
        print(
            f"{strategy:8s} answers that part {parted}/{len(wide)}  per 1000 tokens {1000 * parted / read:.2f}  "
            f"by another writer {writers}  median gap of the two tokens in float32 {middle} nats"
        )


def gap(team: CoLM, ids: list[int], tokens: tuple[int, int], source: int) -> float:
    """How much more probable the writer finds one token than the other, nats."""
    found = []
    for token in tokens:
        (scored,) = team.score([{"input_ids": [*ids, token]}])
        found.append(np.concatenate([scored.base_log_prob[-1:], scored.expert_log_probs[-1]])[source])
    return abs(found[0] - found[1])


if __name__ == "__main__":
    main()
