"""Data and prompt files: read JSONL in every supported format, or .txt, into token ids and loss masks.

Errors name file and line. Texts longer than the context are cut and counted.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from colm_jax.console import Progress
from colm_jax.data.chat import encode_conversation, encode_conversation_prompt
from colm_jax.errors import UserError
from colm_jax.storage import check_unicode, decode_lines, parse_json, path_of, size_of, without_mark
from colm_jax.text.tokenizer import Tokenizer

DOCUMENT_BORDER = "<|endoftext|>"
Records = Sequence[tuple[str, dict[str, Any]]]  # the records of a data file, each with its place
_PROMPT_KEYS = ("prompt", "text", "messages", "input_ids")  # the first of these in a record is its prompt
_REPORTED = 1 << 16  # bytes between two calls of a progress callback

_WITHIN = np.int32(1 << 30)  # of a stored token that does not begin a unit
_UNITS = np.int32(1 << 29)  # of the first token of a text whose units are not its tokens
# Facts of a text that need no reading of it: number of tokens, number of units in the loss (`Example.counted`), its
# place in the data file (line, or document of a .txt file, from 1), and the SHA-256 of its ids and mask.
INDEX = np.dtype([("length", "<i4"), ("targets", "<i4"), ("line", "<i8"), ("sha256", "u1", 32)])


@dataclass(frozen=True)
class Example:
    """One tokenised text."""

    ids: np.ndarray  # [n] int32
    targets: np.ndarray  # [n] bool: the token counts in the loss; False for the first, which nothing predicts
    starts: np.ndarray | None = None  # [n] bool: the token begins a unit (`data.units`); None: every token is one

    @property
    def counted(self) -> np.ndarray:
        """The first tokens of the units that count in the loss, [n] bool."""
        return self.targets if self.starts is None else self.targets & self.starts

    @property
    def stored(self) -> bytes:
        """All fields as bytes: int32, little-endian, one a token.

        It is the id, plus 2^30 for a token within a unit, 2^29 for a first token where units are not tokens, and ~ of
        that for a token that does not count in the loss.
        """
        ids = self.ids
        if self.starts is not None:
            ids = np.where(self.starts, ids, ids | _WITHIN)
            ids[:1] |= _UNITS
        return np.where(self.targets, ids, ~ids).astype("<i4").tobytes()

    @classmethod
    def of_stored(cls, stored: bytes) -> "Example":
        """Return the example of `stored` bytes."""
        signed = np.frombuffer(stored, "<i4").astype(np.int32, copy=False)
        ids = np.where(signed < 0, ~signed, signed)
        starts = ids & _WITHIN == 0 if (ids[:1] & _UNITS).any() else None
        return cls(ids & ~(_WITHIN | _UNITS), signed >= 0, starts)

    def first(self, count: int) -> "Example":
        """Return the first `count` tokens of the text."""
        return Example(self.ids[:count], self.targets[:count], None if self.starts is None else self.starts[:count])

    def entry(self, line: int) -> np.ndarray:
        """Return the text's row of an index, [1] INDEX."""
        found = np.zeros(1, INDEX)
        found["length"], found["targets"], found["line"] = len(self.ids), self.counted[1:].sum(), line
        found["sha256"] = np.frombuffer(hashlib.sha256(self.stored).digest(), np.uint8)
        return found


@dataclass(frozen=True)
class Examples:
    """A tokenised data file."""

    items: Sequence[Example]  # in memory, or read from disk one by one (`tokens.StoredTexts`)
    cut: int  # number of texts longer than the context
    stored_index: np.ndarray | None = None  # [N] INDEX, if it is on disk
    # How each expert reads the same texts: as `Examples` of its own tokens, or as `units.TextView`s where its tokenizer
    # is unknown; None, as left out ones: as they are here.
    views: "tuple[Examples | Sequence[Any] | None, ...]" = ()
    text_bytes: Int[np.ndarray, "N"] | None = None  # of UTF-8 that count in the loss; None: not known

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self.items)

    def first(self, count: int) -> "Examples":
        """Return the first `count` texts, as they are in memory."""
        views = tuple(view.first(count) if isinstance(view, Examples) else view and view[:count] for view in self.views)
        size = None if self.text_bytes is None else self.text_bytes[:count]
        return Examples(self.items[:count], self.cut, views=views, text_bytes=size)

    def view(self, expert: int) -> "Examples | Sequence[Any] | None":
        """Return how expert 1..M reads the texts; None: as they are here."""
        return self.views[expert - 1] if expert <= len(self.views) else None

    @cached_property
    def index(self) -> np.ndarray:
        """The index of the texts, [N] INDEX."""
        if self.stored_index is not None:
            return self.stored_index
        return np.concatenate([np.zeros(0, INDEX), *(item.entry(i + 1) for i, item in enumerate(self.items))])

    @cached_property
    def lengths(self) -> Int[np.ndarray, "N"]:
        """The number of tokens of each text."""
        return np.ascontiguousarray(self.index["length"])

    @property
    def tokens(self) -> int:
        """The number of units that count in the loss; where tokenizers are shared, of tokens."""
        return int(self.index["targets"].sum(dtype=np.int64))

    def counted(self) -> Bool[np.ndarray, "n"]:
        """Return whether a unit that counts begins at each token, all texts concatenated without their first tokens.

        Reads every text.
        """
        found = np.empty(int((self.lengths - 1).sum(dtype=np.int64)), bool)
        start = 0
        for item in self.items:
            found[start : start + len(item.targets) - 1] = item.counted[1:]
            start += len(item.targets) - 1
        return found

    def digest(self, numbers: Sequence[int]) -> str:
        """Return the SHA-256 over the SHA-256s of the given texts, which identifies the texts of stored scores."""
        return hashlib.sha256(self.index["sha256"][np.asarray(numbers, np.int64)].tobytes()).hexdigest()


