"""The text of an answer, its pieces, stops, and how much of it is settled, against slow readings of all tokens."""

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
    """The text as it is shown, and with special tokens spelled out: (character, place in the shown text) each."""
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
    """(tokens kept, the text), by searching the whole text of every beginning; None where no stop is complete."""
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
    """How many tokens end in front of everything that may become a stop string."""
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
    """Tokens of a few letters and the special ones, so that stop strings occur."""
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
def test_just_what_may_become_a_stop_string_is_held_back(tokens, stops):
    if slow_stop("bytes", tokens, stops) is None:
        assert read("bytes", tokens, stops, finish=False).settled() == slow_settled("bytes", tokens, stops)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(tokens=ids("bytes"), stops=stop_strings, cuts=st.lists(st.integers(0, 14), max_size=4))
def test_what_is_settled_stays_however_the_tokens_come(tokens, stops, cuts):
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
def test_an_unfinished_character_is_held_back_and_shown_at_the_end(kind):
    start = {"bytes": tokens_of("bytes")[0]("😀")["input_ids"], "llama": [4 + b for b in "😀".encode()]}[kind]
    (letter,) = tokens_of(kind)[0]("b", add_special_tokens=False)["input_ids"][-1:]
    growing = GeneratedText(tokens_of(kind)[1])
    settled = []
    for n in range(len(start) + 1):
        growing.extend([letter, *start][n : n + 1])
        settled.append(growing.settled())
    assert settled == [1, 1, 2, 3, 5]  # all but the last token, whose text an end would still change
    assert growing.pieces == ["b", "", "", "", "😀"]
    assert read(kind, [letter, *start[:2]]).pieces[:2] == ["b", ""]
    assert set(read(kind, [letter, *start[:2]]).pieces[2]) == {"\N{REPLACEMENT CHARACTER}"}


def test_a_stop_token_ends_the_text_before_itself():
    a, b, c = (tokens_of("bytes")[0].convert_tokens_to_ids(letter) for letter in "abc")
    found = read("bytes", [a, b, c, a], stop_token_ids=[c])
    assert (found.stopped, found.pieces, found.text) == (True, ["a", "b", ""], "ab")
    found = read("bytes", [a, TURN, b], stop_token_ids=[TURN])
    assert (found.stopped, found.pieces) == (True, ["a", ""])


def test_a_stop_string_ends_at_a_special_token_that_is_not_shown():
    a, b = (tokens_of("bytes")[0].convert_tokens_to_ids(letter) for letter in "ab")
    found = read("bytes", [a, TURN, b], ["<|turn|>"])
    assert (found.stopped, found.pieces, found.text) == (True, ["a", ""], "a")
    assert read("bytes", [a, TURN, b], ["ab"]).text == ""  # nor is a stop string hidden by one


def test_pieces_are_cut_at_a_length():
    assert cut(["ab", "", "cd", "e"], 3) == ["ab", "", "c", ""]
    assert cut(["ab"], 0) == [""]
