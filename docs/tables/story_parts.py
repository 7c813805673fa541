"""Write short stories in parts of whole words, for the small pair of docs/experts.md, whose context is 256 characters:

    python -m docs.tables.story_parts --stories DIR --characters 200 --out DIR

DIR has train.jsonl and dev.jsonl with {"text"} lines, and tinystories_sample.txt, of which the test texts are made.
"""

import argparse
import json
import re
from pathlib import Path


def parts(text: str, most: int) -> list[str]:
    """Return a text in parts of at most so many characters; line breaks become spaces."""
    found = [""]
    for word in re.findall(r"\S+\s*", text.replace("\n", " ")):
        if len(found[-1]) + len(word) > most:
            found.append("")
        found[-1] += word
    return [part.strip() for part in found if part.strip()]


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stories", type=Path, required=True, metavar="DIR", help="the stories")
    parser.add_argument("--characters", type=int, default=200, metavar="N", help="of a part, at most (default: 200)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    flags = parser.parse_args()
    splits = {
        split: [json.loads(line)["text"] for line in (flags.stories / f"{split}.jsonl").read_text().splitlines()]
        for split in ("train", "dev")
    }
    splits["test"] = (flags.stories / "tinystories_sample.txt").read_text().split("<|endoftext|>")
    flags.out.mkdir(parents=True, exist_ok=True)
    for split, texts in splits.items():
        lines = [{"text": part} for text in texts for part in parts(text, flags.characters)]
        (flags.out / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main()
