"""Small tokenizers of common kinds."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<unk>", "<s>", "</s>", "<|turn|>")
WORDS = ("the", "▁the", "▁", "▁a", "a", "b", "c", "n", "▁b", "é", "中", ".")  # of the SentencePiece kinds


def byte_level() -> Tokenizer:
    """Byte-level BPE with merges across character boundaries."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    sample = ["the end, the bend: naïve café 中文中文 👩‍🚀👩‍🚀", "e\u0301e\u0301 the cat 中文 😀😀😀"] * 3
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(sample, trainer)
    return tokenizer


def plain_bytes() -> Tokenizer:
    """A token for each byte."""
    words = (*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def sentencepiece(strips: bool) -> Tokenizer:
    """Byte fallback; Llama 2's decoder strips the first space of a text, Gemma's does not."""
    words = (*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *WORDS)
    vocabulary = [(word, -float(len(WORDS) - i) if word in WORDS else -100.0) for i, word in enumerate(words)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, 0, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    parts: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*parts, *([decoders.Strip(" ", 1, 0)] if strips else [])])
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def characters() -> Tokenizer:
    """One token per character."""
    words = (*SPECIAL, *"abcdehnt .中é😀👩🚀\u200d\u0301")
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([*SPECIAL])
    tokenizer.add_tokens([AddedToken("the end", normalized=False)])  # not special: part of the text
    return tokenizer


def wordpiece() -> Tokenizer:
    """WordPiece: tokens that continue a word begin with ##; the decoder adds the spaces."""
    words = (*SPECIAL, "the", "cat", "##s", "##ing", "sing", ".", "中")
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


KINDS = {
    "byte-level": byte_level,
    "bytes": plain_bytes,
    "llama": lambda: sentencepiece(strips=True),
    "gemma": lambda: sentencepiece(strips=False),
    "characters": characters,
    "wordpiece": wordpiece,
}


def backend(kind: str, **settings: Any) -> PreTrainedTokenizerFast:
    """Return the transformers tokenizer."""
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=KINDS[kind](), **(names | settings))


def save(kind: str | Tokenizer, directory: Path) -> Path:
    """Write tokenizer.json and tokenizer_config.json of a tokenizer, or of a new one of this kind."""
    directory.mkdir(parents=True, exist_ok=True)
    (KINDS[kind]() if isinstance(kind, str) else kind).save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings | {"unk_token": "<unk>"}))
    return directory


# The patterns by which published tokenizers of byte-level BPE cut a text first.
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
PATTERNS = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "llama3": rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_TAIL}",
    "qwen2": rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_TAIL}",
    "o200k": rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?|\p{{N}}{{1,3}}|"
    + _TAIL.replace(r"[\r\n]*", r"[\r\n/]*", 1),
}


def by_pattern(pattern: str, texts: list[str], size: int) -> Tokenizer:
    """Byte-level BPE, trained on these texts, that cuts them by a pattern first."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    cut = pre_tokenizers.Split(Regex(PATTERNS[pattern]), "isolated")
    in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, in_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
