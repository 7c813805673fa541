"""Write the texts of docs/results.md, four domains in training, dev and test files:

    python -m docs.tables.real_texts --gsm8k DIR --math MATH500.jsonl --pubmedqa DIR --stories DIR --out DIR

GSM8K (DIR/train.jsonl and test.jsonl as published), MATH-500, PubMedQA (DIR/ori_pqal.json and test_ground_truth.json as
published) and stories ({"text"} lines in DIR/train.jsonl, dev.jsonl, test.jsonl; their first sentences). In each, the
first texts that are short enough are used, so the split is deterministic:

    train.jsonl, dev.jsonl, test.jsonl            all domains in turn, {"domain", ...}
    half/train.jsonl, dev.jsonl, test.jsonl       every other round of these
    DOMAIN/train.jsonl, dev.jsonl, test.jsonl     one domain
    tune/train.jsonl                              further texts of GSM8K, to fine-tune an expert
    decisions/dev.jsonl, test.jsonl               PubMedQA's yes, no or maybe, with the abstract (`colm convert`)
"""

import argparse
import json
import re
from collections.abc import Iterable
from itertools import chain, islice
from pathlib import Path
from typing import Any

from colm_jax.data.convert import convert

Line = dict[str, Any]
SPLITS = ("train", "dev", "test")
GSM8K_DEV, GSM8K_TUNE = 7000, 2000  # rows of train.jsonl where the dev texts, and those of fine-tuning, begin
# Texts of each split that are set apart where one file serves several, so that a split does not depend on the others.
APART = {"train": 80, "dev": 25, "test": 60}


def lines_of(file: Path) -> list[Line]:
    """Return the objects of a JSONL file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def converted(records: Iterable[Line], form: str) -> list[Line]:
    """Return data lines of official records, as `colm convert` writes them."""
    return convert([(f"record {i}", record) for i, record in enumerate(records)], form)


def characters(line: Line) -> int:
    """Return the length of a text with its prompt."""
    return len(line.get("text", "")) + len(line.get("prompt", "")) + len(line.get("completion", ""))


def first(lines: Iterable[Line], count: int, longest: int, name: str) -> list[Line]:
    """Return the first texts of at most `longest` characters."""
    found = list(islice((line for line in lines if characters(line) <= longest), count))
    if len(found) < count:
        raise SystemExit(f"{name}: {len(found)} texts of at most {longest} characters, {count} are asked for")
    return found


def shortened(lines: Iterable[Line], longest: int) -> list[Line]:
    """Return the beginnings of stories, whole sentences of at most `longest` characters."""
    found = [re.search(rf"(?s)^.{{1,{longest - 1}}}[.!?](?=\s|$)", line["text"]) for line in lines]
    return [{"text": match[0]} for match in found if match is not None]


def pubmedqa(folder: Path) -> tuple[list[Line], list[Line]]:
    """Return PubMedQA's records outside and inside the official test split."""
    records = json.loads((folder / "ori_pqal.json").read_text(encoding="utf-8"))
    tested = json.loads((folder / "test_ground_truth.json").read_text(encoding="utf-8"))
    outside = [{"id": key, **record} for key, record in records.items() if key not in tested]
    return outside, [{"id": key, **record} for key, record in records.items() if key in tested]


def long_answers(records: Iterable[Line]) -> list[Line]:
    """Return PubMedQA's questions with their long answers, without the abstract."""
    return [
        {"id": r["id"], "prompt": f"Question: {r['QUESTION']}\n\nAnswer:", "completion": f" {r['LONG_ANSWER']}"}
        for r in records
    ]


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, text in {"gsm8k": "folder", "math": "file", "pubmedqa": "folder", "stories": "folder"}.items():
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="DIR" if text == "folder" else "FILE")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    for split, size in {"train": 32, "dev": 10, "test": 32, "tune": 48, "decisions": 60}.items():
        parser.add_argument(f"--{split}", type=int, default=size, metavar="N", help="texts (%(default)s)")
    parser.add_argument("--characters", type=int, default=540, metavar="N", help="longest text (%(default)s)")
    parser.add_argument(
        "--abstract", type=int, default=1200, metavar="N", help="longest with an abstract (%(default)s)"
    )
    flags = parser.parse_args()
    sizes, longest = {split: getattr(flags, split) for split in SPLITS}, flags.characters

    gsm8k = converted(lines_of(flags.gsm8k / "train.jsonl"), "gsm8k")
    outside, tested = pubmedqa(flags.pubmedqa)
    stories = {split: shortened(lines_of(flags.stories / f"{split}.jsonl"), longest) for split in SPLITS}
    sources: dict[str, dict[str, list[Line]]] = {
        "gsm8k": {
            "train": gsm8k[:GSM8K_TUNE],
            "dev": gsm8k[GSM8K_DEV:],
            "test": converted(lines_of(flags.gsm8k / "test.jsonl"), "gsm8k"),
        },
        "pubmedqa": {"test": long_answers(tested)},
        "stories": stories,
    }
    for name, pool in {"math": converted(lines_of(flags.math), "math"), "pubmedqa": long_answers(outside)}.items():
        known = sources.setdefault(name, {})
        for split in SPLITS:  # one after the other out of one file
            if split not in known:
                known[split] = first(pool, APART[split], longest, name)
                used = {line["id"] for line in known[split]}
                pool = [line for line in pool if line["id"] not in used]

    chosen = {
        split: {
            name: [{"domain": name, **line} for line in first(of[split], size, longest, f"{name}, {split}")]
            for name, of in sorted(sources.items())
        }
        for split, size in sizes.items()
    }
    files: dict[str, list[Line]] = {}
    for split, of_domains in chosen.items():
        rounds = list(zip(*of_domains.values(), strict=True))
        files[split] = list(chain.from_iterable(rounds))
        files[f"half/{split}"] = list(chain.from_iterable(rounds[::2]))
        files |= {f"{name}/{split}": lines for name, lines in of_domains.items()}
    files["tune/train"] = first(gsm8k[GSM8K_TUNE:GSM8K_DEV], flags.tune, longest, "gsm8k, tune")
    for split, records in {"dev": outside, "test": tested}.items():
        lines = converted(records, "pubmedqa")
        files[f"decisions/{split}"] = first(lines, flags.decisions, flags.abstract, f"pubmedqa, decisions, {split}")
    for name, lines in files.items():
        path = flags.out / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
        print(f"{path}: {len(lines)} texts, {sum(map(characters, lines)):,} characters")


if __name__ == "__main__":
    main()
