"""Bodies of requests: what is read, what is refused, and under which name."""

import json
import tracemalloc

import pytest

from colm_jax.serving.errors import ApiError
from colm_jax.serving.schema import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody, check_model, parse

CHAT = {"messages": [{"role": "user", "content": "a"}]}


def refused(kind, body, **options) -> ApiError:
    with pytest.raises(ApiError) as raised:
        parse(kind, body if isinstance(body, bytes) else json.dumps(body).encode(), **options)
    assert raised.value.status == 400 and "\n" not in raised.value.message
    return raised.value


def test_fields_are_read_as_they_are():
    body = parse(CompletionBody, b'{"prompt": [[1, 2], [3]], "temperature": 1, "stop": "a", "n": 2, "threshold": 0.5}')
    assert body.prompt == [[1, 2], [3]] and body.temperature == 1.0 and body.stops() == ("a",)
    assert parse(CompletionBody, b'{"prompt": ["a", "b"], "stop": ["x", "y"]}').stops() == ("x", "y")
    assert parse(ChatBody, json.dumps({**CHAT, "logprobs": True, "top_logprobs": 3}).encode()).top_logprobs == 3


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[1]",
        b"{",
        b'{"prompt": "\xff"}',
        b'{"prompt": "\\ud800"}',
        b"[" * 10**5,
        b'{"prompt": "a"} {}',
        b"\xef\xbb\xbf{",
    ],
)
def test_what_is_no_object_is_refused(body):
    assert refused(CompletionBody, body).param is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", float("nan")),
        ("temperature", "1"),
        ("max_tokens", 10**30),
        ("max_tokens", 5.0),
        ("n", True),
        ("stop", [1]),
        ("seed", 2**64),
        ("presence_penalty", 0.1),
        ("frequency_penalty", -1),
        ("threshold", 1.01),
        ("logit_bias", {"1": 2}),
        ("response_format", {"type": "json_schema"}),
        ("tools", [{}]),
        ("anything", None),
    ],
)
def test_a_wrong_field_is_named(field, value):
    error = refused(CompletionBody, {"prompt": "a", field: value})
    assert error.param == field and field in error.message and error.body["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("value", [[True] * 100_000, [[True]] * 100_000, ["a"] * 100_000 + [1]])
def test_a_long_wrong_list_is_refused_by_its_first_element(value):
    """Were all errors collected, this would take gigabytes."""
    tracemalloc.start()
    assert refused(CompletionBody, {"prompt": value}).param == "prompt"
    assert refused(CompletionBody, {f"x{i}": 1 for i in range(50_000)}).code == "unknown_field"
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50e6


def test_fields_that_change_nothing_pass():
    body = {"prompt": "a", "user": "x", "store": False, "metadata": {}, "logit_bias": {}, "presence_penalty": 0}
    assert parse(CompletionBody, json.dumps(body).encode()).prompt == "a"


def test_unknown_fields_pass_where_they_may_but_not_those_that_change_an_answer():
    body = {**CHAT, "chat_id": 3}
    assert refused(ChatBody, body).param == "chat_id"
    assert parse(ChatBody, json.dumps(body).encode(), ignore_unknown=True).messages == CHAT["messages"]
    assert refused(ChatBody, {**CHAT, "logit_bias": {"1": 1}}, ignore_unknown=True).param == "logit_bias"


def test_fields_of_answers_are_none_of_tokens():
    assert refused(TokenizeBody, {"prompt": "a", "user": "x"}).param == "user"
    assert refused(DetokenizeBody, {"tokens": [-1]}).param == "tokens"
    assert refused(DetokenizeBody, {}).param == "tokens"


def test_another_model_is_not_found():
    check_model(None, "a")
    check_model("a", "a")
    with pytest.raises(ApiError, match="'b' is not served here; this is 'a'") as raised:
        check_model("b", "a")
    assert (raised.value.status, raised.value.code) == (404, "model_not_found")
