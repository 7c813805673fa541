"""Tokenised data files on disk: written once, one text at a time, and read by every stage without loading them whole.

`texts.arrayrecord` holds one record per text (`Example.stored`), `index.npy` its index (`records.INDEX`),
`summary.json` the counts. Texts in which no token counts in the loss (after the cut) are left out, since nothing can be
learned from them. The kept texts are renumbered; the index has their line numbers.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, overload

import grain
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from colm_jax.console import Progress
from colm_jax.data.records import INDEX, Example, Examples, encode_text, place, stream_records
from colm_jax.errors import UserError
from colm_jax.storage import local_copies, make_directory, read_json, replacing, save_array, write_json
from colm_jax.text.tokenizer import Tokenizer

TEXTS, INDEX_FILE, SUMMARY = "texts.arrayrecord", "index.npy", "summary.json"
_OPTIONS = "group_size:1,zstd:1"  # one text per group, for random access
_REASONS = {
    "one_token": "of a single token",
    "nothing_counts": "in which no token counts in the loss",
    "cut_off": "in which none does before the cut",
}


class StoredTexts(Sequence[Example]):
    """The texts of an ArrayRecord file, read on access. Thread-safe and picklable."""

    def __init__(self, path: Path):
        """Open the file."""
        self._records = grain.sources.ArrayRecordDataSource(str(path))

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self._records)

    @overload
    def __getitem__(self, number: int) -> Example: ...
    @overload
    def __getitem__(self, number: slice) -> tuple[Example, ...]: ...
    def __getitem__(self, number):
        """Return one text, or a slice of them."""
        found = range(len(self))[number]
        if isinstance(found, range):
            return tuple(self[i] for i in found)
        return Example.of_stored(self._records[found])

    def __iter__(self) -> Iterator[Example]:
        """Yield all texts in order."""
        return (self[i] for i in range(len(self)))


def tokenise(
    source: str | Path,
    tokenizer: Tokenizer,
    context: int,
    directory: Path,
    allowed: np.ndarray | None = None,
    progress: Progress = lambda done, total: None,
) -> None:
    """Tokenise a data file and write the result. The summary is written last: if it exists, the rest is complete.

    Args:
      source: the data file; it is read line by line.
      tokenizer: the base's tokenizer.
      context: the number of tokens at which texts are cut.
      directory: the output directory.
      allowed: the shared vocabulary, [V] bool; other tokens are errors.
      progress: callback(bytes read, total).

    Raises:
      UserError: a bad record, a token outside the shared vocabulary, or no token that counts in the loss; nothing is
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
            raise UserError(f"{source}: no token counts in the loss (context {context}, {cut} examples cut)")
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
    """Create a directory; remove it again if it is new and the block raises."""
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
    """Open an ArrayRecord file for writing; close it at the end of the block."""
    writer = ArrayRecordWriter(str(path), _OPTIONS)
    try:
        yield writer
    except BaseException:
        with suppress(RuntimeError):  # the first error already reports a full disk
            writer.close()
        raise
    writer.close()


def open_tokens(directory: Path) -> Examples:
    """Open the texts that `tokenise` wrote, without reading them.

    Raises:
      UserError: files are missing or do not belong together.
    """
    here = local_copies(directory, [INDEX_FILE, TEXTS])
    try:
        index = np.load(here / INDEX_FILE, mmap_mode="r")
        texts = StoredTexts(here / TEXTS)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{directory}: cannot read the tokenised texts; delete the directory: {error}") from None
    if index.dtype != INDEX or len(index) != len(texts):
        raise UserError(f"{directory}: {INDEX_FILE} does not match the {len(texts)} texts; delete the directory")
    return Examples(texts, read_json(directory / SUMMARY)["texts_cut"], index)


def counts(directory: Path) -> str:
    """Return a one-line summary of a tokenised file: texts and tokens, cut and left out."""
    summary: dict[str, Any] = read_json(directory / SUMMARY)
    left_out = [f"{count:,} {_REASONS[reason]}" for reason, count in summary["texts_left_out"].items() if count]
    return (
        f"{summary['texts']:,} texts of {summary['tokens']:,} tokens, of which {summary['tokens_counted']:,} count in "
        f"the loss; {summary['texts_cut']:,} texts cut at {summary['length']:,} tokens; left out: "
        f"{', '.join(left_out) or 'none'}"
    )
