"""Every form of data line gives the right ids and mask; an invalid line is an error with file and line."""

import json

import numpy as np
import pytest

from colm_jax.data.records import encode_example, encode_examples, encode_prompt, read_jsonl
from colm_jax.errors import UserError
from colm_jax.text.tokenizer import load_tokenizer
from tests.tiny import CHAT_TEMPLATE, SPECIAL, WORDS, write_tokenizer

BOS, EOS = 1, 2


def read_examples(file, tokenizer, context):
    return encode_examples(read_jsonl(file), tokenizer, context, str(file))


def ids_of(text):
    return [WORDS.index(character) for character in text]


@pytest.fixture
def tokenizer(tmp_path):
    return load_tokenizer(write_tokenizer(tmp_path / "tokenizer", chat_template=CHAT_TEMPLATE))


@pytest.fixture
def plain_tokenizer(tmp_path):
    """Return a tokenizer without chat template and BOS."""
    return load_tokenizer(write_tokenizer(tmp_path / "plain", bos=False))


def counted(record, tokenizer):
    """Return the ids, and the tokens that count in the loss as text (EOS as !)."""
    ids, targets = encode_example(record, tokenizer, "here")
    assert len(ids) == len(targets)
    kept = [WORDS[i] for i, target in zip(ids, targets) if target]
    return ids, "".join("!" if word == "</s>" else word for word in kept)


def test_all_tokens_of_a_text_count_except_the_first(tokenizer, plain_tokenizer):
    assert counted({"text": "ab c"}, tokenizer) == ([BOS, *ids_of("ab c")], "ab c")
    assert counted({"text": "ab c"}, plain_tokenizer) == (ids_of("ab c"), "b c")


def test_only_completion_and_eos_count(tokenizer, plain_tokenizer):
    record = {"prompt": "ab?", "completion": " cd."}
    assert counted(record, tokenizer) == ([BOS, *ids_of("ab? cd."), EOS], " cd.!")
    assert counted(record, plain_tokenizer) == ([*ids_of("ab? cd."), EOS], " cd.!")


def test_eos_of_an_empty_completion_counts(tokenizer):
    assert counted({"prompt": "ab", "completion": ""}, tokenizer) == ([BOS, *ids_of("ab"), EOS], "!")


def test_all_of_a_completion_without_prompt_counts(tokenizer):
    assert counted({"prompt": "", "completion": "ab"}, tokenizer) == ([BOS, *ids_of("ab"), EOS], "ab!")


def test_prompt_and_completion_are_tokenised_as_one_text(shared):
    tokenizer = load_tokenizer(shared / "models" / "stories260k")
    prompt, completion = "Once upon a time, there was a lit", "tle girl named Lily."
    ids, targets = encode_example({"prompt": prompt, "completion": completion}, tokenizer, "here")
    assert ids == [*tokenizer.encode(prompt + completion), tokenizer.eos_id]
    first = targets.index(True)
    assert not any(targets[:first]) and all(targets[first:])
    assert tokenizer.decode([i for i, target in zip(ids, targets) if target]).strip() == "little girl named Lily."


def test_only_assistant_messages_count(tokenizer):
    turns = ["user", "hi"], ["assistant", "yes."], ["user", "so"], ["assistant", "ok"]
    messages = [{"role": role, "content": content} for role, content in turns]
    ids, kept = counted({"messages": messages}, tokenizer)
    assert ids == [BOS, *ids_of("u?hia?yes."), EOS, *ids_of("u?soa?ok"), EOS]
    assert kept == "yes.!ok!"


def test_mask_follows_the_template_and_not_the_words(tokenizer):
    """System and user messages also contain the assistant's words and header, before and after."""
    turns = ["system", "yes"], ["user", "a?yes"], ["assistant", "yes"], ["user", "yes"], ["assistant", "yes a?yes"]
    ids, targets = encode_example({"messages": [{"role": r, "content": c} for r, c in turns]}, tokenizer, "here")
    pieces = [("s?yes", 0), ("u?a?yes", 0), ("a?", 0), ("yes", 1), (EOS, 1), ("u?yes", 0)]
    pieces += [("a?", 0), ("yes a?yes", 1), (EOS, 1)]
    expected = [(BOS, False)]
    for text, counts in pieces:
        expected += [(i, bool(counts)) for i in ([text] if text == EOS else ids_of(text))]
    assert list(zip(ids, targets)) == expected


