"""Text, pieces, stops and final part of an answer, compared with slow decoding of all tokens."""

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colm_jax.text.detokenizer import TokenBytes
from colm_jax.text.generated import GeneratedText, cut
from tests.text.vocabularies import SPECIAL, backend

TURN = SPECIAL.index("<|turn|>")


@cache
def tokens_of(kind):
    tokenizer = backend(kind)
    return tokenizer, TokenBytes(tokenizer)


def read(kind, ids, stops=(), stop_token_ids=(), finish=True):
    text = GeneratedText(tokens_of(kind)[1], (), stops, stop_token_ids)
    text.extend(ids)
    if finish:
        text.finish()
    return text


def readings(kind, ids):
    """Return the shown text, and that with special tokens spelled out: (character, position in the shown text) each."""
    _, tokens = tokens_of(kind)
    shown, spelled = [], []
    plain = GeneratedText(tokens)
    for i, token in enumerate(ids):
        plain.extend([token])
        new = [(character, len(shown) + j) for j, character in enumerate(plain.pieces[i])]
        spelled += new or [(character, len(shown)) for character in tokens.special(token) or ""]
        shown += new
    return shown, spelled


def slow_stop(kind, ids, stops):
    """Search the whole text of every prefix; return (tokens kept, text), or None if no stop is complete."""
    for n in range(len(ids) + 1):
        found = []
        for reading in readings(kind, ids[:n]):
            whole = "".join(character for character, _ in reading)
            found += [reading[whole.find(stop)][1] for stop in stops if stop in whole]
        if found:
            shown = "".join(character for character, _ in readings(kind, ids[:n])[0])
            return n, shown[: min(found)]
    return None


def slow_settled(kind, ids, stops):
    """Return how many tokens end before anything that may become a stop string."""
    shown, _ = readings(kind, ids)
    bound = len(shown)
    for reading in readings(kind, ids):
        whole = "".join(character for character, _ in reading)
        begun = [n for stop in stops for n in range(1, len(stop)) if whole.endswith(stop[:n])]
        if begun:
            bound = min(bound, reading[len(whole) - max(begun)][1])
    ends, total = [], 0
    for piece in read(kind, ids, finish=False).pieces:
        total += len(piece)
        ends.append(total)
    return sum(end <= bound for end in ends)


def ids(kind, most=14):
    """Draw tokens of a few letters and special tokens, so that stop strings occur."""
    tokenizer, _ = tokens_of(kind)
    letters = [tokenizer.convert_tokens_to_ids(letter) for letter in "abc"]
    return st.lists(st.sampled_from([*letters, TURN]), max_size=most)


stop_strings = st.lists(
    st.text("abc", min_size=1, max_size=4) | st.just("<|turn|>") | st.just("a<|turn|>b"), max_size=3
)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(tokens=ids("bytes"), stops=stop_strings)
def test_stop_strings_are_found_as_in_the_whole_text(tokens, stops):
    found, expected = read("bytes", tokens, stops), slow_stop("bytes", tokens, stops)
    assert ((len(found.pieces), found.text) if found.stopped else None) == expected


@settings(derandomize=True, deadline=None, max_examples=300)
@given(tokens=ids("bytes", 8), stops=stop_strings)
def test_only_a_possible_stop_string_is_held_back(tokens, stops):
    if slow_stop("bytes", tokens, stops) is None:
        assert read("bytes", tokens, stops, finish=False).settled() == slow_settled("bytes", tokens, stops)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(tokens=ids("bytes"), stops=stop_strings, cuts=st.lists(st.integers(0, 14), max_size=4))
def test_final_text_does_not_depend_on_how_tokens_arrive(tokens, stops, cuts):
    whole, growing = read("bytes", tokens, stops), GeneratedText(tokens_of("bytes")[1], (), stops)
    read_so_far = 0
    for n in sorted(cuts):
        growing.extend(tokens[read_so_far:n])
        read_so_far = n
        count = growing.settled()
        assert growing.pieces[:count] == whole.pieces[:count]
    growing.extend(tokens[read_so_far:])
    growing.finish()
    assert growing.pieces == whole.pieces and growing.settled() == len(whole.pieces)


@pytest.mark.parametrize("kind", ["bytes", "llama"])
def test_incomplete_character_is_held_back_and_shown_at_the_end(kind):
    start = {"bytes": tokens_of("bytes")[0]("😀")["input_ids"], "llama": [4 + b for b in "😀".encode()]}[kind]
    (letter,) = tokens_of(kind)[0]("b", add_special_tokens=False)["input_ids"][-1:]
    growing = GeneratedText(tokens_of(kind)[1])
    settled = []
    for n in range(len(start) + 1):
        growing.extend([letter, *start][n : n + 1])
        settled.append(growing.settled())
    assert settled == [1, 1, 2, 3, 5]  # all but the last token, whose text would change at the end
    assert growing.pieces == ["b", "", "", "", "😀"]
    assert read(kind, [letter, *start[:2]]).pieces[:2] == ["b", ""]
    assert set(read(kind, [letter, *start[:2]]).pieces[2]) == {"\N{REPLACEMENT CHARACTER}"}


def test_stop_token_ends_the_text_before_itself():
    a, b, c = (tokens_of("bytes")[0].convert_tokens_to_ids(letter) for letter in "abc")
    found = read("bytes", [a, b, c, a], stop_token_ids=[c])
    assert (found.stopped, found.pieces, found.text) == (True, ["a", "b", ""], "ab")
    found = read("bytes", [a, TURN, b], stop_token_ids=[TURN])
    assert (found.stopped, found.pieces) == (True, ["a", ""])


def test_stop_string_may_end_in_a_hidden_special_token():
    a, b = (tokens_of("bytes")[0].convert_tokens_to_ids(letter) for letter in "ab")
    found = read("bytes", [a, TURN, b], ["<|turn|>"])
    assert (found.stopped, found.pieces, found.text) == (True, ["a", ""], "a")
    assert read("bytes", [a, TURN, b], ["ab"]).text == ""  # nor does one hide a stop string


def test_pieces_are_truncated_at_a_length():
    assert cut(["ab", "", "cd", "e"], 3) == ["ab", "", "c", ""]
    assert cut(["ab"], 0) == [""]
