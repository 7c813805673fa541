"""Tokenizers: loading one, its end-of-text ids and chat template, and the vocabulary that several share."""

import hashlib
import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from colm_jax.checkpoints.directory import DEFER_TOKEN, FETCHED
from colm_jax.errors import UserError
from colm_jax.storage import local_copies, read_json
from colm_jax.text.detokenizer import TokenBytes


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
        """How many words it has, the deferral token not counted."""
        return len(self.words)

    @property
    def eos_id(self) -> int:
        """The id that training appends to a completion."""
        if not self.eos_ids:
            raise UserError(f"{self.directory}: the tokenizer names no end-of-text token (eos_token)")
        return self.eos_ids[0]

    @property
    def digest(self) -> str:
        """A hash of words, chat template and special ids: what scores of one tokenizer are bound to."""
        facts = [self.words, self.eos_ids, self.backend.chat_template, self.encode("a b")]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    @property
    def template_digest(self) -> str | None:
        """A hash of the chat template; None without one."""
        template = self.backend.chat_template
        return None if not template else hashlib.sha256(json.dumps(template).encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Ids of a text, with the tokenizer's own special tokens (BOS)."""
        return self.backend(text, add_special_tokens=True)["input_ids"]

    def encode_pair(self, prompt: str, completion: str) -> tuple[list[int], list[bool]]:
        """Ids of prompt + completion + EOS, read as one text, and which of them belong to the completion.

        A token that spans the border belongs to the completion.
        """
        read = self.backend(prompt + completion, add_special_tokens=True, return_offsets_mapping=True)
        offsets = read["offset_mapping"]
        targets = [end > len(prompt) and end > start for start, end in offsets]
        return [*read["input_ids"], self.eos_id], [*targets, True]

    def encode_chat(self, messages: list[dict[str, str]], where: str) -> tuple[list[int], list[bool]]:
        """Ids of a conversation by the chat template, and which of them an assistant wrote.

        Spans come from rendering each prefix of the conversation, not from searching strings.

        Raises:
          UserError: there is no template, or it renders a prefix differently from the whole.
        """
        ids: list[int] = []
        targets: list[bool] = []
        for i, message in enumerate(messages):
            whole = self._render(messages[: i + 1], False, where)
            if whole[: len(ids)] != ids:
                raise UserError(f"{where}: the chat template changes earlier messages when one follows; cannot mask")
            own = len(whole)
            if message["role"] == "assistant":
                opening = self._render(messages[:i], True, where) if i else ids
                if whole[: len(opening)] != opening:
                    raise UserError(f"{where}: the chat template's generation prompt is no prefix of the answer")
                own = len(opening)
            targets += [False] * (own - len(ids)) + [True] * (len(whole) - own)
            ids = whole
        return ids, targets

    def encode_chat_prompt(self, messages: list[dict[str, str]], where: str) -> list[int]:
        """Ids of a conversation up to where the assistant begins to write."""
        return self._render(messages, True, where)

    def _render(self, messages: list[dict[str, str]], opening: bool, where: str) -> list[int]:
        if not self.backend.chat_template:
            raise UserError(f"{where}: 'messages' need a chat template; {self.directory} has none (use 'prompt')")
        from jinja2 import TemplateError

        try:
            return self.backend.apply_chat_template(
                messages, add_generation_prompt=opening, tokenize=True, return_dict=False
            )
        except TemplateError as error:
            raise UserError(f"{where}: the chat template refuses these messages: {error}") from None

    @cached_property
    def token_bytes(self) -> TokenBytes:
        """What each token stands for; `GeneratedText` makes text of them."""
        return TokenBytes(self.backend)

    def decode(self, ids: list[int]) -> str:
        """Text of a whole prompt, special tokens left out."""
        return self.backend.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def load_tokenizer(directory: Path) -> Tokenizer:
    """Loads the tokenizer of a Hugging Face directory.

    Raises:
      UserError: none there, or one that transformers cannot read.
    """
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()  # it would note that PyTorch is missing, which is as it should be
    if not any((directory / name).exists() for name in ("tokenizer.json", "tokenizer.model")):
        raise UserError(f"{directory}: no tokenizer (tokenizer.json) in it")
    if (directory / "config.json").exists():
        read_json(directory / "config.json")  # transformers reads it too, and its error would blame the tokenizer
    here = local_copies(directory, FETCHED)
    try:
        backend = AutoTokenizer.from_pretrained(str(here), trust_remote_code=False)
    except Exception as error:  # transformers and tokenizers raise bare Exceptions for damaged files
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{directory}: the tokenizer cannot be read: {reason}") from error
    vocabulary = backend.get_vocab()
    if not vocabulary:
        raise UserError(f"{directory}: the tokenizer has no words")
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
    """The tokenizer's EOS first, then what config.json and generation_config.json add."""
    found = [] if backend.eos_token_id is None else [backend.eos_token_id]
    for name in ("config.json", "generation_config.json"):
        if (directory / name).exists():
            ids = read_json(directory / name).get("eos_token_id")
            found += [] if ids is None else [ids] if isinstance(ids, int) else ids
    return tuple(dict.fromkeys(found))


def shared_vocabulary(tokenizers: list[Tokenizer], heads: list[int]) -> np.ndarray:
    """The ids that any of these models may write: those on which all tokenizers agree.

    Tokenizers of one vocabulary often differ in the tokens added to it (Meditron and Llemma, at Llama 2's end): those
    are left out.

    Args:
      tokenizers: base first.
      heads: rows of each model's LM head; rows beyond a tokenizer's words are padding and never written.

    Returns:
      [V] bool, V the fewest head rows.

    Raises:
      UserError: two tokenizers give an id to different words of their trained vocabulary, or the base's end of text.
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
            if index not in base.added & other.added or index in base.eos_ids[:1]:
                raise UserError(
                    f"tokenizers disagree: id {index} is {ours!r} in {base.directory} and {theirs!r} in "
                    f"{other.directory}; base and expert must share one vocabulary"
                )
    return allowed


def vocabulary_digest(base: Tokenizer, allowed: np.ndarray) -> str:
    """A hash of the shared vocabulary: its ids and their words."""
    words = {int(index): base.words[index] for index in np.flatnonzero(allowed)}
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()
