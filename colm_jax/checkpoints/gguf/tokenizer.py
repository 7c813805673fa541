"""The tokenizer files of a GGUF file, from its metadata: tokenizer.json, its settings, and the chat template.

Two kinds are read, as llama.cpp names them: `gpt2`, byte-level BPE with merges and a pattern that splits texts first
(`tokenizer.ggml.pre`), and `llama`, SentencePiece's BPE, whose merges follow from the vocabulary.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf.constants import TokenType

from colm_jax.checkpoints.gguf.header import Header, Strings
from colm_jax.checkpoints.gguf.patterns import PATTERNS, WHOLE_WORDS

Json = dict[str, Any]
_SPACE = "▁"  # SentencePiece's
_IDS = {"bos": "bos_token_id", "eos": "eos_token_id", "unk": "unknown_token_id", "pad": "padding_token_id"}
# Tokens at which llama.cpp ends a turn wherever the vocabulary has them; here, if the chat template writes them.
_TURN_ENDS = frozenset({"<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>"})
_LONGEST_TOKEN = 4096  # bytes; no published vocabulary comes near


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a file."""

    tokens: list[str]
    types: list[int]  # of llama.cpp's `TokenType`

    def of(self, *kinds: int) -> list[tuple[int, str]]:
        """Return ids and tokens of these types."""
        return [(i, token) for i, (token, kind) in enumerate(zip(self.tokens, self.types)) if kind in kinds]


def to_tokenizer(header: Header) -> dict[str, Any]:
    """Return the files of the tokenizer by name: JSON values, and the chat template as text.

    Raises:
      UserError: an unsupported kind of tokenizer, or metadata that does not fit.
    """
    kind = _text(header, "tokenizer.ggml.model")
    vocabulary = _vocabulary(header)
    ids = {name: _token_id(header, key, vocabulary) for name, key in _IDS.items()}
    if kind == "gpt2":
        pipeline = _byte_level(header, vocabulary)
    elif kind == "llama":
        pipeline = _sentencepiece(header, vocabulary, ids["unk"])
    else:
        raise header.error(f"tokenizer.ggml.model is {kind!r:.80}; only 'gpt2' and 'llama' are supported")
    template = header.metadata.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise header.error(f"tokenizer.chat_template is no string: {template!r:.80}")
    special = {i for i in ids.values() if i is not None}
    pipeline["added_tokens"] = _added(header, kind, vocabulary, special)
    _check_single(header, pipeline)
    pipeline["post_processor"] = _around(header, kind, vocabulary, ids)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **{f"{name}_token": vocabulary.tokens[i] for name, i in ids.items() if i is not None},
    }
    files = {
        "tokenizer.json": pipeline,
        "tokenizer_config.json": settings,
        "generation_config.json": _generation(header, vocabulary, ids, template or ""),
    }
    return files | ({} if template is None else {"chat_template.jinja": template})


def _vocabulary(header: Header) -> Vocabulary:
    found = header.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(found, Strings) or not len(found):
        raise header.error("tokenizer.ggml.tokens is missing or no list of tokens")
    tokens = list(found)
    longest = next((i for i, token in enumerate(tokens) if len(token) > _LONGEST_TOKEN), None)
    if longest is not None:
        raise header.error(f"tokenizer.ggml.tokens[{longest}] has {len(tokens[longest])} characters")
    types = _numbers(header, "tokenizer.ggml.token_type", "iu", len(tokens))
    if types is not None and (unknown := ~np.isin(types, list(TokenType))).any():
        wrong = int(np.argmax(unknown))
        raise header.error(f"tokenizer.ggml.token_type[{wrong}] is {types[wrong]}, which GGUF does not define")
    return Vocabulary(tokens, [TokenType.NORMAL] * len(tokens) if types is None else types.tolist())


