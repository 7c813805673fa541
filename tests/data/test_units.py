"""Units: all models of a team read the same units, each with its own tokens and its own view of the prompt."""

import json

import numpy as np
import pytest

from colm_jax.data.records import Example
from colm_jax.data.span_units import SpanUnits
from colm_jax.data.token_units import TokenUnits
from colm_jax.data.tokens import open_tokens, tokenise
from colm_jax.data.units import TextView, expert_view
from colm_jax.errors import UserError
from colm_jax.text.spans import SpanEncoder
from colm_jax.text.tokenizer import load_tokenizer
from tests.text.vocabularies import save
from tests.tiny import WORDS, edit_json, write_model

TEXT = "the end, 12.50 eggs. the 中文 <b>"


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """A byte-level base, an expert that spells a space ▁, one whose tokenizer is unknown."""
    found = [load_tokenizer(save(kind, tmp_path_factory.mktemp(kind))) for kind in ("byte-level", "gemma")]
    return (*found, None)


def units(tokenizers, contexts=(512, 512, None)):
    return SpanUnits.of(tokenizers, contexts, [0 if t is None else t.size for t in tokenizers])


def texts_of(example, tokenizer):
    """The text of each unit that counts; special tokens are left out."""
    known, found = tokenizer.token_bytes, []
    for token, start, counts in zip(example.ids.tolist(), example.starts, example.targets):
        if counts:
            read = known.within(token) if known.special(token) is None else b""
            if start:
                found.append(read)
            else:
                found[-1] += read
    return [read.decode() for read in found]


def test_every_model_reads_the_same_units(tokenizers):
    found = units(tokenizers).text({"prompt": "Q: the", "completion": TEXT}, "f:1")
    base, (guest, remote) = found.base, found.experts
    spans = texts_of(guest, tokenizers[1])
    assert texts_of(base, tokenizers[0]) == [*spans, ""]  # the end of text is a unit of the base alone
    assert list(remote.spans) == spans and "".join(spans) == TEXT
    assert base.ids[-1] == guest.ids[-1] == 2 and base.counted[-1] and not guest.targets[-1]
    assert remote == TextView({"prompt": "Q: the"}, tuple(spans), True)
    assert found.bytes == len(TEXT.encode()) and not found.cut
    assert not base.targets[: len(tokenizers[0].encode_prompt("Q: the"))].any()


def test_spans_between_which_a_tokenizer_does_not_split_are_one(tokenizers, tmp_path):
    """One token a character; the line break is unknown to it, and an unknown token opens no span while it writes."""
    found = units((tokenizers[0], load_tokenizer(save("characters", tmp_path))), (512, 512))
    read = found.text({"prompt": "a", "completion": " b c\nd e"}, "f:1")
    assert texts_of(read.base, tokenizers[0]) == [" b", " c\nd", " e", ""]
    assert read.experts[0].counted.sum() == 3
    assert (found.merged.boundaries, found.merged.merged) == (4, 1)


@pytest.mark.parametrize("contexts", [(12, 512, None), (512, 24, None)])
def test_a_long_text_is_cut_behind_the_same_span_for_all(tokenizers, contexts):
    found = units(tokenizers, contexts).text({"prompt": "Q", "completion": TEXT}, "f:1")
    base, (guest, remote) = found.base, found.experts
    spans = texts_of(guest, tokenizers[1])
    assert found.cut and 0 < len(spans) == base.counted.sum() == guest.counted.sum()
    assert texts_of(base, tokenizers[0]) == spans == list(remote.spans) and not remote.finished
    assert len(base.ids) <= contexts[0] and len(guest.ids) <= contexts[1]
    assert TEXT.startswith("".join(spans))


def test_the_first_span_counts_only_if_every_model_predicts_it(tokenizers):
    """These tokenizers put nothing before a text, so that nothing predicts its first token."""
    found = units(tokenizers[:2], (512, 512)).text({"text": TEXT}, "f:1")
    (guest,) = found.experts
    assert texts_of(found.base, tokenizers[0])[0] != "the"
    assert texts_of(found.base, tokenizers[0]) == texts_of(guest, tokenizers[1])
    assert found.bytes == sum(len(text.encode()) for text in texts_of(guest, tokenizers[1]))


def test_experts_read_their_own_view_of_the_prompt(tokenizers):
    record = {"prompt": "Q", "completion": " the end", "expert_prompt": "the document"}
    found = units(tokenizers).text(record, "f:1")
    start = len(tokenizers[1].encode_prompt("the document"))
    assert found.experts[0].ids[:start].tolist() == tokenizers[1].encode_prompt("the document")
    assert found.experts[1].prompt == {"prompt": "the document"}
    prompts = units(tokenizers).prompts({"prompt": "Q", "expert_prompt": "the document"}, "p:1")
    assert prompts.base == tokenizers[0].encode_prompt("Q")
    assert prompts.experts == (tokenizers[1].encode_prompt("the document"), {"prompt": "the document"})


