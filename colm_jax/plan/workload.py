"""The workload of a run: count the texts and tokens of its data."""

import time
from pathlib import Path

from colm_jax.console import Progress
from colm_jax.data.records import encode_text, place, stream_records
from colm_jax.errors import UserError
from colm_jax.text.tokenizer import Tokenizer


def count_texts(
    data: str | Path,
    tokenizer: Tokenizer,
    length: int,
    progress: Progress = lambda done, total: None,
) -> tuple[int, int, float]:
    """Count a data file's texts and tokens, cut at `length`; return both and the seconds this took.

    The file is read a line at a time, and texts in which no token counts in the loss are left out, as in training.

    Raises:
      UserError: a bad record, or no token that counts in the loss.
    """
    start, texts, tokens = time.perf_counter(), 0, 0
    for line, record in stream_records(data, progress):
        text = encode_text(record, tokenizer, place(data, line)).first(length)
        if text.targets[1:].any():
            texts, tokens = texts + 1, tokens + len(text.ids)
    if texts == 0:
        raise UserError(f"{data}: no token counts in the loss (length {length})")
    return texts, tokens, time.perf_counter() - start