def _byte_level(header: Header, vocabulary: Vocabulary) -> Json:
    """Return the pipeline of byte-level BPE."""
    pre = header.metadata.get("tokenizer.ggml.pre", "default")
    pattern = PATTERNS.get(pre) if isinstance(pre, str) else None
    if pattern is None:
        raise header.error(
            f"tokenizer.ggml.pre is {pre!r:.80}, which is not supported; known are {', '.join(PATTERNS)}"
        )
    merges = header.metadata.get("tokenizer.ggml.merges")
    if not isinstance(merges, Strings):
        raise header.error("tokenizer.ggml.merges is missing or no list of merges")
    vocab = _ids_by_token(vocabulary)
    split = [
        {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False} for regex in pattern
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*split, byte_level]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre in WHOLE_WORDS,
            "vocab": vocab,
            "merges": _listed_merges(header, merges, vocab),
        },
    }


def _listed_merges(header: Header, merges: Strings, vocab: dict[str, int]) -> list[list[str]]:
    pairs = []
    for number, merge in enumerate(merges):
        pair = merge.split(" ")
        if len(pair) != 2 or not all(part in vocab for part in (*pair, "".join(pair))):
            raise header.error(
                f"tokenizer.ggml.merges[{number}] is {merge!r:.80}, which joins no two tokens to a third"
            )
        pairs.append(pair)
    return pairs


def _sentencepiece(header: Header, vocabulary: Vocabulary, unknown: int | None) -> Json:
    """Return the pipeline of SentencePiece's BPE, with bytes for what the vocabulary lacks."""
    gemma = str(header.metadata.get("general.architecture")).startswith("gemma")
    if gemma:  # runs of spaces are stored as such, though texts reach the model with each space replaced
        tokens = [_SPACE * len(t) if " " in t and not t.strip(" ") else t for t in vocabulary.tokens]
        vocabulary = Vocabulary(tokens, vocabulary.types)
    vocab = _ids_by_token(vocabulary)
    scores = _numbers(header, "tokenizer.ggml.scores", "f", len(vocabulary.tokens))
    if gemma:  # its merges have the order of the vocabulary
        ranks = {token: -float(i) for token, i in vocab.items()}
    elif scores is None:
        raise header.error("tokenizer.ggml.scores is missing")
    else:
        ranks = {token: float(scores[i]) for token, i in vocab.items()}
    prefix = not gemma and _flag(header, "tokenizer.ggml.add_space_prefix", True)
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    decoders: list[Json] = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    steps = [{"type": "Prepend", "prepend": _SPACE}, replace] if prefix else [replace]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None if unknown is None else vocabulary.tokens[unknown],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": _implied_merges(vocab, ranks),
        },
    }