def test_a_span_written_by_one_is_read_by_all(tokenizers):
    known = units(tokenizers)
    written = known.written(1, tokenizers[1].encode_plain(" the end"), "a")
    assert written.text == " the end" and known.unit(written.tokens) == written
    assert known.read(1, written, "a") == tokenizers[1].encode_plain(" the end")


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"input_ids": [4, 5]}, "f:1: 'input_ids' are of one tokenizer"),
        ({"messages": [{"role": "user", "content": "a"}]}, "f:1: the last of 'messages' must be the assistant's"),
        ({"messages": []}, "f:1: the last of 'messages' must be the assistant's"),
        ({"other": 1}, "f:1: needs 'text', 'prompt' \\+ 'completion' or 'messages'; keys are 'other'"),
        ({"prompt": "a", "completion": 3}, "f:1: 'completion' must be a string, got 3"),
        ({"prompt": "a", "completion": "b", "expert_prompt": 3}, "f:1: 'prompt' must be a string, got 3"),
        (
            {"prompt": "a", "completion": "b", "expert_prompt": "x", "expert_messages": []},
            "f:1: give 'expert_prompt' or 'expert_messages', not both",
        ),
    ],
)
def test_bad_records_are_named(tokenizers, record, said):
    with pytest.raises(UserError, match=said):
        units(tokenizers).text(record, "f:1")


def test_a_prompt_that_fills_a_model_s_context_is_refused(tokenizers):
    with pytest.raises(UserError, match="p:1: 6 tokens leave no room in the context of 6"):
        units(tokenizers, (512, 6, None)).prompts("a b a b a b"[:6], "p:1")


def test_stored_units_are_read_back(tokenizers):
    base = units(tokenizers).text({"prompt": "Q", "completion": TEXT}, "f:1").base
    read = Example.of_stored(base.stored)
    for name in ("ids", "targets", "starts", "counted"):
        np.testing.assert_array_equal(getattr(read, name), getattr(base, name))
    plain = Example(base.ids, base.targets)
    assert Example.of_stored(plain.stored).starts is None and plain.stored != base.stored


def test_token_units_are_the_tokens_and_views_replace_the_prompt(tmp_path):
    tokenizer = load_tokenizer(write_model(tmp_path))
    size = len(WORDS)
    known = TokenUnits(tokenizer, (64, 10), np.ones(size, bool), (size, size))
    found = known.text({"prompt": "abc", "completion": "de"}, "f:1")
    assert found.experts == (found.base,) and found.base.starts is None and found.bytes == 2
    viewed = known.text({"prompt": "abc", "completion": "de", "expert_prompt": "x"}, "f:1")
    np.testing.assert_array_equal(viewed.base.ids, found.base.ids)
    (expert,) = viewed.experts
    assert expert.ids.tolist() == [*tokenizer.encode_prompt("x"), *found.base.ids[found.base.targets].tolist()]
    assert expert.counted.sum() == viewed.base.counted.sum()
    long = known.text({"prompt": "a", "completion": "b" * 40, "expert_prompt": "xyz"}, "f:1")
    assert long.cut and len(long.experts[0].ids) == 10 and long.experts[0].targets.sum() == long.base.targets.sum()


def test_views_are_optional():
    assert expert_view({"prompt": "a"}, "p") is None
    assert expert_view({"prompt": "a", "expert_prompt": None}, "p") is None
    assert expert_view({"expert_messages": [1]}, "p") == {"messages": [1]}


@pytest.mark.parametrize("name", ["babyllama-105", "stories260k"])
def test_no_space_is_put_before_a_text_behind_a_prompt(shared, name):
    """These tokenizers put one before every text of their own."""
    tokenizer = load_tokenizer(shared / "models" / name)
    known, encoder = tokenizer.token_bytes, SpanEncoder(tokenizer)

    def bytes_of(ids):
        return b"".join(known.within(i) for i in ids)

    assert bytes_of(encoder.encode("Tim saw", None).ids) == bytes_of(tokenizer.encode_plain("Tim saw")) == b" Tim saw"
    assert bytes_of(encoder.encode("Tim saw", "").ids) == b"Tim saw"
    assert bytes_of(encoder.encode(" saw", "Tim").ids) == bytes_of(encoder.encode(" saw", "").ids) == b" saw"
    other = load_tokenizer(shared / "models/stories260k")
    spans = SpanUnits.of([tokenizer, other], [256, 512], [tokenizer.size, other.size])
    assert all(spans.spells(unit) for unit in (spans.spelled("Tim", ""), spans.spelled(" saw", "Tim")))
    found = spans.text({"prompt": "Tim", "completion": " saw"}, "f:1")
    for example, own in zip((found.base, *found.experts), (tokenizer, other)):
        text = b"".join(
            own.token_bytes.within(i) for i in example.ids[example.targets].tolist() if i not in own.eos_ids
        )
        assert text == b" saw"


