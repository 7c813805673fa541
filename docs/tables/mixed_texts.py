"""Write training, dev and test texts of three domains for the pair of docs/experts.md:

    python -m docs.tables.mixed_texts --gsm8k DIR --pubmedqa ori_pqal.json --stories DIR --out DIR

GSM8K's solutions (DIR/train.jsonl, test.jsonl as published), PubMedQA's long answers, and short stories
(DIR/train.jsonl, dev.jsonl, test.jsonl with {"text"} lines), as many of each.
"""

import argparse
import json
from itertools import chain
from pathlib import Path

SPLITS = ("train", "dev", "test")


def gsm8k(folder: Path, sizes: dict[str, int]) -> dict[str, list[dict]]:
    """Questions with their solutions; dev lines are the last of the training file's first."""
    train, test = (
        [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()] for name in ("train", "test")
    )
    splits = {"train": train, "dev": train[sizes["train"] :], "test": test}
    return {
        split: [{"prompt": f"Question: {r['question']}\n\nAnswer:", "completion": f" {r['answer']}"} for r in records]
        for split, records in splits.items()
    }


def pubmedqa(file: Path, sizes: dict[str, int]) -> dict[str, list[dict]]:
    """Questions with their long answers."""
    records = list(json.loads(file.read_text()).values())
    lines = [{"prompt": f"Question: {r['QUESTION']}\n\nAnswer:", "completion": f" {r['LONG_ANSWER']}"} for r in records]
    first, second = sizes["train"], sizes["train"] + sizes["dev"]
    return {"train": lines, "dev": lines[first:], "test": lines[second:]}


def stories(folder: Path) -> dict[str, list[dict]]:
    """Whole stories."""
    return {
        split: [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()] for split in SPLITS
    }


def main() -> None:
    """Write the files; the domains take turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, text in {"gsm8k": "folder", "pubmedqa": "file", "stories": "folder", "out": "folder to write"}.items():
        parser.add_argument(f"--{name}", type=Path, required=True, metavar=text.split()[0].upper(), help=text)
    for split, size in {"train": 150, "dev": 20, "test": 40}.items():
        parser.add_argument(
            f"--{split}", type=int, default=size, metavar="N", help="texts of each domain (%(default)s)"
        )
    flags = parser.parse_args()
    sizes = {split: getattr(flags, split) for split in SPLITS}
    domains = [gsm8k(flags.gsm8k, sizes), pubmedqa(flags.pubmedqa, sizes), stories(flags.stories)]
    flags.out.mkdir(parents=True, exist_ok=True)
    for split, size in sizes.items():
        mixed = list(chain.from_iterable(zip(*(domain[split][:size] for domain in domains), strict=True)))
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in mixed)
        (flags.out / f"{split}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
