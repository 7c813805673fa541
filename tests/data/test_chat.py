"""Conversations through chat templates: the loss mask, and errors."""

import json

import pytest

from colm_jax.data.records import encode_example, encode_prompt
from colm_jax.errors import UserError
from colm_jax.text.tokenizer import load_tokenizer
from tests.tiny import CHAT_TEMPLATE, WORDS, write_tokenizer

TURNS = ("<|im_start|>", "<|im_end|>", "<think>")
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '.' + m['content'] + '<|im_end|> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant.' }}{% endif %}"
)
NEEDS_USER = (
    "{% if not messages | selectattr('role', 'equalto', 'user') | list %}{{ raise_exception('no user') }}{% endif %}"
)
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]


@pytest.fixture
def chat(tmp_path):
    """Return a maker of tokenizers with a template; they add BOS and EOS to texts, and <|im_end|> also ends a text."""

    def make(template, ends=("</s>", "<|im_end|>")):
        words = (*WORDS, *TURNS)
        write_tokenizer(tmp_path, words, template, eos=True)
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [words.index(e) for e in ends]}))
        return load_tokenizer(tmp_path)

    return make


def talk(*turns, **more):
    """Make a record from turns, each the first letter of the role and the content."""
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return {"messages": [{"role": roles[turn[0]], "content": turn[2:]} for turn in turns], **more}


def shown(record, tokenizer):
    """Return the tokens of a record; those that count in the loss are in brackets."""
    ids, targets = encode_example(record, tokenizer, "f:1")
    text, inside = "", False
    for token, target in zip(ids, targets):
        text += ("" if inside == target else "[" if target else "]") + tokenizer.words[token]
        inside = target
    return text + ("]" if inside else "")


def test_one_end_token_per_turn_counts_and_nothing_after_it(chat):
    record = talk("s be", "u hi", "a yes", "u so", "a ok")
    assert shown(record, chat(CHATML)) == (
        "<|im_start|>system.be<|im_end|> <|im_start|>user.hi<|im_end|> <|im_start|>assistant.[yes<|im_end|>] "
        "<|im_start|>user.so<|im_end|> <|im_start|>assistant.[ok<|im_end|>] "
    )


def test_template_determines_bos_and_eos(chat):
    for bos, eos in (("", ""), ("<s>", ""), ("", "</s>"), ("<s>", "</s>")):
        tokenizer = chat(CHAT_TEMPLATE.replace("<s>", bos).replace("</s>", eos))
        assert shown(talk("u hi", "a yes"), tokenizer) == f"{bos}u?hia?[yes{eos}]"
        prompt = encode_prompt(talk("u hi"), tokenizer, "f:1")
        assert "".join(tokenizer.words[i] for i in prompt) == f"{bos}u?hia?"


def test_text_after_a_spelled_out_end_does_not_count(chat):
    assert shown(talk("u a", "a b</s>c"), chat(CHAT_TEMPLATE)) == "<s>u?aa?[b</s>]c</s>"


def test_header_of_an_opening_assistant_message_does_not_count(chat):
    record = talk("a hello", "u hi", "a yes")
    rest = "<|im_start|>user.hi<|im_end|> <|im_start|>assistant.[yes<|im_end|>] "
    opened = "<|im_start|>assistant.[hello<|im_end|>] "
    assert shown(record, chat(CHATML)) == opened + rest
    assert shown(talk("a hello"), chat(CHATML)) == opened
    # After the template's own text with the assistant's letter; of an empty message the end counts.
    template = CHAT_TEMPLATE.replace("{{ '<s>' }}", "{{ '<s>a?say. ' }}")
    assert shown(talk("a hello", "u hi", "a yes"), chat(template)) == "<s>a?say. a?[hello</s>]u?hia?[yes</s>]"
    assert shown(talk("a ", "u hi", "a yes"), chat(template)) == "<s>a?say. a?[</s>]u?hia?[yes</s>]"