def test_a_text_of_spans_of_one_token_each_stays_one_of_spans():
    ids, starts = np.array([5, 6, 7], np.int32), np.ones(3, bool)
    for targets in (np.array([False, True, True]), np.zeros(3, bool)):
        read = Example.of_stored(Example(ids, targets, starts).stored)
        np.testing.assert_array_equal(read.ids, ids)
        np.testing.assert_array_equal(read.starts, starts)
        np.testing.assert_array_equal(read.targets, targets)


def test_nothing_is_longer_than_its_model_s_context(tokenizers, tmp_path):
    long = {"prompt": "the b " * 40, "completion": " a", "expert_prompt": "a b " * 40}
    found = units(tokenizers, (16, 20, None)).text(long, "f:1")
    assert found.cut and len(found.base.ids) <= 16 and len(found.experts[0].ids) <= 20
    assert not found.base.targets.any() and not found.experts[0].targets.any()
    tokenizer, size = load_tokenizer(write_model(tmp_path)), len(WORDS)
    known = TokenUnits(tokenizer, (16, 20), np.ones(size, bool), (size, size))
    found = known.text({"prompt": "a" * 40, "completion": "b", "expert_prompt": "c" * 40}, "f:1")
    assert found.cut and len(found.base.ids) == 16 and len(found.experts[0].ids) == 20


def test_a_view_may_be_longer_than_the_base_s_context(tmp_path):
    tokenizer, size = load_tokenizer(write_model(tmp_path)), len(WORDS)
    prompt = {"prompt": "ab", "expert_prompt": "c" * 40}
    found = TokenUnits(tokenizer, (16, 64), np.ones(size, bool), (size, size)).prompts(prompt, "p:1")
    assert len(found.experts[0]) == 41
    assert TokenUnits(tokenizer, (16,), np.ones(size, bool), (size,)).prompts(prompt, "p:1").experts == ()
    with pytest.raises(UserError, match="p:1, the experts' view: 41 tokens leave no room in the context of 32"):
        TokenUnits(tokenizer, (16, 32), np.ones(size, bool), (size, size)).prompts(prompt, "p:1")


def test_the_base_s_turn_ends_as_its_template_ends_it(tmp_path):
    """The first end-of-text id need not be the template's."""
    directory = write_model(tmp_path, words=(*WORDS, "<|turn|>"), vocab_size=len(WORDS) + 1)
    template = "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}<|turn|>{% endif %}{% endfor %}"
    edit_json(directory / "tokenizer_config.json", chat_template=template)
    edit_json(directory / "config.json", eos_token_id=[2, len(WORDS)])
    tokenizer = load_tokenizer(directory)
    known = SpanUnits.of([tokenizer, tokenizer], [64, 64], [tokenizer.size] * 2)
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert known.text({"messages": messages}, "f:1").base.ids[-1] == tokenizer.words.index("<|turn|>")
    assert known.text({"prompt": "a", "completion": "b"}, "f:1").base.ids[-1] == 2


def test_views_of_unknown_tokens_are_stored_whole(tokenizers, tmp_path):
    data = tmp_path / "data.jsonl"
    records = [{"text": TEXT, "expert_prompt": "x"}, {"prompt": "Q", "completion": " the end"}, {"text": "the b b"}]
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    known = units(tokenizers)
    tokenise(data, tokenizers[0], 512, tmp_path / "tokens", np.ones(tokenizers[0].size, bool), units=known)
    examples = open_tokens(tmp_path / "tokens")
    expected = [known.text(record, "f") for record in records]
    assert list(examples.view(2)) == [text.experts[1] for text in expected]
    assert expected[0].experts[1].skipped == expected[0].experts[1].first == 1  # though it has a prompt of its own
    for read, text in zip(examples.view(1).items, expected, strict=True):
        np.testing.assert_array_equal(read.ids, text.experts[0].ids)
        np.testing.assert_array_equal(read.counted, text.experts[0].counted)


@pytest.mark.parametrize("model", [0, 1])
def test_tokens_beyond_a_models_head_are_refused(tokenizers, model):
    """Its embedding has no row for them either, and every number after them would be NaN."""
    known = [tokenizers[m].encode_prompt(TEXT) for m in (0, 1)]
    rows = [tokenizers[0].size, tokenizers[1].size]
    rows[model] = max(known[model])
    short = SpanUnits.of(tokenizers[:2], (512, 512), rows)
    said = rf"f:1.*: token {rows[model]} \(.*\) of .* is beyond the {rows[model]} rows of the model's head"
    with pytest.raises(UserError, match=said):
        short.prompts({"prompt": TEXT}, "f:1")
    with pytest.raises(UserError, match=said):
        short.text({"prompt": "Q: the", "completion": TEXT}, "f:1")
    assert short.prompts({"prompt": "the"}, "f:1").base == tokenizers[0].encode_prompt("the")
