"""Measure how many tokens per second one process makes into batches: the default of `colm plan --launch --input_rate`.

python -m docs.tables.input_rate
"""

import argparse
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from colm_jax.data.tokens import open_tokens, tokenise
from colm_jax.parallel import make_mesh
from colm_jax.scoring import Scores
from colm_jax.settings.training import Training
from colm_jax.text.tokenizer import load_tokenizer
from colm_jax.training.trainer import Input
from tests.tiny import write_tokenizer

TEXTS, LENGTH, BATCH = 512, 2048, 128


def main() -> None:
    """Print the figure."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    with TemporaryDirectory() as folder:
        data, words = Path(folder) / "data.jsonl", np.random.default_rng(0)
        lines = ({"text": "".join(words.choice(list("abcdefghij "), LENGTH - 1))} for _ in range(TEXTS))
        data.write_text("".join(json.dumps(line) + "\n" for line in lines))
        tokenise(data, load_tokenizer(write_tokenizer(Path(folder) / "tokenizer")), LENGTH, Path(folder) / "tokens")
        examples = open_tokens(Path(folder) / "tokens")
        scores = tuple(np.zeros(n - 1, np.float32) for n in examples.lengths)
        expert = Scores(scores, tuple(row.astype(bool) for row in scores))
        texts = Input.of(examples, None, [expert], Training(batch_size=BATCH, epochs=8), make_mesh(), LENGTH)
        batches, tokens = texts.batches(0), 0
        next(batches)
        begun = time.perf_counter()
        for _, batch in batches:
            tokens += batch.tokens.size
        print(f"{tokens / (time.perf_counter() - begun):.3g} tokens a second")


if __name__ == "__main__":
    main()
