"""What an endpoint can do is found by asking it once, in neutral terms."""

import pytest

from colm_jax.errors import UserError
from colm_jax.experts.remote.bodies import EXTRAS
from tests.experts.remote.fake import serving

ALL = {
    "listed": True,
    "completions": True,
    "lists": True,
    "ids": True,
    "top": 20,
    "scores": "echo",
    "chat": True,
    "continues": "continue_final_message",
    "verified": True,
    "chat_top": 20,
    "chat_scores": False,
    "tokenize": True,
    "extras": EXTRAS,
}


@pytest.mark.parametrize(
    "features, changed",
    [
        ({}, {}),
        ({"names": ("other", "tiny")}, {}),
        ({"lists": False}, {"lists": False}),
        ({"ids": False}, {"ids": False}),
        ({"top": 5}, {"top": 5, "chat_top": 5}),
        ({"top": 0}, {"top": 0, "chat_top": 0, "scores": ""}),
        ({"echo": False}, {"scores": ""}),
        ({"shifted": True}, {"scores": ""}),  # an echo whose numbers are wrong
        ({"echo": False, "prompt_logprobs": True}, {"scores": "prompt_logprobs", "chat_scores": True}),
        ({"content_form": True, "top": 5}, {"top": 5, "chat_top": 5}),
        ({"chat": False}, {"chat": False, "continues": "", "verified": False, "chat_top": 0}),
        ({"continues": "prefill"}, {"verified": True}),
        ({"continues": "prefill", "strict": True}, {"continues": "prefill", "extras": ()}),
        ({"continues": ""}, {"verified": False}),
        ({"strict": True, "continues": ""}, {"continues": "prefill", "verified": False, "extras": ()}),
        ({"tokenize": False}, {"tokenize": False}),
        (
            {"completions": False},
            {"completions": False, "lists": False, "ids": False, "top": 0, "scores": ""},
        ),
    ],
)
def test_abilities_are_those_of_the_endpoint(features, changed, connect):
    with serving(**features) as server:
        assert vars(connect(server).abilities) == {**ALL, **changed}


def test_they_are_printed_in_one_line(connect, capsys):
    with serving() as server:
        expert = connect(server)
    shown = capsys.readouterr().err
    assert shown == f"{server.address}: {expert.abilities}\n"
    assert str(expert.abilities) == (
        "completions of texts, lists, ids; 20 top log-probabilities; scores prompts (echo); chat: continues a turn by "
        "continue_final_message, 20 top log-probabilities; /tokenize; takes top_k, min_p, repetition_penalty, "
        "repeat_penalty"
    )
    with serving(completions=False, continues="") as server:
        shown = str(connect(server).abilities)
    assert "its answers may begin anew" in shown and "a plain prompt is sent as a user's message" in shown


def test_known_abilities_are_not_asked_for(connect):
    with serving() as server:
        abilities = connect(server).abilities
        before = len(server.requests)
        assert connect(server, abilities=abilities).abilities == abilities
        assert len(server.requests) == before


def test_an_unknown_model_is_refused_with_those_there_are(connect):
    with serving(names=("one", "two")) as server, pytest.raises(UserError) as raised:
        connect(server)
    assert "model tiny does not exist" in str(raised.value) and "it serves one, two" in str(raised.value)


def test_a_server_without_the_api_is_refused(connect):
    with serving(completions=False, chat=False) as server, pytest.raises(UserError, match="status 404: Not Found"):
        connect(server)


def test_no_request_leaves_sampling_to_the_server(connect):
    with serving() as server:
        connect(server)
        bodies = server.asked()
    assert len(bodies) > 8
    for body in bodies:
        assert (body["temperature"], body["top_p"], body["presence_penalty"], body["max_tokens"] < 5) == (0, 1, 0, True)