def test_system_and_last_user_messages_do_not_count(tokenizer):
    turns = ["system", "be"], ["user", "hi"], ["assistant", "yes"], ["user", "so"]
    ids, kept = counted({"messages": [{"role": r, "content": c} for r, c in turns]}, tokenizer)
    assert ids == [BOS, *ids_of("s?beu?hia?yes"), EOS, *ids_of("u?so")]
    assert kept == "yes!"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}", "changes earlier messages"),
        (
            "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}x{% endif %}",
            "not a prefix",
        ),
        ("{{ raise_exception('roles must alternate') }}", "rejects these messages: roles must alternate"),
    ],
)
def test_template_without_a_clear_mask_is_an_error(template, message, tmp_path):
    words = [*WORDS, *"0123456789"]
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, words, template))
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(UserError, match=f"^data.jsonl:3: .*{message}"):
        encode_example({"messages": messages}, tokenizer, "data.jsonl:3")


def test_messages_need_a_template(plain_tokenizer):
    with pytest.raises(UserError, match="here: 'messages' need a chat template"):
        encode_example({"messages": [{"role": "user", "content": "a"}]}, plain_tokenizer, "here")


def test_input_ids_are_unchanged(tokenizer):
    assert counted({"input_ids": [4, 5, 6]}, tokenizer) == ([4, 5, 6], "bc")
    labels = [-100, -100, 6, 2]
    assert counted({"input_ids": [4, 5, 6, 2], "labels": labels}, tokenizer) == ([4, 5, 6, 2], "c!")


def test_file_of_all_forms(tokenizer, tmp_path):
    records = [
        {"text": "ab", "id": 7},
        {"prompt": "a", "completion": "b"},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {"input_ids": [1, 4], "labels": [-100, 4]},
    ]
    file = tmp_path / "data.jsonl"
    file.write_text("\n\n".join(map(json.dumps, records)) + "\n", encoding="utf-8")
    examples = read_examples(file, tokenizer, context=16)
    assert [len(example.ids) for example in examples.items] == [3, 4, 8, 2]
    assert [int(example.targets.sum()) for example in examples.items] == [2, 2, 2, 1]
    assert (examples.tokens, examples.cut) == (7, 0)
    assert {(e.ids.dtype, e.targets.dtype) for e in examples.items} == {(np.dtype("int32"), np.dtype("bool"))}


