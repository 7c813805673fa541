"""Spans: a boundary is where every tokenizer splits, whatever follows."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from colm_jax.checkpoints.directory import resolve
from colm_jax.text.spans import ALWAYS, NEVER, SEAM, Opening, SpanEncoder, SpanRule
from colm_jax.text.tokenizer import load_tokenizer
from tests.real_models import SOURCES
from tests.text.vocabularies import KINDS, PATTERNS, by_pattern, save

PROSE = "She didn't say “why”, did she?  Naïve café — 3,500.25 kg; it's e\u0301te\u0301."
CODE = 'def f(x):\n\treturn {"a": [1, 2], \'b\': x[0]**2}  # ok\n\n\nif __name__ == "__main__":\n    f(1)\n'
PIECES = (
    *PROSE.split(" "),
    *("\n", "\n\n", "\n\n\n", " ", "  ", "\t", "\r\n", "\u00a0", "\u3000", "\u2581"),
    *CODE.split(" "),
    *('{"k": null, "é": [1.5e-3]}', "# Title\n\n* item\n", "**bold**", "`code`", "[a](http://x.y/z?q=1)", "| a | b |"),
    *(
        "\\frac{1}{2}",
        "$x^2 + y_{ij}$",
        "\\begin{align}",
        "中文测试。",
        "こんにちは",
        "สวัสดี",
        "한국어",
        "привет",
        "مرحبا",
    ),
    *("😀", "👩\u200d🚀", "🇩🇪", "e\u0301", "<b>", "</table>", "<|im_end|>", "<eos>", "</s>", "[INST]", "'s", "’t", "'"),
    *("100", "3.14", "1,000", "x2", "B12", "a_b", "%", "16 * 6", "=", "...", ")", "(", "Ａ", "ﬁ", "\u00ad"),
)
# Without unassigned and control characters, some of whose bytes SmolLM2's vocabulary lacks.
assigned = st.text(st.characters(exclude_categories=("Cc", "Cn", "Co", "Cs")), max_size=4)
texts = st.lists(st.one_of(st.sampled_from(PIECES), assigned), max_size=12).map("".join)


class Read:
    """The rule of some tokenizers, and their encoders; a short name in Hypothesis's reports."""

    def __init__(self, *tokenizers):
        self.rule, self.encoders = SpanRule.of(tokenizers), [SpanEncoder(t) for t in tokenizers]

    def __repr__(self):
        return "Read"

    def merged(self, text):
        """How many boundaries of a text some tokenizer does not confirm; of the others, every span must be encoded
        alone as it is in the whole text.
        """
        starts = self.rule.starts(text)
        whole = [encoder.encode(text) for encoder in self.encoders]
        kept = [start for start in starts if start == 0 or all(start in read.boundaries for read in whole)]
        for encoder, read in zip(self.encoders, whole):
            ids = []
            for start, end in pairwise([*kept, len(text)]):
                ids += encoder.encode(text[start:end], text[:start]).ids
            assert tuple(ids) == read.ids
        return len(starts) - len(kept)


# WordPiece drops white space, so that no text is the sum of its tokens; no language model here has it.
@pytest.fixture(scope="module", params=sorted(KINDS.keys() - {"wordpiece"}))
def tokenizer(request, tmp_path_factory):
    return load_tokenizer(save(request.param, tmp_path_factory.mktemp(request.param)))


@pytest.fixture(scope="module")
def read(tokenizer):
    return Read(tokenizer)


@settings(max_examples=60, deadline=None)
@given(text=texts)
def test_spans_are_encoded_alone_as_in_the_whole_text(read, text):
    read.merged(text)


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("Janet's 16 eggs.", ["Janet", "'", "s", " 16", " eggs", "."]),
        ("cost 3,500.25 kg", ["cost", " 3,500.25", " kg"]),
        ("a\n\nb (c)", ["a", "\n\nb", " (", "c", ")"]),
        ("中文 b", ["中", "文", " b"]),
        ("ete\u0301 '", ["ete\u0301", " '"]),
        ("a\u2581b", ["a", "\u2581b"]),
        ("", []),
    ],
)
def test_words_and_numbers_are_whole_and_white_space_belongs_to_what_follows(text, spans):
    starts = SpanRule(frozenset(), frozenset()).starts(text)
    assert [text[a:b] for a, b in pairwise([*starts, len(text)])] == spans