def _implied_merges(vocab: dict[str, int], ranks: dict[str, float]) -> list[tuple[str, str]]:
    """Return every split of a token into two others, best rank first.

    Of splits with one rank, those whose first part is longer come first, as transformers orders them.
    """
    merges = []
    for token, rank in ranks.items():
        splits = ((token[:i], token[i:]) for i in range(1, len(token)))
        known = [(first, second) for first, second in splits if first in vocab and second in vocab]
        known.sort(key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
        merges += [(rank, pair) for pair in known]
    merges.sort(key=lambda entry: (entry[0], len(entry[1][0]), len(entry[1][1])), reverse=True)
    return [pair for _, pair in merges]


def _ids_by_token(vocabulary: Vocabulary) -> dict[str, int]:
    """Return the vocabulary without tokens that only fill up the embedding's rows."""
    return {token: i for i, token in enumerate(vocabulary.tokens) if vocabulary.types[i] != TokenType.UNUSED}


def _added(header: Header, kind: str, vocabulary: Vocabulary, special: Iterable[int]) -> list[Json]:
    """Return the tokens that are matched as a whole wherever a text spells them: special ones, and what users added."""
    names = dict(vocabulary.of(TokenType.CONTROL)) | {i: vocabulary.tokens[i] for i in special}
    plain = {i: token for i, token in vocabulary.of(TokenType.USER_DEFINED) if i not in names}
    if kind == "llama":  # a run of spaces is no text that reaches the model
        plain = {i: token for i, token in plain.items() if token.strip(" ")}
    # Phi 3's own tokenizer takes the space after its special tokens away, except after these.
    strips = kind == "llama" and header.metadata.get("general.architecture") == "phi3"
    return [
        {
            "id": i,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": strips and i in names and token not in ("<unk>", "<s>", "<|endoftext|>"),
            "normalized": False,
            "special": i in names,
        }
        for i, token in sorted((names | plain).items())
        if token
    ]


def _check_single(header: Header, pipeline: Json) -> None:
    """Check that no special token, nor one that users added, is spelled as another: its id would be that one's."""
    vocab = pipeline["model"]["vocab"]
    for token in pipeline["added_tokens"]:
        other = vocab.get(token["content"], token["id"])
        if other != token["id"]:
            raise header.error(f"tokenizer.ggml.tokens[{token['id']}] and [{other}] are both {token['content']!r:.80}")


def _around(header: Header, kind: str, vocabulary: Vocabulary, ids: dict[str, int | None]) -> Json:
    """Return the step that puts the beginning and the end of a text around it."""
    # Where the file does not say it, as llama.cpp.
    begins = kind == "llama" or header.metadata.get("tokenizer.ggml.pre") in WHOLE_WORDS
    before = ids["bos"] if _flag(header, "tokenizer.ggml.add_bos_token", begins) else None
    after = ids["eos"] if _flag(header, "tokenizer.ggml.add_eos_token", False) else None

    def special(i: int | None, part: int) -> list[Json]:
        return [] if i is None else [{"SpecialToken": {"id": vocabulary.tokens[i], "type_id": part}}]

    def text(name: str, part: int) -> list[Json]:
        return [*special(before, part), {"Sequence": {"id": name, "type_id": part}}, *special(after, part)]

    used = {vocabulary.tokens[i]: i for i in (before, after) if i is not None}
    return {
        "type": "TemplateProcessing",
        "single": text("A", 0),
        "pair": [*text("A", 0), *text("B", 1)],
        "special_tokens": {token: {"id": token, "ids": [i], "tokens": [token]} for token, i in used.items()},
    }


def _generation(header: Header, vocabulary: Vocabulary, ids: dict[str, int | None], template: str) -> Json:
    """Return generation_config.json: every token at which an answer ends."""
    ends = [ids["eos"], *(_token_id(header, f"{name}_token_id", vocabulary) for name in ("eot", "eom"))]
    ends += [i for i, token in vocabulary.of(TokenType.CONTROL) if token in _TURN_ENDS and token in template]
    found = list(dict.fromkeys(i for i in ends if i is not None))
    named = {f"{name}_token_id": ids[name] for name in ("bos", "pad") if ids[name] is not None}
    return {**named, "eos_token_id": found if len(found) > 1 else found[0]} if found else named


def _token_id(header: Header, key: str, vocabulary: Vocabulary) -> int | None:
    found = header.metadata.get(f"tokenizer.ggml.{key}")
    if found is None:
        return None
    if not isinstance(found, int) or isinstance(found, bool) or not 0 <= found < len(vocabulary.tokens):
        raise header.error(f"tokenizer.ggml.{key} is {found!r:.80}, which is no id of {len(vocabulary.tokens)} tokens")
    if vocabulary.types[found] == TokenType.UNUSED or not vocabulary.tokens[found]:
        raise header.error(f"tokenizer.ggml.{key} is {found}, a token that is not used")
    return found


def _text(header: Header, key: str) -> str:
    found = header.metadata.get(key)
    if not isinstance(found, str):
        raise header.error(f"{key} is missing or no string: {found!r:.80}")
    return found


def _flag(header: Header, key: str, default: bool) -> bool:
    found = header.metadata.get(key, default)
    if not isinstance(found, bool):
        raise header.error(f"{key} is {found!r:.80}, neither true nor false")
    return found


def _numbers(header: Header, key: str, kinds: str, count: int) -> np.ndarray | None:
    """Return an array with an entry for each token, or None."""
    found = header.metadata.get(key)
    if found is None:
        return None
    if not isinstance(found, np.ndarray) or found.dtype.kind not in kinds or len(found) != count:
        raise header.error(f"{key} is no list of {count} numbers")
    if not np.isfinite(found).all():
        raise header.error(f"{key} holds NaN or infinite values")
    return found
