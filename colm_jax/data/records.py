"""Data and prompt files: JSONL in every form of the contract, or .txt, to token ids and loss masks.

Each reading error names file and line. Texts longer than the context are cut, and counted.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from colm_jax.data.tokenizer import Tokenizer
from colm_jax.errors import UserError

DOCUMENT_BORDER = "<|endoftext|>"


@dataclass(frozen=True)
class Example:
    """One tokenised text."""

    ids: np.ndarray  # [n] int32
    targets: np.ndarray  # [n] bool: the token counts in the loss; never the first, which nothing predicts


@dataclass(frozen=True)
class Examples:
    """A tokenised data file."""

    items: tuple[Example, ...]
    cut: int  # how many were longer than the context

    @property
    def tokens(self) -> int:
        """How many tokens count in the loss."""
        return sum(int(item.targets.sum()) for item in self.items)


def read_jsonl(path: str | Path) -> list[tuple[str, dict[str, Any]]]:
    """The records of a data file, each with its place ("file:line").

    A .txt file holds documents, split at <|endoftext|>; each becomes {"text": ...}.

    Raises:
      UserError: no file, no record in it, or a line that is no JSON object.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text: {error}") from None
    records: list[tuple[str, dict[str, Any]]] = []
    if path.suffix == ".txt":
        documents = [document.strip() for document in text.split(DOCUMENT_BORDER)]
        records = [(f"{path}:document {i + 1}", {"text": d}) for i, d in enumerate(documents) if d]
    else:
        for number, line in enumerate(text.split("\n"), start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}:{number}: not valid JSON: {error.msg} (column {error.colno})") from None
            if not isinstance(record, dict):
                raise UserError(f"{path}:{number}: expected a JSON object, got {type(record).__name__}")
            records.append((f"{path}:{number}", record))
    if not records:
        raise UserError(f"{path}: no data in it")
    return records


def encode_example(record: dict[str, Any], tokenizer: Tokenizer, where: str) -> tuple[list[int], list[bool]]:
    """Ids and loss mask of one record: text, prompt + completion, messages, or input_ids + labels."""
    if "text" in record:
        ids = tokenizer.encode(_string(record, "text", where))
        targets = [True] * len(ids)
    elif "prompt" in record or "completion" in record:
        ids, targets = tokenizer.encode_pair(_string(record, "prompt", where), _string(record, "completion", where))
    elif "messages" in record:
        ids, targets = tokenizer.encode_chat(check_messages(record["messages"], where), where)
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
        raise UserError(f"{where}: no token in it")
    return ids, [False, *targets[1:]]


def encode_prompt(prompt: str | dict[str, Any], tokenizer: Tokenizer, where: str) -> list[int]:
    """Ids of a prompt: a string, or a record with 'prompt', 'messages' or 'input_ids'.

    Raises:
      UserError: none of these, or no token in it.
    """
    if isinstance(prompt, str):
        prompt = {"prompt": prompt}
    if "prompt" in prompt or "text" in prompt:
        ids = tokenizer.encode(_string(prompt, "prompt" if "prompt" in prompt else "text", where))
    elif "messages" in prompt:
        ids = tokenizer.encode_chat_prompt(check_messages(prompt["messages"], where), where)
    elif "input_ids" in prompt:
        ids = check_ids(prompt["input_ids"], tokenizer.size, where)
    else:
        raise UserError(f"{where}: a prompt needs 'prompt', 'messages' or 'input_ids'")
    if not ids:
        raise UserError(f"{where}: the prompt has no token")
    return ids


def encode_examples(
    records: list[tuple[str, dict[str, Any]]],
    tokenizer: Tokenizer,
    context: int,
    source: str,
    allowed: np.ndarray | None = None,
) -> Examples:
    """Tokenises records that are already read.

    Args:
      records: each with its place.
      tokenizer: the base's.
      context: texts are cut at so many tokens.
      source: names the records in errors.
      allowed: the shared vocabulary, [V] bool; a text may hold no other token.

    Raises:
      UserError: a bad record, a token outside the shared vocabulary, or nothing that counts in the loss.
    """
    items, cut = [], 0
    for where, record in records:
        ids, targets = encode_example(record, tokenizer, where)
        check_shared(ids, allowed, tokenizer, where)
        cut += len(ids) > context
        items.append(Example(np.array(ids[:context], np.int32), np.array(targets[:context], bool)))
    examples = Examples(tuple(items), cut)
    if examples.tokens == 0:
        raise UserError(f"{source}: no token in it counts in the loss (context {context}, {cut} examples cut)")
    return examples


def check_shared(ids: list[int], allowed: np.ndarray | None, tokenizer: Tokenizer, where: str) -> None:
    """Raises UserError for a token that not every model of the team knows."""
    if allowed is None:
        return
    for i, token in enumerate(ids):
        if token >= len(allowed) or not allowed[token]:
            word = tokenizer.words[token] if token < tokenizer.size else "no word"
            raise UserError(
                f"{where}: token {i} is {token} ({word!r}), which not every model of the team knows; "
                "remove it from the text (or chat template), or pair models that share it"
            )


def _string(record: dict[str, Any], key: str, where: str) -> str:
    value = record.get(key)
    if not isinstance(value, str):
        raise UserError(f"{where}: {key!r} must be a string, got {value!r:.60}")
    return value


def check_messages(messages: Any, where: str) -> list[dict[str, str]]:
    """The messages, if they are a list of {"role", "content"} strings."""
    if not isinstance(messages, list) or not messages:
        raise UserError(f"{where}: 'messages' must be a list of messages, got {messages!r:.60}")
    for message in messages:
        if not isinstance(message, dict) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
            raise UserError(f"{where}: a message needs 'role' and 'content' strings, got {message!r:.60}")
    return messages


def check_ids(ids: Any, words: int, where: str) -> list[int]:
    """The ids, if they are whole numbers of the vocabulary."""
    if not isinstance(ids, list):
        raise UserError(f"{where}: 'input_ids' must be a list of whole numbers, got {ids!r:.60}")
    for i, token in enumerate(ids):
        if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < words:
            raise UserError(f"{where}: input_ids[{i}] is {token!r}; ids are whole numbers from 0 to {words - 1}")
    return ids
