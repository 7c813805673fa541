"""Tokenised data files on disk: written once, one text at a time, and read by every stage without loading them whole.

`texts.arrayrecord` holds one record per text (`Example.stored`), `index.npy` its index (`records.INDEX`),
`summary.json` the counts. Texts in which no token counts in the loss (after the cut) are left out, since nothing can be
learned from them. The kept texts are renumbered; the index has their line numbers.

Where an expert reads other tokens, or a view of its own, `expert-1/`, ... hold the same two files for the texts that
differ, and their numbers; those of an expert whose tokenizer is unknown are JSON (`units.TextView`).
"""

import json
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar, overload

import grain
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from colm_jax.console import Progress
from colm_jax.data.records import INDEX, Example, Examples, encode_text, place, stream_records
from colm_jax.data.span_units import SpanUnits
from colm_jax.data.units import TextView, Units, expert_view
from colm_jax.errors import UserError
from colm_jax.storage import (
    entries,
    load_array,
    local_copies,
    make_directory,
    read_json,
    replacing,
    save_array,
    write_json,
)
from colm_jax.text.tokenizer import Tokenizer

TEXTS, INDEX_FILE, SUMMARY = "texts.arrayrecord", "index.npy", "summary.json"
NUMBERS = "numbers.npy"  # of the texts that an expert does not read as the base
T = TypeVar("T")
_OPTIONS = "group_size:1,zstd:1"  # one text per group, for random access
_REASONS = {
    "one_token": "of a single token",
    "nothing_counts": "in which no token counts in the loss",
    "cut_off": "in which none does before the cut",
}


class _Texts(Sequence[T]):
    """Texts that are read on access."""

    @abstractmethod
    def _text(self, number: int) -> T:
        """Return one text."""

    @overload
    def __getitem__(self, number: int) -> T: ...
    @overload
    def __getitem__(self, number: slice) -> tuple[T, ...]: ...
    def __getitem__(self, number):
        """Return one text, or a slice of them."""
        found = range(len(self))[number]
        return tuple(self[i] for i in found) if isinstance(found, range) else self._text(found)

    def __iter__(self) -> Iterator[T]:
        """Yield all texts in order."""
        return (self[i] for i in range(len(self)))


class _Stored(_Texts[T]):
    """The texts of an ArrayRecord file. Thread-safe and picklable."""

    def __init__(self, path: Path):
        """Open the file."""
        self._records = grain.sources.ArrayRecordDataSource(str(path))

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self._records)


class StoredTexts(_Stored[Example]):
    """Texts in the tokens of one model."""

    def _text(self, number: int) -> Example:
        return Example.of_stored(self._records[number])


class StoredViews(_Stored[TextView]):
    """The same, as an expert reads them whose tokenizer is unknown."""

    def _text(self, number: int) -> TextView:
        fields = json.loads(self._records[number])
        return TextView(**{**fields, "spans": tuple(fields["spans"])})


class JoinedTexts(_Texts[Example]):
    """The texts as one expert reads them: some of its own, the others as the base's."""

    def __init__(self, base: StoredTexts, own: StoredTexts, places: dict[int, int]):
        """Joins them; `places` has the number in `own` of each text that is not the base's."""
        self._base, self._own, self._places = base, own, places

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self._base)

    def _text(self, number: int) -> Example:
        return self._own[self._places[number]] if number in self._places else self._base[number]


def tokenise(
    source: str | Path,
    tokenizer: Tokenizer,
    context: int,
    directory: Path,
    allowed: np.ndarray | None = None,
    progress: Progress = lambda done, total: None,
    units: Units | None = None,
) -> None:
    """Tokenise a data file and write the result. The summary is written last: if it exists, the rest is complete.

    Args:
      source: the data file; it is read line by line.
      tokenizer: the base's tokenizer.
      context: the number of tokens at which texts are cut.
      directory: the output directory.
      allowed: the shared vocabulary, [V] bool; other tokens are errors.
      progress: callback(bytes read, total).
      units: how a team's models read the texts; None: all as the base, token by token. Experts that share the base's
        tokenizer all read alike: their view is stored once.

    Raises:
      UserError: a bad record, a token outside the shared vocabulary, or no token that counts in the loss; nothing is
        written then.
    """
    rows, cut, left_out, tokens, merged = bytearray(), 0, Counter[str](), 0, None
    if units is not None:
        units = units.cut_at(context)
        merged = units.merged if isinstance(units, SpanUnits) else None
    with _made(directory), replacing(directory / TEXTS) as beside, _writing(beside) as writer, ExitStack() as stack:
        views = _Views(directory, stack)
        for line, record in stream_records(source, progress):
            where, number, experts = place(source, line), len(rows) // INDEX.itemsize, tuple[Example | TextView, ...]()
            if units is None or (merged is None and expert_view(record, where) is None):
                whole = encode_text(record, tokenizer, where, allowed)
                text, longer = whole.first(context), len(whole.ids) > context
                reason = "cut_off" if whole.targets[1:].any() else "nothing_counts"
            else:
                read = units.text(record, where)
                text, longer = read.base, read.cut
                experts = read.experts[:1] if units.shared else read.experts
                reason = "cut_off" if longer else "nothing_counts"
            if text.counted[1:].any():
                writer.write(text.stored)
                views.write(number, line, text, experts)
                rows += text.entry(line).tobytes()
                cut += longer
                tokens += int(text.targets[1:].sum())
            else:
                left_out["one_token" if len(text.ids) == 1 and not longer else reason] += 1
        if not rows:
            cut = left_out["cut_off"]
            raise UserError(f"{source}: no token counts in the loss (context {context}, {cut} examples cut)")
    views.finish()
    index = np.frombuffer(rows, INDEX)
    save_array(directory / INDEX_FILE, index)
    summary = {
        "texts": len(index),
        "tokens": int(index["length"].sum(dtype=np.int64)),
        "tokens_counted": tokens,
        "length": context,
        "texts_cut": cut,
        "texts_left_out": {reason: left_out[reason] for reason in _REASONS},
    }
    if merged is not None:
        spans = {"spans": int(index["targets"].sum(dtype=np.int64))}
        summary |= spans | {"boundaries": merged.boundaries, "boundaries_merged": merged.merged}
    write_json(directory / SUMMARY, summary)


