"""Peak resident memory of the stage `calibrate` beyond the loaded models, as JSON; a process of its own.

    python -m docs.tables.calibrate_memory DIR [TEXTS [WIDTH]]

The team is made on the spot: two models of one layer and `WIDTH`, whose final hidden states would take
TEXTS · LENGTH · WIDTH · 4 bytes; texts are of random tokens.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from colm_jax import CoLM
from colm_jax.calibration.threshold import calibrate
from colm_jax.data.records import Examples, encode_examples, read_jsonl
from colm_jax.settings.calibration import Calibration
from docs.tables.load_memory import resident
from tests.tiny import SPECIAL, WORDS, write_model, write_team

LENGTH = 500  # tokens of a text


def write_texts(path: Path, count: int) -> Path:
    """A JSONL file of texts of LENGTH tokens."""
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        for _ in range(count):
            letters = rng.integers(len(SPECIAL), len(WORDS), LENGTH - 1)  # the tokenizer puts one token before them
            file.write(json.dumps({"text": "".join(WORDS[letter] for letter in letters)}) + "\n")
    return path


def calibrated(team: CoLM, file: Path) -> Examples:
    """Reads a file and calibrates on it, as the stage does."""
    records = read_jsonl(file)
    examples = encode_examples(records, team.tokenizer, team.context, str(file), team.allowed)
    calibrate(team, records, examples, None, Calibration())
    return examples


def main() -> None:
    """Print the peak, in bytes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("texts", type=int, nargs="?", default=2000)
    parser.add_argument("width", type=int, nargs="?", default=1024)
    arguments = parser.parse_args()
    folder, count, width = arguments.folder, arguments.texts, arguments.width
    sizes = {"width": width, "depth": 1, "head_dim": 16, "ff": 64, "context": 512}
    base, expert = (write_model(folder / name, seed=seed, **sizes) for seed, name in enumerate(("base", "expert")))
    team = CoLM.from_pretrained(write_team(folder / "team", base, expert))
    calibrated(team, write_texts(folder / "small.jsonl", 16))  # imports, compiler, thread pools
    file = write_texts(folder / "large.jsonl", count)
    before = resident("VmRSS")
    examples = calibrated(team, file)
    figures = {
        "texts": count,
        "positions": int(examples.lengths.sum()),
        "hidden_states": int(examples.lengths.sum()) * width * 4,
        "peak": resident("VmHWM") - before,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