def _lines(path: Path, progress: Progress) -> Iterator[str]:
    """Yield the lines of a UTF-8 file, line ends normalised to "\\n"."""
    try:
        with path.open("rb") as file:
            size, done, reported = size_of(path), 0, 0
            for number, line in enumerate(file, start=1):
                done += len(line)
                line = without_mark(line, path) if number == 1 else line
                if done - reported >= _REPORTED or done == size:
                    progress(done, size)
                    reported = done
                yield decode_lines(line, path, number)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or 'no such object'}") from None


def _documents(path: Path, progress: Progress) -> Iterator[str]:
    """Yield the documents of a .txt file."""
    parts: list[str] = []
    for line in _lines(path, progress):
        first, *others = line.split(DOCUMENT_BORDER)
        parts.append(first)
        for other in others:
            yield "".join(parts)
            parts = [other]
    yield "".join(parts)


def place(path: str | Path, number: int) -> str:
    """Return the name of a record in errors: file and line, or file and document."""
    return f"{path}:{'document ' if Path(path).suffix == '.txt' else ''}{number}"


def stream_records(
    path: str | Path, progress: Progress = lambda done, total: None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the records of a data file, each with its line number (from 1).

    A .txt file is split into documents at <|endoftext|>; each becomes {"text": ...}, with its number (from 1).

    Raises:
      UserError: no file, an empty file, or a line that is not a JSON object.
    """
    path, found = path_of(path), False
    if path.suffix == ".txt":
        for number, document in enumerate(_documents(path, progress), start=1):
            if text := document.strip():
                found = True
                yield number, {"text": text}
    else:
        for number, line in enumerate(_lines(path, progress), start=1):
            if not line.strip():
                continue
            record = parse_json(line, f"{path}:{number}", strict=True)
            if not isinstance(record, dict):
                raise UserError(f"{path}:{number}: expected a JSON object, got {type(record).__name__}")
            found = True
            yield number, record
    if not found:
        raise UserError(f"{path}: the file has no data")


def read_jsonl(path: str | Path) -> list[tuple[str, dict[str, Any]]]:
    """Return all records of a data file, as from `stream_records`, each with its place ("file:line")."""
    return [(place(path, number), record) for number, record in stream_records(path)]


def encode_example(record: dict[str, Any], tokenizer: Tokenizer, where: str) -> tuple[list[int], list[bool]]:
    """Return ids and loss mask of a record: text, prompt + completion, messages (and tools), or input_ids + labels.

    A text gets the tokenizer's own special tokens, prompt + completion an EOS at the end as well; messages get those of
    the chat template; input_ids are unchanged.
    """
    if "text" in record:
        ids = tokenizer.encode(check_string(record, "text", where))
        targets = [True] * len(ids)
    elif "prompt" in record or "completion" in record:
        texts = (check_string(record, key, where) for key in ("prompt", "completion"))
        ids, targets = tokenizer.encode_pair(*texts)
    elif "messages" in record:
        ids, targets = encode_conversation(record, tokenizer, where)
    elif "input_ids" in record:
        ids = check_ids(record["input_ids"], tokenizer.size, where)
        labels = record.get("labels", ids)
        if not isinstance(labels, list) or len(labels) != len(ids):
            raise UserError(f"{where}: 'labels' must be a list as long as 'input_ids' ({len(ids)})")
        for i, (token, label) in enumerate(zip(ids, labels)):
            if label not in (-100, token):
                raise UserError(f"{where}: labels[{i}] is {label!r}; it must be input_ids[{i}] ({token}) or -100")
        targets = [label != -100 for label in labels]
    else:
        keys = ", ".join(map(repr, record)) or "none"
        raise UserError(f"{where}: needs 'text', 'prompt' + 'completion', 'messages' or 'input_ids'; keys are {keys}")
    if not ids:
        raise UserError(f"{where}: the record has no token")
    return ids, [False, *targets[1:]]


def prompt_key(record: dict[str, Any], where: str) -> str:
    """Return the key of a record's prompt.

    Raises:
      UserError: the record has no prompt.
    """
    for key in _PROMPT_KEYS:
        if key in record:
            return key
    raise UserError(f"{where}: a prompt needs 'prompt', 'text', 'messages' or 'input_ids'")


def encode_prompt(prompt: str | dict[str, Any], tokenizer: Tokenizer, where: str) -> list[int]:
    """Return the ids of a prompt: a string, or a record with 'prompt', 'text', 'messages' (and 'tools') or 'input_ids'.

    A text gets the tokenizer's own special tokens in front, none at the end.

    Raises:
      UserError: no such key, an empty prompt, or a text that ends with an end-of-text token.
    """
    record = {"prompt": prompt} if isinstance(prompt, str) else prompt
    key = prompt_key(record, where)
    if key == "messages":
        ids = encode_conversation_prompt(record, tokenizer, where)
    elif key == "input_ids":
        ids = check_ids(record[key], tokenizer.size, where)
    else:
        ids = tokenizer.encode_prompt(check_string(record, key, where))
        # Tokenizers without a separate BOS begin a text with EOS.
        if ids and ids[-1] in tokenizer.eos_ids and tokenizer.backend.bos_token_id not in (None, ids[-1]):
            raise UserError(f"{where}: the prompt ends with {tokenizer.words[ids[-1]]!r}, the end of text; remove it")
    if not ids:
        raise UserError(f"{where}: the prompt has no token")
    return ids


def encode_fitting_prompt(
    prompt: str | dict[str, Any], tokenizer: Tokenizer, context: int, allowed: np.ndarray | None, where: str
) -> list[int]:
    """Return the ids of a prompt, as `encode_prompt`, after checks that the team can answer it.

    Raises:
      UserError: as `encode_prompt`; a prompt that leaves no room in the context; a token outside the shared vocabulary.
    """
    ids = encode_prompt(prompt, tokenizer, where)
    if len(ids) >= context:
        raise UserError(f"{where}: {len(ids)} tokens leave no room in the context of {context}; shorten it")
    check_shared(ids, allowed, tokenizer, where)
    return ids


def encode_text(record: dict[str, Any], tokenizer: Tokenizer, where: str, allowed: np.ndarray | None = None) -> Example:
    """Tokenise one record, without cutting it.

    Raises:
      UserError: a bad record, or a token outside the shared vocabulary.
    """
    ids, targets = encode_example(record, tokenizer, where)
    check_shared(ids, allowed, tokenizer, where)
    return Example(np.array(ids, np.int32), np.array(targets, bool))


def encode_examples(
    records: list[tuple[str, dict[str, Any]]],
    tokenizer: Tokenizer,
    context: int,
    source: str,
    allowed: np.ndarray | None = None,
) -> Examples:
    """Tokenise records in memory, one example each.

    Args:
      records: each with its place.
      tokenizer: the base's tokenizer.
      context: the number of tokens at which texts are cut.
      source: names the records in errors.
      allowed: the shared vocabulary, [V] bool; other tokens are errors.

    Raises:
      UserError: a bad record, a token outside the shared vocabulary, or no token that counts in the loss.
    """
    items, cut = [], 0
    for where, record in records:
        whole = encode_text(record, tokenizer, where, allowed)
        cut += len(whole.ids) > context
        items.append(whole.first(context))
    examples = Examples(tuple(items), cut)
    if examples.tokens == 0:
        raise UserError(f"{source}: no token counts in the loss (context {context}, {cut} examples cut)")
    return examples


def check_shared(ids: list[int], allowed: np.ndarray | None, tokenizer: Tokenizer, where: str) -> None:
    """Raise UserError for a token outside the shared vocabulary."""
    if allowed is None:
        return
    array = np.array(ids, np.int64)
    unknown = (array >= len(allowed)) | ~allowed[np.minimum(array, len(allowed) - 1)]
    if unknown.any():
        i = int(unknown.argmax())
        token = ids[i]
        text = repr(tokenizer.words[token]) if token < tokenizer.size else "unused"
        raise UserError(
            f"{where}: token {i} is {token} ({text}), which is not in the team's shared vocabulary; "
            "remove it from the text (or chat template), or pair models that share it"
        )


def check_string(record: dict[str, Any], key: str, where: str) -> str:
    """Return a record's text; raise UserError for another value, or text that is no Unicode."""
    value = record.get(key)
    if not isinstance(value, str):
        raise UserError(f"{where}: {key!r} must be a string, got {value!r:.60}")
    check_unicode(value, f"{where}: {key!r}")
    return value


def check_ids(ids: Any, vocab_size: int, where: str) -> list[int]:
    """Return the ids; raise UserError if they are not a list of whole numbers below `vocab_size`."""
    if not isinstance(ids, list):
        raise UserError(f"{where}: 'input_ids' must be a list of whole numbers, got {ids!r:.60}")
    for i, token in enumerate(ids):
        if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < vocab_size:
            raise UserError(f"{where}: input_ids[{i}] is {token!r}; ids are whole numbers from 0 to {vocab_size - 1}")
    return ids