class _Views:
    """The files of the experts' views, each begun with the first text that an expert does not read as the base."""

    def __init__(self, directory: Path, stack: ExitStack):
        self._directory, self._stack = directory, stack
        self._writers: dict[int, Any] = {}
        self._numbers: dict[int, list[int]] = {}
        self._rows: dict[int, bytearray] = {}

    def write(self, number: int, line: int, base: Example, experts: Sequence[Example | TextView]) -> None:
        """Write the views of a text."""
        for m, own in enumerate(experts, start=1):
            if own is base:
                continue
            if m not in self._writers:
                self._stack.enter_context(_made(self._folder(m)))
                beside = self._stack.enter_context(replacing(self._folder(m) / TEXTS))
                self._writers[m] = self._stack.enter_context(_writing(beside))
                self._numbers[m], self._rows[m] = [], bytearray()
            self._numbers[m].append(number)
            if isinstance(own, Example):
                self._writers[m].write(own.stored)
                self._rows[m] += own.entry(line).tobytes()
            else:
                self._writers[m].write(json.dumps(asdict(own)).encode())

    def finish(self) -> None:
        """Write the numbers and the indices."""
        for m, rows in self._rows.items():
            save_array(self._folder(m) / NUMBERS, np.array(self._numbers[m], np.int64))
            if rows:
                save_array(self._folder(m) / INDEX_FILE, np.frombuffer(rows, INDEX))

    def _folder(self, m: int) -> Path:
        return self._directory / f"expert-{m}"


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
    texts, index = _opened(directory)
    if index.dtype != INDEX or len(index) != len(texts):
        raise UserError(f"{directory}: {INDEX_FILE} does not match the {len(texts)} texts; delete the directory")
    folders = [path for path in entries(directory) if path.name.startswith("expert-")]
    experts = max((int(path.name.removeprefix("expert-")) for path in folders), default=0)
    views = tuple(
        _open_view(folder, texts, index) if folder in folders else None
        for folder in (directory / f"expert-{m}" for m in range(1, experts + 1))
    )
    return Examples(texts, read_json(directory / SUMMARY)["texts_cut"], index, views)


def _opened(directory: Path) -> tuple[StoredTexts, np.ndarray]:
    """Open a folder's texts and their index."""
    here = local_copies(directory, [INDEX_FILE, TEXTS])
    with _readable(directory):
        index = np.load(here / INDEX_FILE, mmap_mode="r")
        return StoredTexts(here / TEXTS), index


@contextmanager
def _readable(directory: Path) -> Iterator[None]:
    """Raise UserError where a folder's texts cannot be opened."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{directory}: cannot read the tokenised texts; delete the directory: {error}") from None


def _open_view(directory: Path, base: StoredTexts, index: np.ndarray) -> Examples | Sequence[TextView]:
    """Open an expert's view of all texts."""
    numbers = load_array(directory / NUMBERS)
    wrong = UserError(f"{directory}: {NUMBERS} does not match the texts; delete {directory.parent}")
    if not (directory / INDEX_FILE).exists():
        here = local_copies(directory, [TEXTS])
        with _readable(directory):
            views = StoredViews(here / TEXTS)
        if len(views) != len(base):
            raise wrong
        return views
    own, rows = _opened(directory)
    if not len(numbers) == len(own) == len(rows):
        raise wrong
    joined = np.array(index)
    joined[numbers] = rows
    return Examples(JoinedTexts(base, own, dict(zip(numbers.tolist(), range(len(own))))), 0, joined)


def counts(directory: Path) -> str:
    """Return a one-line summary of a tokenised file: texts and tokens, cut and left out."""
    summary: dict[str, Any] = read_json(directory / SUMMARY)
    spans = ""
    if "boundaries" in summary:
        share = summary["boundaries_merged"] / max(summary["boundaries"], 1)
        spans = f" ({summary['spans']:,} spans; {share:.2%} of the boundaries merged)"
    left_out = [f"{count:,} {_REASONS[reason]}" for reason, count in summary["texts_left_out"].items() if count]
    return (
        f"{summary['texts']:,} texts of {summary['tokens']:,} tokens, of which {summary['tokens_counted']:,} count in "
        f"the loss{spans}; {summary['texts_cut']:,} texts cut at {summary['length']:,} tokens; left out: "
        f"{', '.join(left_out) or 'none'}"
    )
