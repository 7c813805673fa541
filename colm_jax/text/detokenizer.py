"""Text from tokens, one token at a time: the one place where written tokens become text.

A token encodes bytes, not characters: a character may span several tokens. `tokenizers.decoders.DecodeStream`
is not used: it has no end (a cut character is lost), it holds back every text that ends in U+FFFD, and after some
invalid bytes it raises.
"""

import codecs
import json
import re
from collections.abc import Sequence
from functools import cache, cached_property
from typing import Any

_METASPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece writes a space so
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")
_ONE_EACH = "colm_jax.replace_each_byte"
_LONGEST = 8  # tokens at a prompt's end that may hold an unfinished character: four bytes at most, and some to spare


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)  # used to decode only
    return REPLACEMENT * (error.end - error.start), error.end


codecs.register_error(_ONE_EACH, _replace_each_byte)


class TokenBytes:
    """The bytes of each token of a tokenizer.

    Byte-level tokens are spelled in a byte's printable stand-ins, byte-fallback tokens as `<0xE2>`; every other token
    adds what the tokenizer's own decoder makes of it after the token before it (a SentencePiece decoder drops the
    first space of a text, a WordPiece decoder sets spaces between tokens).
    """

    def __init__(self, backend: Any):
        """Reads the kind of decoder and the special tokens of a transformers fast tokenizer."""
        self._backend = backend
        kinds = _decoder_kinds(backend.backend_tokenizer.decoder)
        self._byte_level, self._byte_fallback = "ByteLevel" in kinds, "ByteFallback" in kinds
        self._plain = "Metaspace" in kinds  # SentencePiece without bytes
        self._special = {i: token.content for i, token in backend.added_tokens_decoder.items() if token.special}

    @property
    def invalid(self) -> str:
        """How bytes that are no UTF-8 are shown, as an error handler of `codecs`.

        Byte-level decoders show a cut character once, as the Unicode Standard recommends (section 3.9); byte fallback
        shows each byte, as SentencePiece does.
        """
        return _ONE_EACH if self._byte_fallback else "replace"

    def special(self, token: int) -> str | None:
        """Return the spelling of a special token, which is no part of the text; None for all others."""
        return self._special.get(token)

    def within(self, token: int) -> bytes:
        """Return the bytes that a token adds within a text, whatever token precedes it; it is not special.

        For decoders that treat tokens one by one, as those of byte-level BPE and SentencePiece do; of others, the bytes
        after an ordinary token.
        """
        if self._byte_level or self._byte_fallback or self._plain:
            word = self._backend.convert_ids_to_tokens(token)
            match = None if word is None or self._byte_level else _BYTE_TOKEN.fullmatch(word)
            if word is not None and not self._byte_level and match is None:
                return word.replace(_METASPACE, " ").encode()
        return self.after(self._ordinary, token)

    @cached_property
    def _ordinary(self) -> int | None:
        """A token with an ordinary letter."""
        ids = range(len(self._backend))
        return next((i for i in ids if i not in self._special and self._decode(i).strip().isalpha()), None)

    def after(self, before: int | None, token: int) -> bytes:
        """Return the bytes that a token adds to a text whose last token is `before` (None: the text is empty).

        Neither token is special.
        """
        word = self._backend.convert_ids_to_tokens(token)
        if word is None:  # a row of the head that no token names
            return b""
        if self._byte_level:
            values = [_bytes_of_stand_ins().get(character) for character in word]
            return word.encode() if None in values else bytes(value for value in values if value is not None)
        if self._byte_fallback and (match := _BYTE_TOKEN.fullmatch(word)):
            return bytes.fromhex(match[1])
        if before is None:
            return self._decode(token).encode()
        first, both = self._decode(before), self._decode(before, token)
        return (both[len(first) :] if both.startswith(first) else self._decode(token)).encode()

    def _decode(self, *tokens: int) -> str:
        return self._backend.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


class Detokenizer:
    """The text that each token adds after a prompt, in constant time per token. Text is never retracted."""

    def __init__(self, tokens: TokenBytes, prompt: Sequence[int] = ()):
        """Starts after the prompt's tokens, the last of which may hold the beginning of a character."""
        self._tokens = tokens
        self._before: int | None = None  # the last token that is not special
        self._utf8 = codecs.getincrementaldecoder("utf-8")(tokens.invalid)
        self._prompt_end = ""
        own = [token for token in prompt if tokens.special(token) is None]
        for token in own[-_LONGEST:]:
            self.push(token)
        self._prompt_end = self._unfinished.decode("utf-8", tokens.invalid)

    @property
    def _unfinished(self) -> bytes:
        return self._utf8.getstate()[0]

    @property
    def pending(self) -> bool:
        """Whether the tokens so far end within a character."""
        return bool(self._unfinished)

    def push(self, token: int) -> str:
        """Return the text that the token completes: "" within a character and for special tokens."""
        if self._tokens.special(token) is not None:
            return ""
        read = self._tokens.after(self._before, token)
        self._before = token
        return self._own(self._utf8.decode(read))

    def flush(self) -> str:
        """Return the replacement for an incomplete character at the end of a text."""
        return self._own(self._utf8.decode(b"", final=True))

    def _own(self, text: str) -> str:
        """Return the text without the replacement for the prompt's own incomplete end."""
        if not text or not self._prompt_end:
            return text
        end, self._prompt_end = self._prompt_end, ""
        return text.removeprefix(end)


def _decoder_kinds(decoder: Any) -> set[str]:
    """Return the names of a decoder and of all that it is made of."""
    found: set[str] = set()

    def visit(value: Any) -> None:
        found.add(value["type"])
        for part in value.get("decoders", ()):
            visit(part)

    if decoder is not None:
        visit(json.loads(decoder.__getstate__()))
    return found


@cache
def _bytes_of_stand_ins() -> dict[str, int]:
    """Return byte-level BPE's printable character of every byte, backwards (GPT-2's `bytes_to_unicode`)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
