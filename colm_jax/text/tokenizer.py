"""Tokenizers: loading one, its special tokens and end-of-text ids, and the vocabulary that several share."""

import hashlib
import json
import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from colm_jax.errors import UserError
from colm_jax.storage import local_copies, read_json, shown
from colm_jax.text.detokenizer import TokenBytes
from colm_jax.text.special import DEFER_TOKEN, token_ids

_FILES = ("*.json", "*.model", "*.jinja")  # that a tokenizer may consist of


@dataclass(frozen=True)
class Tokenizer:
    """A Hugging Face fast tokenizer and what the pipeline needs to know of it."""

    backend: Any  # transformers.PreTrainedTokenizerFast
    directory: Path
    words: tuple[str, ...]  # token of every id, without the deferral token; "" where an id has none
    eos_ids: tuple[int, ...]  # every id that ends a text
    added: frozenset[int]  # ids of tokens beside the trained vocabulary: special ones, and what users added
    has_defer_token: bool  # the model is in the original Co-LLM's format

    @property
    def size(self) -> int:
        """The vocabulary size, without the deferral token."""
        return len(self.words)

    @property
    def kind(self) -> str:
        """The algorithm, as in "BPE": the class of the `tokenizers` model."""
        return type(self.backend.backend_tokenizer.model).__name__

    @property
    def eos_id(self) -> int:
        """The id that training appends to a completion."""
        if not self.eos_ids:
            raise UserError(f"{shown(self.directory)}: the tokenizer names no end-of-text token (eos_token)")
        return self.eos_ids[0]

    @cached_property
    def digest(self) -> str:
        """A hash of all that decides how texts become tokens: what scores of one tokenizer are bound to.

        It covers merges, normaliser, pre-tokenizer, post-processor, added tokens and chat template too.
        """
        pipeline = json.loads(self.backend.backend_tokenizer.to_str())
        for state in ("padding", "truncation"):  # of the last call, not of the tokenizer
            pipeline.pop(state, None)
        facts = [pipeline, self.backend.split_special_tokens, self.backend.special_tokens_map]
        facts += [self.backend.chat_template, self.eos_ids]
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()

    @property
    def template_digest(self) -> str | None:
        """A hash of the chat template; None without one."""
        template = self.backend.chat_template
        return None if not template else hashlib.sha256(json.dumps(template).encode()).hexdigest()

    @cached_property
    def _around(self) -> tuple[list[int], list[int]]:
        """The special tokens that the tokenizer itself puts before and after a text, as BOS and EOS."""
        probe = next((text for text in ("a", *self.words) if self.encode_plain(text)), "")
        read = self.backend(probe, add_special_tokens=True, return_special_tokens_mask=True)
        ids, own = read["input_ids"], read["special_tokens_mask"]
        if 0 not in own:
            return ids, []
        return ids[: own.index(0)], ids[len(own) - own[::-1].index(0) :]

    @property
    def ends_texts(self) -> bool:
        """Whether the tokenizer itself ends a text with a special token, as EOS."""
        return bool(self._around[1])

    def encode_plain(self, text: str) -> list[int]:
        """Return ids of a text without the tokenizer's own special tokens; any that the text spells out are read as
        such.
        """
        return self.backend(text, add_special_tokens=False)["input_ids"]

    def encode_prompt(self, text: str) -> list[int]:
        """Return ids of a text to be continued: the tokenizer's own special tokens before it (BOS), none after it.

        A text that begins with BOS itself gets no second one.
        """
        return _joined(self._around[0], self.encode_plain(text))

    def encode(self, text: str) -> list[int]:
        """Return ids of a whole text with the tokenizer's own special tokens, each once where the text spells it out
        too.
        """
        return _joined(self.encode_prompt(text), self._around[1])

    def encode_pair(self, prompt: str, completion: str) -> tuple[list[int], list[bool]]:
        """Return ids of prompt + completion + EOS, read as one text, and which of them belong to the completion.

        A token that spans the border belongs to the completion. EOS is the only token after the completion, whatever
        the tokenizer itself appends to texts. A completion that spells out its end gets none; white space after it
        does not count.
        """
        text = prompt + completion
        read = self.backend(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = _joined(self._around[0], read["input_ids"]), read["offset_mapping"]
        before = len(ids) - len(offsets)
        targets = [False] * before + [end > len(prompt) and end > start for start, end in offsets]
        ends = [i for i in range(1, len(ids)) if targets[i] and ids[i] in self.eos_ids]  # a first token ends nothing
        if ends and not text[offsets[ends[-1] - before][1] :].strip():
            rest = len(ids) - ends[-1] - 1
            return ids, targets[: len(ids) - rest] + [False] * rest
        return [*ids, self.eos_id], [*targets, True]

    def within(self, allowed: np.ndarray) -> "Tokenizer":
        """Return this tokenizer with the end-of-text ids that are in the shared vocabulary, [V] bool."""
        return replace(self, eos_ids=tuple(i for i in self.eos_ids if 0 <= i < len(allowed) and allowed[i]))

    @cached_property
    def token_bytes(self) -> TokenBytes:
        """The bytes of each token; `GeneratedText` makes text of them."""
        return TokenBytes(self.backend)

    def decode(self, ids: list[int]) -> str:
        """Return text of a whole prompt, special tokens left out."""
        return self.backend.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _joined(first: list[int], second: list[int]) -> list[int]:
    """Return one list after the other; ids that the first ends with and the second begins with occur once."""
    longest = range(min(len(first), len(second)), 0, -1)
    return [*first, *second[next((n for n in longest if first[-n:] == second[:n]), 0) :]]


def load_tokenizer(directory: Path) -> Tokenizer:
    """Load the tokenizer of a Hugging Face directory.

    Raises:
      UserError: none there, or one that transformers cannot read.
    """
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()  # it would note that PyTorch is missing, which is as it should be
    if not any((directory / name).exists() for name in ("tokenizer.json", "tokenizer.model")):
        raise UserError(f"{shown(directory)}: no tokenizer (tokenizer.json) in it")
    if (directory / "config.json").exists():
        read_json(directory / "config.json")  # transformers reads it too, and its error would blame the tokenizer
    here = local_copies(directory, _FILES)
    try:
        backend = AutoTokenizer.from_pretrained(str(here), trust_remote_code=False)
    except Exception as error:  # transformers and tokenizers raise bare Exceptions for damaged files
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{shown(directory)}: the tokenizer cannot be read: {reason}") from error
    if not backend.is_fast:
        raise UserError(f"{shown(directory)}: {type(backend).__name__} cannot be used; a tokenizer.json is needed")
    vocabulary = backend.get_vocab()
    if not vocabulary:
        raise UserError(f"{shown(directory)}: the tokenizer has no words")
    words = [""] * (max(vocabulary.values()) + 1)
    for word, index in vocabulary.items():
        words[index] = word
    has_defer = words[-1] == DEFER_TOKEN
    return Tokenizer(
        backend=backend,
        directory=directory,
        words=tuple(words[:-1] if has_defer else words),
        eos_ids=_eos_ids(directory, backend),
        added=frozenset(backend.added_tokens_decoder),
        has_defer_token=has_defer,
    )


def _eos_ids(directory: Path, backend: Any) -> tuple[int, ...]:
    """Return the tokenizer's EOS first, then what config.json and generation_config.json add."""
    found = [] if backend.eos_token_id is None else [backend.eos_token_id]
    size = None  # of the vocabulary, which config.json says for both
    for name in ("config.json", "generation_config.json"):
        if (directory / name).exists():
            config = read_json(directory / name)
            size = config.get("vocab_size", size)
            found += token_ids(config, "eos_token_id", directory / name, size)
    return tuple(dict.fromkeys(found))


class DifferentVocabularies(UserError):
    """Tokenizers give an id to different tokens."""


def shared_vocabulary(tokenizers: list[Tokenizer], heads: list[int]) -> np.ndarray:
    """Return the ids that any of these models may write: those on which all tokenizers agree.

    Tokenizers of one vocabulary often differ in the tokens added to it (Meditron and Llemma, at Llama 2's end): those
    are left out.

    Args:
      tokenizers: base first.
      heads: rows of each model's LM head; rows beyond a tokenizer's words are padding and never written.

    Returns:
      [V] bool, V the fewest head rows.

    Raises:
      DifferentVocabularies: two tokenizers give an id to different tokens of their trained vocabulary.
      UserError: none of the base's end-of-text tokens is shared.
    """
    base = tokenizers[0]
    allowed = np.zeros(min(heads), bool)
    for index, words in zip(range(len(allowed)), zip(*(tokenizer.words for tokenizer in tokenizers))):
        allowed[index] = all(words)
    for other in tokenizers[1:]:
        for index, ours, theirs in zip(range(len(allowed)), base.words, other.words):
            if not ours or not theirs or ours == theirs:
                continue
            allowed[index] = False
            if index not in base.added & other.added:
                raise DifferentVocabularies(
                    f"tokenizers disagree: id {index} is {ours!r} in {shown(base.directory)} and {theirs!r} in "
                    f"{shown(other.directory)}; token by token, base and expert must share one vocabulary"
                )
    if base.eos_ids and not base.within(allowed).eos_ids:
        raise UserError(_no_shared_end(tokenizers, heads))
    return allowed


def _no_shared_end(tokenizers: list[Tokenizer], heads: list[int]) -> str:
    """Return why none of the base's end-of-text tokens may be written, shown by the first of them."""
    base, end = tokenizers[0], tokenizers[0].eos_ids[0]

    def known(tokenizer: Tokenizer, rows: int) -> str:
        word = tokenizer.words[end] if 0 <= end < tokenizer.size else ""
        if word and end >= rows:
            return f"{word!r} but beyond the {rows} rows of the LM head"
        return repr(word) if word else "no token"

    ours = known(base, heads[0])
    facts = [f"{ours} in {shown(base.directory)}"]
    for other, rows in zip(tokenizers[1:], heads[1:]):
        if (theirs := known(other, rows)) != ours:
            facts.append(f"{theirs} in {shown(other.directory)}")
            break
    return (
        f"no text could end: the end of text, id {end} is {' and '.join(facts)}; pair models that share it, or add an "
        f"end-of-text id that all of them know to eos_token_id in {shown(base.directory) / 'generation_config.json'}"
    )


def vocabulary_digest(base: Tokenizer, allowed: np.ndarray) -> str:
    """Return a hash of the shared vocabulary: its ids and their tokens."""
    words = {int(index): base.words[index] for index in np.flatnonzero(allowed)}
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()
