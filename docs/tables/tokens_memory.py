"""Measure the peak resident memory of tokenising and reading a large file, in a separate process; prints JSON.

    python -m docs.tables.tokens_memory DIR

The generated file has 120 MB of texts of random tokens, a third of them longer than the context.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from colm_jax.data.batches import collate, padded_length, shuffled
from colm_jax.data.records import Examples
from colm_jax.data.tokens import open_tokens, tokenise
from colm_jax.text.tokenizer import Tokenizer, load_tokenizer
from docs.tables.load_memory import resident
from tests.tiny import SPECIAL, write_tokenizer

BYTES = 120_000_000
CONTEXT = 4096
BATCH = 8


def write_texts(path: Path, size: int, words: int) -> None:
    """Write a JSONL file of `input_ids` with about `size` bytes, one text at a time."""
    rng, written = np.random.default_rng(0), 0
    with path.open("w") as file:
        while written < size:
            ids = rng.integers(len(SPECIAL), words, rng.integers(2000, 5000))
            written += file.write(json.dumps({"input_ids": ids.tolist()}) + "\n")


def read_through(source: Path, tokenizer: Tokenizer, directory: Path) -> tuple[Examples, int]:
    """Tokenise, open, and make every batch of a shuffled epoch; return the texts and the number of tokens."""
    allowed = np.ones(tokenizer.size, bool)
    tokenise(source, tokenizer, CONTEXT, directory, allowed)
    examples, read = open_tokens(directory), 0
    length = padded_length(examples.lengths)
    for rows in shuffled(len(examples.items), BATCH, epochs=1, seed=0):
        read += int((collate(examples.items, rows, BATCH, length).segments > 0).sum())
    return examples, read


def main() -> None:
    """Print the peak, in bytes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    words = [*SPECIAL, *(f"w{i}" for i in range(3000))]
    tokenizer = load_tokenizer(write_tokenizer(folder / "tokenizer", words))
    for name, size in (("small", 200_000), ("large", BYTES)):
        write_texts(folder / f"{name}.jsonl", size, len(words))
    read_through(folder / "small.jsonl", tokenizer, folder / "small")  # imports, buffers, thread pools
    before = resident("VmRSS")
    examples, read = read_through(folder / "large.jsonl", tokenizer, folder / "large")
    figures = {
        "file": (folder / "large.jsonl").stat().st_size,
        "tokens": int(examples.lengths.sum()),
        "read": read,
        "peak": resident("VmHWM") - before,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