def test_what_a_token_joins_is_not_cut():
    rule = SpanRule(frozenset({("=", "=")}), frozenset({("é".encode()[-1], "中".encode()[0])}))
    assert rule.starts("a==b") == [0, 1, 3]
    assert rule.starts("é中") == [0]  # some token holds the end of one character and the beginning of the next


def test_opening_tokens_are_those_before_which_the_rule_cuts(tokenizer):
    rule = SpanRule.of([tokenizer])
    opening = Opening.of(rule, tokenizer, tokenizer.size + 3)
    known = tokenizer.token_bytes
    texts = {}
    for token in range(tokenizer.size):
        if known.special(token) is None:
            try:
                texts[token] = known.within(token).decode()
            except UnicodeDecodeError:
                assert opening.after[token] >= 0  # a class, though the token has no text of its own
    rng = np.random.default_rng(0)
    whole = [token for token, text in texts.items() if text]
    for left, right in rng.choice(whole, (400, 2)).tolist():
        assert opening.opens(left, right) == rule.opens(texts[left], texts[right])
    assert (opening.first[tokenizer.size :] == NEVER).all()
    for token in tokenizer.eos_ids:
        assert opening.first[token] == ALWAYS
        assert all(opening.opens(before, token) for before in [None, *whole[:20]])
    assert opening.table[SEAM, opening.first[whole]].all()


def test_a_token_that_ends_within_a_character_lets_none_open_behind_it(tokenizer):
    opening = Opening.of(SpanRule.of([tokenizer]), tokenizer, tokenizer.size)
    known = tokenizer.token_bytes
    cut = [i for i in range(tokenizer.size) if known.special(i) is None and known.within(i)[:1] >= b"\xc2"]
    cut = [i for i in cut if not _whole(known.within(i))]
    for token in cut:
        ordinary = [i for i in range(tokenizer.size) if i not in tokenizer.eos_ids]
        assert not any(opening.opens(token, i) for i in ordinary)


def _whole(read):
    try:
        return bool(read.decode())
    except UnicodeDecodeError:
        return False


def test_special_tokens_in_a_text_are_spelled_out(tokenizer):
    if tokenizer.kind == "Unigram":  # whose special tokens, in this vocabulary, are pieces of text too
        return
    ids = SpanEncoder(tokenizer).encode("a</s>b").ids
    assert not set(ids) & set(tokenizer.eos_ids)


# Published tokenizers: the patterns of some, and whole ones.


@pytest.fixture(scope="module")
def by_patterns(tmp_path_factory):
    """GPT-2's, Llama 3's, Qwen's and o200k's way to cut texts, each with a vocabulary of its own size."""
    rng = np.random.default_rng(0)
    sample = ["".join(rng.choice(PIECES, 8)) for _ in range(1000)]
    places = {name: tmp_path_factory.mktemp(name) for name in PATTERNS}
    made = {name: by_pattern(name, sample, 600 + 200 * i) for i, name in enumerate(PATTERNS)}
    return Read(*(load_tokenizer(save(made[name], place)) for name, place in places.items()))


@settings(max_examples=100, deadline=None)
@given(text=st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
@example(text=PROSE)
@example(text=CODE)
@example(text="> </b>")
def test_tokenizers_that_cut_by_patterns_confirm_every_boundary(by_patterns, text):
    assert by_patterns.merged(text) == 0


@pytest.fixture(scope="module")
def published(real):
    return Read(*(load_tokenizer(resolve(real / name)) for name in SOURCES))


@pytest.mark.real
@settings(max_examples=200, deadline=None)
@given(text=st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
@example(text=PROSE)
@example(text=CODE)
@example(text="> </b>")
def test_published_tokenizers_confirm_every_boundary(published, text):
    assert published.merged(text) == 0


@pytest.mark.real
@settings(max_examples=200, deadline=None)
@given(text=texts)
def test_published_tokenizers_encode_spans_alone_as_in_the_whole_text(published, text):
    published.merged(text)
