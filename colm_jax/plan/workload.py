"""How much a run has to do: its texts and tokens, counted or given, and what it is to generate."""

import time
from collections.abc import Callable
from pathlib import Path

from colm_jax.data.records import encode_text, place, stream_records
from colm_jax.errors import UserError
from colm_jax.text.tokenizer import Tokenizer


def count_texts(
    data: str | Path,
    tokenizer: Tokenizer,
    length: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[int, int, float]:
    """Texts of a data file that training would read, their tokens cut at `length`, and the seconds this took.

    The file is read a line at a time, and texts in which no token counts are left out, as training does.

    Raises:
      UserError: a bad record, or no text that counts.
    """
    begun, texts, tokens = time.perf_counter(), 0, 0
    for line, record in stream_records(data, progress):
        text = encode_text(record, tokenizer, place(data, line)).first(length)
        if text.targets[1:].any():
            texts, tokens = texts + 1, tokens + len(text.ids)
    if texts == 0:
        raise UserError(f"{data}: no token in it counts in the loss (length {length})")
    return texts, tokens, time.perf_counter() - begun