def test_long_texts_are_truncated_and_counted(tokenizer, tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_text('{"text": "abcdefg"}\n{"text": "abc"}\n')
    examples = read_examples(file, tokenizer, context=4)
    assert [list(example.ids) for example in examples.items] == [[BOS, *ids_of("abc")]] * 2
    assert (examples.cut, examples.tokens) == (1, 6)


def test_text_file_is_split_into_documents(tokenizer, tmp_path):
    file = tmp_path / "data.txt"
    file.write_text("one two.\n<|endoftext|>\n\n<|endoftext|>three\n")
    assert [record for _, record in read_jsonl(file)] == [{"text": "one two."}, {"text": "three"}]
    assert read_jsonl(file)[1][0] == f"{file}:document 3"
    assert read_examples(file, tokenizer, 64).tokens == len("one two.") + len("three")


def test_unicode_line_separators_do_not_end_a_record(tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_text('{"text": "a\u2028b\x85c"}\r\n{"text": "d"}', encoding="utf-8", newline="")
    assert [record["text"] for _, record in read_jsonl(file)] == ["a\u2028b\x85c", "d"]


WRONG_LINES = {
    '{"text": "a"': "not valid JSON: .*column",
    "[1]": "expected a JSON object, got list",
    "{}": "needs 'text', 'prompt' .*keys are none",
    '{"txt": "a"}': "needs 'text', .*keys are 'txt'",
    '{"text": 3}': "'text' must be a string, got 3",
    '{"prompt": "a"}': "'completion' must be a string, got None",
    '{"completion": "a"}': "'prompt' must be a string, got None",
    '{"messages": []}': "'messages' must be a list of messages, got",
    '{"messages": [{"role": "user"}]}': "a message needs 'role' and 'content' strings",
    '{"messages": [{"role": "user", "content": ["a"]}]}': "a message needs 'role' and 'content' strings",
    '{"input_ids": "1 2"}': "'input_ids' must be a list",
    '{"input_ids": [1, 32]}': r"input_ids\[1\] is 32; ids are whole numbers from 0 to 31",
    '{"input_ids": [1, -1]}': r"input_ids\[1\] is -1",
    '{"input_ids": [1, 4.0]}': r"input_ids\[1\] is 4.0",
    '{"input_ids": [true]}': r"input_ids\[0\] is True",
    '{"input_ids": []}': "the record has no token",
    '{"input_ids": [1, 4], "labels": [4]}': "'labels' must be a list as long as 'input_ids' .2.",
    '{"input_ids": [1, 4], "labels": [-100, 5]}': r"labels\[1\] is 5; it must be input_ids\[1\] .4. or -100",
}


@pytest.mark.parametrize("line", WRONG_LINES)
def test_invalid_line_is_an_error_with_file_and_line(line, tokenizer, tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_text(f'{{"text": "a"}}\n\n{line}\n{{"text": "b"}}\n')
    with pytest.raises(UserError, match=f"^{file}:3: {WRONG_LINES[line]}") as caught:
        read_examples(file, tokenizer, 64)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file has no data"),
        (b"\n \n", "the file has no data"),
        (b'{"text": "\xff"}', "1: not UTF-8 text"),
        (b'{"text": ""}', "no token counts"),
    ],
)
def test_file_without_data_is_an_error(content, message, tokenizer, tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_bytes(content)
    with pytest.raises(UserError, match=rf"^{file}: ?{message}"):
        read_examples(file, tokenizer, 64)


def test_missing_file_is_an_error_that_names_it(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.jsonl: cannot be read"):
        read_jsonl(tmp_path / "nowhere.jsonl")


def test_prompts_of_every_form(tokenizer):
    expected = [BOS, *ids_of("ab")]
    for prompt in ("ab", {"prompt": "ab", "id": "x"}, {"text": "ab"}, {"input_ids": expected}):
        assert encode_prompt(prompt, tokenizer, "here") == expected
    messages = [{"role": "user", "content": "hi"}]
    assert encode_prompt({"messages": messages}, tokenizer, "here") == [BOS, *ids_of("u?hia?")]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [({}, "a prompt needs"), ({"prompt": 3}, "must be a string"), ({"input_ids": []}, "no token"), ("", "no token")],
)
def test_invalid_prompt_is_an_error(prompt, message, plain_tokenizer):
    with pytest.raises(UserError, match=f"prompts.jsonl:2: .*{message}"):
        encode_prompt(prompt, plain_tokenizer, "prompts.jsonl:2")


def test_special_tokens_in_a_text_do_not_shift_the_completion(tokenizer):
    ids, targets = encode_example({"prompt": "a</s>b", "completion": "c"}, tokenizer, "here")
    assert ids == [BOS, *ids_of("a"), SPECIAL.index("</s>"), *ids_of("bc"), EOS]
    assert targets == [False] * 4 + [True, True]


def test_completion_begins_at_the_end_of_the_prompts_text(tmp_path):
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, eos=True))
    assert encode_prompt("ab", tokenizer, "here") == [BOS, *ids_of("ab")]
    assert counted({"text": "ab"}, tokenizer) == ([BOS, *ids_of("ab"), EOS], "ab!")
    assert counted({"prompt": "a", "completion": "b"}, tokenizer) == ([BOS, *ids_of("ab"), EOS], "b!")


