"""Token-by-token detokenisation equals that of all tokens at once."""

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colm_jax.text.detokenizer import REPLACEMENT, Detokenizer, TokenBytes
from tests.text.vocabularies import KINDS, backend

# Emoji joined by ZWJ, combining marks, CJK, a legitimate U+FFFD, spaces in a row.
SAMPLES = ["the end", " a  b", "👩‍🚀 né e\u0301", "中文中 a", f"a{REPLACEMENT}b", "😀😀 the", "naïve café", " ", "中"]
texts = st.lists(st.sampled_from([*SAMPLES, "a", " ", ".", "é"]), max_size=6).map("".join)


@cache
def tokens_of(kind):
    tokenizer = backend(kind)
    return tokenizer, TokenBytes(tokenizer)


def pieces_of(kind, ids, prompt=()):
    detokenizer = Detokenizer(tokens_of(kind)[1], prompt)
    return [*(detokenizer.push(token) for token in ids), detokenizer.flush()]


def ids_of(kind, text):
    return tokens_of(kind)[0](text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("kind", ["byte-level", "bytes", "gemma"])
@settings(derandomize=True, deadline=None, max_examples=60)
@given(text=texts)
def test_joined_pieces_equal_the_text(kind, text):
    assert "".join(pieces_of(kind, ids_of(kind, text))) == text


@pytest.mark.parametrize("kind", KINDS)
@settings(derandomize=True, deadline=None, max_examples=60)
@given(prompt=texts, text=texts)
def test_pieces_equal_the_text_added_to_the_prompt(kind, prompt, text):
    tokenizer, _ = tokens_of(kind)
    before, ids = ids_of(kind, prompt), ids_of(kind, text)
    first, both = (tokenizer.decode(part, skip_special_tokens=True) for part in (before, before + ids))
    assert "".join(pieces_of(kind, ids, before)) == both[len(first) :]


@pytest.mark.parametrize("kind", ["byte-level", "bytes", "gemma"])
@settings(derandomize=True, deadline=None, max_examples=60)
@given(text=texts)
def test_character_is_shown_once_at_the_token_that_completes_it(kind, text):
    _, tokens = tokens_of(kind)
    ids, read, shown = ids_of(kind, text), b"", ""
    for token, piece in zip(ids, pieces_of(kind, ids)):
        read += tokens.after(ids[0], token)
        shown += piece
        assert shown == read.decode("utf-8", "ignore")  # ignores an incomplete character at the end


@pytest.mark.parametrize("kind", ["byte-level", "bytes"])
@settings(derandomize=True, deadline=None, max_examples=200)
@given(data=st.data())
def test_joined_pieces_of_any_bytes_equal_the_text(kind, data):
    tokenizer, _ = tokens_of(kind)
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=12))
    assert "".join(pieces_of(kind, ids)) == tokenizer.decode(ids, skip_special_tokens=True)


def test_byte_fallback_shows_each_invalid_byte_and_keeps_its_neighbours():
    def ids(data):
        return [4 + byte for byte in data]

    assert pieces_of("llama", ids("中".encode())) == ["", "", "中", ""]
    assert pieces_of("llama", ids(b"\xe4\xb8")) == ["", "", REPLACEMENT * 2]
    assert "".join(pieces_of("llama", ids(b"\xff" + "中".encode() + b"\xe4"))) == f"{REPLACEMENT}中{REPLACEMENT}"
    assert "".join(pieces_of("llama", [*ids(b"\xe4"), *ids_of("llama", "b")])) == f"{REPLACEMENT}b"


@pytest.mark.parametrize("kind", ["bytes", "llama"])
def test_character_begun_by_the_prompt_is_shown_when_completed(kind):
    start = {"bytes": ids_of("bytes", "中"), "llama": [4 + byte for byte in "中".encode()]}[kind]
    assert pieces_of(kind, start[2:], start[:2]) == ["中", ""]
    (letter,) = ids_of(kind, "b")[-1:]
    assert pieces_of(kind, [letter], start[:2]) == ["b", ""]  # the prompt keeps its incomplete character
    assert pieces_of(kind, [], start[:2]) == [""]


def test_special_tokens_are_not_text_and_do_not_split_a_character():
    first, *others = ids_of("bytes", "é")
    assert pieces_of("bytes", [first, 3, *others, 3]) == ["", "", "é", "", ""]


def test_clean_up_setting_has_no_effect():
    loose = backend("characters", clean_up_tokenization_spaces=True)
    detokenizer = Detokenizer(TokenBytes(loose))
    ids = loose("a .", add_special_tokens=False)["input_ids"]
    assert "".join(map(detokenizer.push, ids)) == "a ."


@pytest.mark.parametrize("kind", KINDS)
def test_cost_per_token_does_not_grow_with_the_text(kind, monkeypatch):
    tokenizer, tokens = tokens_of(kind)
    read = []
    decode = type(tokenizer).decode

    def counting(self, ids, **settings):
        read.append(len(ids))
        return decode(self, ids, **settings)

    monkeypatch.setattr(type(tokenizer), "decode", counting)
    ids = ids_of(kind, "the cats 中 . " * 100)
    prompt = ids * 3
    detokenizer = Detokenizer(tokens, prompt)
    for token in ids:
        detokenizer.push(token)
    assert sum(read) <= 3 * (len(ids) + 8)
