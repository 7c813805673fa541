"""A data file as tokens on disk: written once, a text at a time, then read by every stage without being held in memory.

`texts.arrayrecord` holds a record a text (`Example.stored`), `index.npy` what can be known of it without reading it
(`records.INDEX`), `summary.json` the counts. Texts in which nothing counts in the loss, once they are cut, are left
out: nothing could be learned from them. Those that stay are numbered anew; the index has their lines.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, overload

import grain
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from colm_jax.data.records import INDEX, Example, Examples, Progress, encode_text, place, stream_records
from colm_jax.errors import UserError
from colm_jax.storage import local_copies, make_directory, read_json, replacing, save_array, write_json
from colm_jax.text.tokenizer import Tokenizer

TEXTS, INDEX_FILE, SUMMARY = "texts.arrayrecord", "index.npy", "summary.json"
_OPTIONS = "group_size:1,zstd:1"  # each text by itself: they are read in any order
_REASONS = {
    "one_token": "of a single token",
    "nothing_counts": "in which no token counts in the loss",
    "cut_off": "in which none does before the cut",
}


class StoredTexts(Sequence[Example]):
    """The texts of an ArrayRecord file, each read when it is asked for. Threads may share it; it can be pickled."""

    def __init__(self, path: Path):
        """Opens the file."""
        self._records = grain.sources.ArrayRecordDataSource(str(path))

    def __len__(self) -> int:
        """How many."""
        return len(self._records)

    @overload
    def __getitem__(self, number: int) -> Example: ...
    @overload
    def __getitem__(self, number: slice) -> tuple[Example, ...]: ...
    def __getitem__(self, number):
        """One text, or several."""
        found = range(len(self))[number]
        if isinstance(found, range):
            return tuple(self[i] for i in found)
        return Example.of_stored(self._records[found])

    def __iter__(self) -> Iterator[Example]:
        """All in order."""
        return (self[i] for i in range(len(self)))


def tokenise(
    source: str | Path,
    tokenizer: Tokenizer,
    context: int,
    directory: Path,
    allowed: np.ndarray | None = None,
    progress: Progress = lambda done, total: None,
) -> None:
    """Writes the tokenised form of a data file; the summary comes last, so where it is all is there.

    Args:
      source: the data file; it is read line by line.
      tokenizer: the base's.
      context: texts are cut at so many tokens.
      directory: where to.
      allowed: the shared vocabulary, [V] bool; a text may hold no other token.
      progress: told how many bytes of the file are read, of how many.

    Raises:
      UserError: a bad record, a token outside the shared vocabulary, or nothing that counts in the loss; nothing is
        written then.
    """
    rows, cut, left_out = bytearray(), 0, Counter[str]()
    with _made(directory), replacing(directory / TEXTS) as beside, _writing(beside) as writer:
        for line, record in stream_records(source, progress):
            whole = encode_text(record, tokenizer, place(source, line), allowed)
            text = whole.first(context)
            if text.targets[1:].any():
                writer.write(text.stored)
                rows += text.entry(line).tobytes()
                cut += len(whole.ids) > context
            elif len(whole.ids) == 1:
                left_out["one_token"] += 1
            else:
                left_out["cut_off" if whole.targets[1:].any() else "nothing_counts"] += 1
        if not rows:
            cut = left_out["cut_off"]
            raise UserError(f"{source}: no token in it counts in the loss (context {context}, {cut} examples cut)")
    index = np.frombuffer(rows, INDEX)
    save_array(directory / INDEX_FILE, index)
    summary = {
        "texts": len(index),
        "tokens": int(index["length"].sum(dtype=np.int64)),
        "tokens_counted": int(index["targets"].sum(dtype=np.int64)),
        "length": context,
        "texts_cut": cut,
        "texts_left_out": {reason: left_out[reason] for reason in _REASONS},
    }
    write_json(directory / SUMMARY, summary)


@contextmanager
def _made(directory: Path) -> Iterator[None]:
    """Makes a directory; one that was not there goes again where the block raises."""
    made = not directory.exists()
    make_directory(directory)
    try:
        yield
    except BaseException:
        if made:
            directory.rmdir()
        raise


@contextmanager
def _writing(path: Path) -> Iterator[Any]:
    """Writes an ArrayRecord file."""
    writer = ArrayRecordWriter(str(path), _OPTIONS)
    try:
        yield writer
    except BaseException:
        with suppress(RuntimeError):  # a full disk is reported by what raised already
            writer.close()
        raise
    writer.close()


def open_tokens(directory: Path) -> Examples:
    """The texts that `tokenise` wrote; none is read before it is asked for.

    Raises:
      UserError: files are missing or do not belong together.
    """
    here = local_copies(directory, [INDEX_FILE, TEXTS])
    try:
        index = np.load(here / INDEX_FILE, mmap_mode="r")
        texts = StoredTexts(here / TEXTS)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{directory}: the tokenised texts cannot be read; delete it: {error}") from None
    if index.dtype != INDEX or len(index) != len(texts):
        raise UserError(f"{directory}: {INDEX_FILE} does not belong to the {len(texts)} texts beside it; delete it")
    return Examples(texts, read_json(directory / SUMMARY)["texts_cut"], index)


def counts(directory: Path) -> str:
    """What is in a tokenised file, what was cut and what was left out, in one line."""
    summary: dict[str, Any] = read_json(directory / SUMMARY)
    left_out = [f"{count:,} {_REASONS[reason]}" for reason, count in summary["texts_left_out"].items() if count]
    return (
        f"{summary['texts']:,} texts of {summary['tokens']:,} tokens, of which {summary['tokens_counted']:,} count in "
        f"the loss; {summary['texts_cut']:,} texts cut at {summary['length']:,} tokens; left out: "
        f"{', '.join(left_out) or 'none'}"
    )
