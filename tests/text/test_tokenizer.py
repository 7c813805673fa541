"""Loading tokenizers, their end-of-text ids, and their shared vocabulary."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models

from colm_jax.errors import UserError
from colm_jax.text.tokenizer import load_tokenizer, shared_vocabulary
from tests.tiny import CHAT_TEMPLATE, WORDS, edit_json, write_tokenizer


@pytest.fixture
def make(tmp_path):
    """Return a maker of tokenizers with the given tokens."""
    return lambda name, words=WORDS, **settings: load_tokenizer(write_tokenizer(tmp_path / name, words, **settings))


def test_tokenizer_of_the_original_format_hides_the_deferral_token(make):
    plain, defer = make("plain"), make("defer", [*WORDS, "<|defer|>"])
    assert (plain.has_defer_token, defer.has_defer_token) == (False, True)
    assert plain.words == defer.words == WORDS
    assert plain.size == defer.size == len(WORDS)


def test_real_tokenizers_load(shared):
    load = {name: load_tokenizer(shared / "models" / name) for name in ("babyllama-105", "babyllama-105-colm")}
    assert [(t.size, t.eos_ids, t.has_defer_token) for t in load.values()] == [(105, (2,), False), (105, (2,), True)]
    assert load["babyllama-105"].words == load["babyllama-105-colm"].words
    text = "Once upon a time, there was a girl."
    ids = load["babyllama-105"].encode(text)
    assert ids[0] == 1
    assert load["babyllama-105"].decode(ids) == text


def test_decoding_skips_special_tokens(make):
    tokenizer = make("plain")
    assert tokenizer.decode([1, *tokenizer.encode("ab")[1:], 2]) == "ab"


def test_end_of_text_ids_are_from_all_files_the_tokenizers_first(tmp_path):
    write_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 5}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 2, 5]}))
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.eos_ids, tokenizer.eos_id) == ((2, 5, 7), 2)


def test_missing_end_of_text_token_is_an_error_when_needed(tmp_path):
    write_tokenizer(tmp_path)
    edit_json(tmp_path / "tokenizer_config.json", eos_token=None)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.eos_ids == ()
    with pytest.raises(UserError, match="names no end-of-text token"):
        tokenizer.encode_pair("a", "b")


def test_digest_distinguishes_tokenizers(make):
    swapped = [*WORDS[:-2], WORDS[-1], WORDS[-2]]
    others = [make("1", swapped), make("2", chat_template=CHAT_TEMPLATE), make("3", bos=False), make("4", WORDS[:-1])]
    digests = {tokenizer.digest for tokenizer in (make("0"), *others)}
    assert len(digests) == 5
    assert make("same").digest in digests


@pytest.mark.parametrize(("content", "message"), [(None, "no tokenizer"), ("{", "cannot be read")])
def test_invalid_tokenizer_is_a_one_line_error_that_names_it(content, message, tmp_path):
    if content:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


# The shared vocabulary.


def test_equal_tokenizers_share_all_tokens_but_no_padded_row(make):
    allowed = shared_vocabulary([make("a"), make("b")], heads=[40, 64])
    np.testing.assert_array_equal(allowed, np.arange(40) < len(WORDS))


def test_additional_tokens_of_one_tokenizer_are_not_shared(make):
    base, expert = make("base"), make("expert", [*WORDS, "0", "1"])
    for tokenizers, heads in (([base, expert], [32, 34]), ([expert, base], [34, 40])):
        allowed = shared_vocabulary(tokenizers, heads)
        np.testing.assert_array_equal(allowed, np.arange(min(heads)) < len(WORDS))


def test_three_tokenizers_share_their_common_tokens(make):
    tokenizers = [make("a", [*WORDS, "0", "1"]), make("b", [*WORDS, "0"]), make("c", [*WORDS, "0", "1"])]
    assert shared_vocabulary(tokenizers, [34, 33, 34]).sum() == 33


def test_head_smaller_than_the_tokenizer_limits_the_vocabulary(make):
    np.testing.assert_array_equal(shared_vocabulary([make("a"), make("b")], [32, 30]), np.ones(30, bool))


def test_deferral_token_is_not_shared(make):
    base, expert = make("base", [*WORDS, "<|defer|>"]), make("expert", [*WORDS, "0"])
    np.testing.assert_array_equal(shared_vocabulary([base, expert], [33, 33]), np.arange(33) < 32)


def test_id_without_a_token_is_not_shared(make, tmp_path):
    base = make("base")
    write_tokenizer(tmp_path / "holed")
    file = tmp_path / "holed" / "tokenizer.json"
    value = json.loads(file.read_text())
    del value["model"]["vocab"]["q"]
    file.write_text(json.dumps(value))
    holed, hole = load_tokenizer(tmp_path / "holed"), WORDS.index("q")
    assert holed.words[hole] == ""
    for tokenizers in ([base, holed], [holed, base], [holed, holed]):
        np.testing.assert_array_equal(shared_vocabulary(tokenizers, [32, 32]), np.arange(32) != hole)


def test_single_model_may_generate_all_its_tokens(make):
    np.testing.assert_array_equal(shared_vocabulary([make("a")], [35]), np.arange(35) < 32)


def test_different_added_tokens_are_not_shared(make):
    base, expert = make("base", [*WORDS, "<pad>", "<a>"]), make("expert", [*WORDS, "<suf>", "<a>"])
    np.testing.assert_array_equal(shared_vocabulary([base, expert], [34, 34]), np.arange(34) != 32)
    assert shared_vocabulary([base, expert], [32, 34]).all()  # outside the base's head: never generated


def test_different_end_of_text_is_an_error(make):
    with pytest.raises(UserError, match="id 2 is '</s>'"):
        shared_vocabulary([make("base"), make("expert", ["<unk>", "<s>", "<end>", *WORDS[3:]])], [32, 32])


def test_disagreement_error_names_id_tokens_and_models(make):
    swapped = list(WORDS)
    swapped[10], swapped[11] = swapped[11], swapped[10]
    with pytest.raises(UserError, match=r"id 10 is 'g' in .*base and 'h' in .*expert"):
        shared_vocabulary([make("base"), make("expert", swapped)], [32, 32])


# Special tokens.


def texts_of(tokenizer, ids):
    return [tokenizer.words[token] for token in ids]


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("eos", [True, False])
def test_exactly_one_bos_and_eos_for_any_tokenizer_and_text(make, bos, eos):
    tokenizer = make("t", bos=bos, eos=eos)
    own, end = ["<s>"] * bos, ["</s>"] * eos
    for text, read in (("ab", ["a", "b"]), ("<s>ab", ["<s>", "a", "b"]), ("ab</s>", ["a", "b", "</s>"])):
        before = [] if text.startswith("<s>") else own
        after = [] if text.endswith("</s>") else end
        assert texts_of(tokenizer, tokenizer.encode(text)) == [*before, *read, *after]
        assert texts_of(tokenizer, tokenizer.encode_prompt(text)) == [*before, *read]
        assert texts_of(tokenizer, tokenizer.encode_plain(text)) == read
    for prompt, completion in (("a", "b"), ("<s>a", "b"), ("a", "b</s>"), ("<s>a", "b</s>")):
        ids, targets = tokenizer.encode_pair(prompt, completion)
        begun = ["<s>"] if bos or prompt != "a" else []
        assert texts_of(tokenizer, ids) == [*begun, "a", "b", "</s>"]
        assert targets == [False] * len(begun) + [False, True, True]


def test_white_space_after_a_spelled_out_eos_does_not_count(make):
    ids, targets = make("t").encode_pair("a", "b</s> ")
    assert [WORDS[token] for token in ids] == ["<s>", "a", "b", "</s>", " "]
    assert targets == [False, False, True, True, False]
    ids, targets = make("u").encode_pair("a", "b</s>c")  # this text continues
    assert [WORDS[token] for token in ids] == ["<s>", "a", "b", "</s>", "c", "</s>"]
    assert targets == [False, False, True, True, True, True]


def test_any_end_of_text_token_ends_a_completion(tmp_path):
    write_tokenizer(tmp_path, [*WORDS, "<|im_end|>"])
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [32]}))
    tokenizer = load_tokenizer(tmp_path)
    ids, targets = tokenizer.encode_pair("a", "b<|im_end|>")
    assert texts_of(tokenizer, ids) == ["<s>", "a", "b", "<|im_end|>"]
    assert targets == [False, False, True, True]
    ids, targets = tokenizer.encode_pair("a<|im_end|>", "")  # it belongs to the prompt
    assert texts_of(tokenizer, ids) == ["<s>", "a", "<|im_end|>", "</s>"]
    assert targets == [False, False, False, True]


@pytest.mark.parametrize("adds", [True, False])
def test_token_that_is_both_bos_and_eos(make, adds):
    tokenizer = make("t", bos=adds, eos=adds, begin="</s>")
    own = ["</s>"] * adds
    assert texts_of(tokenizer, tokenizer.encode("a")) == [*own, "a", *own]
    assert texts_of(tokenizer, tokenizer.encode_prompt("a")) == [*own, "a"]
    assert texts_of(tokenizer, tokenizer.encode_prompt("</s>")) == ["</s>"]
    for completion in ("", "</s>"):
        ids, targets = tokenizer.encode_pair("", completion)
        assert texts_of(tokenizer, ids) == ["</s>"] * max(1 + adds, 1 + bool(completion))
        assert targets[-1]


def test_special_tokens_of_other_post_processors(tmp_path):
    write_tokenizer(tmp_path)
    file = tmp_path / "tokenizer.json"
    value = json.loads(file.read_text())
    value["post_processor"] = {"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1]}
    value["post_processor"] |= {"trim_offsets": True, "add_prefix_space": False}
    file.write_text(json.dumps(value))
    tokenizer = load_tokenizer(tmp_path)
    assert texts_of(tokenizer, tokenizer.encode("a")) == ["<s>", "a", "</s>"]
    assert texts_of(tokenizer, tokenizer.encode_prompt("a")) == ["<s>", "a"]
    assert tokenizer.encode_pair("a", "b") == ([1, 4, 5, 2], [False, False, True, True])


def test_padding_with_eos_has_no_effect(tmp_path):
    write_tokenizer(tmp_path)
    before = load_tokenizer(tmp_path)
    edit_json(tmp_path / "tokenizer_config.json", pad_token="</s>", padding_side="left")
    after = load_tokenizer(tmp_path)
    assert before.encode_pair("a</s>", "b") == after.encode_pair("a</s>", "b")
    assert (before.encode("a"), before.eos_ids) == (after.encode("a"), after.eos_ids)


# The digest.


def test_digest_depends_on_behaviour_and_not_on_the_name(tmp_path):
    write_tokenizer(tmp_path)
    tokenizer, file = load_tokenizer(tmp_path), tmp_path / "tokenizer.json"
    digest, value = tokenizer.digest, json.loads(file.read_text())
    other = load_tokenizer(tmp_path)
    other.backend.backend_tokenizer.enable_padding(length=8)
    other.backend.backend_tokenizer.enable_truncation(2)
    assert other.digest == digest
    digests = {digest}
    for changes in (
        {"normalizer": {"type": "Lowercase"}},
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": ".."}, "behavior": "Isolated", "invert": False}},
        {"post_processor": None},
    ):
        file.write_text(json.dumps({**value, **changes}))
        digests.add(load_tokenizer(tmp_path).digest)
    assert len(digests) == 4


def test_digest_depends_on_the_merges(tmp_path):
    def digest(merges):
        backend = Backend(models.BPE({"a": 0, "b": 1, "ab": 2, "ba": 3}, merges))
        backend.save(str(tmp_path / "tokenizer.json"))
        (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
        return load_tokenizer(tmp_path).digest

    one, two = [("a", "b"), ("b", "a")], [("b", "a"), ("a", "b")]
    assert len({digest(one), digest(two), digest([]), digest(one)}) == 3


# The shared end of text.


def test_shared_second_end_of_text_ends_texts(tmp_path):
    write_tokenizer(tmp_path, [*WORDS, "<stop>"])
    edit_json(tmp_path / "tokenizer_config.json", eos_token="<stop>")
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [32, 999, 2]}))
    base, expert = load_tokenizer(tmp_path), load_tokenizer(write_tokenizer(tmp_path / "expert"))
    allowed = shared_vocabulary([base, expert], [33, 32])
    within = base.within(allowed)
    assert (base.eos_id, within.eos_ids) == (32, (2,))
    assert within.encode_pair("a", "b")[0] == [1, 4, 5, 2]


@pytest.mark.parametrize(
    ("expert", "heads", "said"),
    [
        (WORDS, (33, 33), r"id 32 is '<stop>' in .*base and no token in .*expert; pair .*generation_config.json"),
        ((*WORDS, "<pad>"), (33, 33), r"id 32 is '<stop>' in .*base and '<pad>' in .*expert;"),
        ((*WORDS, "<stop>"), (33, 32), r"and '<stop>' but beyond the 32 rows of the LM head in .*expert;"),
        (None, (32,), r"id 32 is '<stop>' but beyond the 32 rows of the LM head in .*base;"),
    ],
)
def test_team_without_shared_end_of_text_is_an_error(make, tmp_path, expert, heads, said):
    make("base", (*WORDS, "<stop>"))
    edit_json(tmp_path / "base/tokenizer_config.json", eos_token="<stop>")
    team = [load_tokenizer(tmp_path / "base"), *([] if expert is None else [make("expert", expert)])]
    with pytest.raises(UserError, match=f"^no text could end: the end of text, .*{said}"):
        shared_vocabulary(team, list(heads))