def test_template_that_requires_a_user_message_counts_every_assistant_message(chat):
    tokenizer = chat(NEEDS_USER + CHATML)
    expected = "<|im_start|>user.hi<|im_end|> <|im_start|>assistant.[yes<|im_end|>] "
    assert shown(talk("s be", "u hi", "a yes"), tokenizer) == "<|im_start|>system.be<|im_end|> " + expected
    opened = "<|im_start|>system.be<|im_end|> <|im_start|>assistant.[hello<|im_end|>] "
    assert shown(talk("s be", "a hello", "u hi", "a yes"), tokenizer) == opened + expected


def test_template_with_a_different_last_answer_is_masked_by_end_tokens(chat):
    """Like templates that drop earlier reasoning: only the last answer's header differs."""
    thinks = "{% if loop.last and m['role'] == 'assistant' %}{{ '<think>' }}{% endif %}"
    template = CHAT_TEMPLATE.replace("{{ m['role'][0] + '?'", "{{ m['role'][0] + '?' }}" + thinks + "{{ ''")
    record = talk("u hi", "a yes", "u so", "a ok")
    assert shown(record, chat(template)) == "<s>u?hia?[yes</s>]u?soa?[<think>ok</s>]"
    with pytest.raises(UserError, match=r"^f:1: the chat template does not show where a message ends; .*generation"):
        shown(record, chat(template.replace("{{ '</s>' }}", ".")))


def test_end_token_added_after_the_conversation_does_not_count_twice(chat):
    template = CHATML.replace("{% endif %}", "{% else %}{{ eos_token }}{% endif %}")
    assert shown(talk("u hi", "a yes", "u so", "a ok"), chat(template)) == (
        "<|im_start|>user.hi<|im_end|> <|im_start|>assistant.[yes<|im_end|>] "
        "<|im_start|>user.so<|im_end|> <|im_start|>assistant.[ok<|im_end|>] </s>"
    )


def test_generation_tags_of_the_template_determine_the_mask(chat):
    marked = "{%- generation -%}{{ m['content'] + '</s>' }}{%- endgeneration -%}"
    template = (
        "{% for m in messages %}{{ m['role'][0] + (messages | length | string | replace('4', 'z')) }}"
        "{% if m['role'] == 'assistant' %}" + marked + "{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
    )
    assert shown(talk("u hi", "a yes", "u so", "a ok"), chat(template)) == "uzhiaz[yes</s>]uzsoaz[ok</s>]"


RAISING = {
    "{{ raise_exception('roles\nalternate') }}": "rejects these messages: roles alternate",
    "{{ none_such.field }}": "rejects these messages: 'none_such' is undefined",
    "{% for m in messages %}": "rejects these messages: Unexpected end of template",
    "{{ messages.append(1) }}": "rejects these messages: .*append",
    "{{ 1 + messages[0].content }}": "rejects these messages: TypeError",
    "{{ 7 % 0 }}": "rejects these messages: ZeroDivisionError",
    "{{ 'x'.index('y') }}": "rejects these messages: ValueError",
    "{{ '%d' | format('x') }}": "rejects these messages: TypeError",
    "{% for i in range(999999) %}x{% endfor %}": "rejects these messages: OverflowError",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}": "rejects these messages: RecursionError",
    "{{ '\\ud83d' }}": "the conversation holds '.ud83d', half of a surrogate pair",
}


@pytest.mark.parametrize("template", RAISING)
def test_template_error_is_one_line_that_names_the_record(template, chat):
    tokenizer = chat(template)
    for call, record in ((encode_example, talk("u a", "a b")), (encode_prompt, talk("u a"))):
        with pytest.raises(UserError, match=f"^data.jsonl:7: .*{RAISING[template]}") as caught:
            call(record, tokenizer, "data.jsonl:7")
        assert "\n" not in str(caught.value)