def test_prompt_ending_in_eos_is_an_error_unless_eos_begins_texts(tokenizer, tmp_path):
    with pytest.raises(UserError, match=r"^p.txt:document 2: the prompt ends with '</s>', the end of text; remove it"):
        encode_prompt({"text": "ab</s>"}, tokenizer, "p.txt:document 2")
    assert encode_prompt({"prompt": "a</s>b"}, tokenizer, "here") == [BOS, *ids_of("a"), EOS, *ids_of("b")]
    assert encode_prompt({"input_ids": [4, EOS]}, tokenizer, "here") == [4, EOS]
    both = load_tokenizer(write_tokenizer(tmp_path / "both", bos=False, begin="</s>"))
    assert encode_prompt("</s>", both, "here") == [EOS]
    assert encode_prompt("ab</s>", both, "here") == [*ids_of("ab"), EOS]


HALF = "half of a surrogate pair"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": "a\\ud83d"}', rf"'text' holds '\\ud83d', {HALF}"),
        ('{"text": "a", "id": "\\uDE00"}', rf"'id' holds '\\ude00', {HALF}"),
        ('{"text": "a", "x": [{"y": "\\udfff b"}]}', rf"'x' holds '\\udfff', {HALF}"),
        ('{"text": "a", "\\ud800": 1}', rf"'\\ud800' holds '\\ud800', {HALF}"),
        ('{"text": "a", "x": NaN}', "not valid JSON: NaN is no JSON number"),
        ('{"text": "a", "x": [-Infinity]}', "not valid JSON: -Infinity is no JSON number"),
        ('{"text": "a", "x": ' + "1" * 5000 + "}", "not valid JSON: a whole number has too many digits"),
        ('{"text": "a", "x": ' + "[" * 100000 + "]" * 100000 + "}", "not valid JSON: nested too deeply"),
    ],
)
def test_values_that_json_cannot_write_are_an_error_when_read(line, said, tmp_path):
    file = tmp_path / "d.jsonl"
    file.write_text(f'{{"text": "a"}}\n{line}\n')
    with pytest.raises(UserError, match=rf"^{file}:2: {said}") as caught:
        read_jsonl(file)
    assert str(caught.value).isprintable()


def test_surrogate_pairs_and_escaped_backslashes_are_read(tmp_path):
    file = tmp_path / "d.jsonl"
    file.write_text('{"text": "\\ud83d\\ude00 \\\\ud83d"}\n')
    assert read_jsonl(file)[0][1] == {"text": "\N{GRINNING FACE} \\ud83d"}


@pytest.mark.parametrize(
    "record",
    [
        {"text": "a\ud83d"},
        {"prompt": "a", "completion": "\ud83db"},
        {"messages": [{"role": "user", "content": "a\udc00"}, {"role": "assistant", "content": "b"}]},
    ],
)
def test_lone_surrogate_from_python_is_an_error(record, tokenizer):
    with pytest.raises(UserError, match=rf"^here: .* holds '\\ud.*', {HALF}"):
        encode_example(record, tokenizer, "here")
    if "completion" not in record:
        prompt = {"messages": record["messages"][:1]} if "messages" in record else record["text"]
        with pytest.raises(UserError, match=rf"^here: .* holds '\\ud.*', {HALF}"):
            encode_prompt(prompt, tokenizer, "here")


@pytest.mark.parametrize("name, text", [("a.jsonl", '{"text": "ab"}\n'), ("a.txt", "ab")])
def test_byte_order_mark_is_ignored_and_other_encodings_are_an_error(tmp_path, name, text):
    (tmp_path / name).write_bytes(text.encode("utf-8-sig"))
    assert [record for _, record in read_jsonl(tmp_path / name)] == [{"text": "ab"}]
    for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32"):
        (tmp_path / name).write_bytes(text.encode(encoding))
        with pytest.raises(UserError, match=rf"{name}: is UTF-.*, not UTF-8 text; save it as UTF-8"):
            read_jsonl(tmp_path / name)