def test_named_templates(chat):
    named = [{"name": "tool_use", "template": "t{{ 'q' * (tools | length) }}" + CHAT_TEMPLATE}]
    with pytest.raises(UserError, match=r"^f:1: .*ValueError: .*no default"):
        shown(talk("u a", "a b"), chat(named))
    tokenizer = chat([*named, {"name": "default", "template": CHAT_TEMPLATE}])
    assert shown(talk("u a", "a b"), tokenizer) == "<s>u?aa?[b</s>]"
    assert shown(talk("u a", "a b", tools=TOOLS), tokenizer) == "tq<s>u?aa?[b</s>]"


def test_tools_are_passed_to_the_template_or_an_error(chat):
    tokenizer = chat("{% for t in tools or [] %}{{ t['function']['name'] }}{% endfor %}" + CHAT_TEMPLATE)
    assert shown(talk("u a", "a b", tools=TOOLS * 2), tokenizer) == "ff<s>u?aa?[b</s>]"
    assert shown(talk("u a", "a b", tools=[]), tokenizer) == "<s>u?aa?[b</s>]"
    prompt = encode_prompt(talk("u a", tools=TOOLS), tokenizer, "f:1")
    assert "".join(tokenizer.words[i] for i in prompt) == "f<s>u?aa?"
    with pytest.raises(UserError, match=r"^f:1: 'tools' must be a list of objects, got 'f'"):
        shown(talk("u a", "a b", tools="f"), tokenizer)
    ignoring = chat(CHAT_TEMPLATE)
    for call, record in ((encode_example, talk("u a", "a b", tools=TOOLS)), (encode_prompt, talk("u a", tools=TOOLS))):
        with pytest.raises(UserError, match=r"^f:1: the chat template ignores 'tools'"):
            call(record, ignoring, "f:1")


def test_message_fields_are_passed_to_the_template_or_an_error(chat):
    calls = "{% for c in m['tool_calls'] or [] %}{{ c['name'] }}{% endfor %}"
    tokenizer = chat(CHAT_TEMPLATE.replace("m['content'] }}", "(m['content'] or '') }}" + calls))
    message = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}, {"name": "g"}]}
    record = {"messages": [{"role": "user", "content": "a"}, message]}
    assert shown(record, tokenizer) == "<s>u?aa?[fg</s>]"
    refused = [{"tool_calls": [{"name": "f"}]}, {"reasoning_content": "so"}, {"thinking": "so"}]
    for fields in refused:
        record = talk("u a", "a b")
        record["messages"][1] |= fields
        (key,) = fields
        with pytest.raises(UserError, match=f"^f:1: the chat template ignores '{key}'"):
            shown(record, chat(CHAT_TEMPLATE))
        record["messages"][1][key] = None
        assert shown(record, chat(CHAT_TEMPLATE)) == "<s>u?aa?[b</s>]"
    reasons = chat(CHAT_TEMPLATE.replace("m['content']", "(m['reasoning_content'] or '') + m['content']"))
    record["messages"][1]["reasoning_content"] = "so."
    assert shown(record, reasons) == "<s>u?aa?[so.b</s>]"


def test_text_parts_are_concatenated(chat):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    record = {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "c"}]}
    assert shown(record, chat(CHAT_TEMPLATE)) == "<s>u?aba?[c</s>]"


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user"},
        {"content": "a"},
        {"role": 3, "content": "a"},
        {"role": "user", "content": None},
        {"role": "user", "content": [{"type": "image", "url": "x"}]},
        {"role": "user", "content": [{"type": "text"}]},
        "a",
    ],
)
def test_invalid_message_is_an_error(message, chat):
    with pytest.raises(UserError, match=r"^f:1: a message needs 'role' and 'content' strings"):
        encode_prompt({"messages": [message]}, chat(CHAT_TEMPLATE), "f:1")


def test_prompt_that_ends_with_an_assistant_message_is_an_error(chat):
    with pytest.raises(UserError, match=r"^f:1: a prompt cannot end with an assistant message"):
        encode_prompt(talk("u a", "a b"), chat(CHAT_TEMPLATE), "f:1")
