"""What a request gets is what it gets alone, and nothing is compiled for it."""

import pytest

from colm_jax import CoLM
from colm_jax.settings.serving import ServingSettings
from tests.serving.conftest import start

PROMPTS = ["ab", "the cat sat on the mat", "x", "once upon a time there was", "zzzz " * 12, "hello."]


@pytest.mark.parametrize("strategy", ["defer", "base", "expert"])
def test_greedy_answers_are_those_of_generate(server, strategy):
    body = server.complete(PROMPTS, max_tokens=30, strategy=strategy, threshold=0.5)
    expected = server.team.generate(PROMPTS, max_new_tokens=30, strategy=strategy, threshold=0.5)
    for choice, answer in zip(body["choices"], expected, strict=True):
        assert choice["text"] == answer.text
        assert (choice["colm"]["tokens"], choice["colm"]["sources"]) == (answer.tokens, answer.sources)
        assert choice["colm"]["expert_calls"] == answer.expert_calls
        assert "".join(choice["colm"]["pieces"]) == answer.text


def test_no_request_compiles_a_program(team_directory):
    """Of a server of its own, since compiled programs may be let go between the modules of tests."""
    server = start(lambda: CoLM.from_pretrained(team_directory), ServingSettings(slots=2))
    before = server.service.compilations
    for fields in (
        {"prompt": "a", "max_tokens": 1},
        {"prompt": "b c " * 25, "temperature": 0.7, "top_p": 0.9, "top_k": 3, "min_p": 0.1, "seed": 2**40, "n": 3},
        {"prompt": [[5, 6, 7], [8] * 100], "speculate": False, "threshold": 0.1, "stop": ["q", "zz"]},
        {"prompt": "a", "speculate": True, "logprobs": 3, "echo": True},
        {"prompt": "a b c d", "strategy": "expert", "stop_token_ids": [4, 5, 6]},
        {"prompt": "a b c d", "strategy": "base", "schedule": "cosine", "warmup": 4},
        {"prompt": "a b c d " * 8, "expert_prompt": "x y"},
        {"prompt": "a", "expert_prompt": "x y " * 20, "strategy": "expert"},
    ):
        server.complete(fields.pop("prompt"), **fields)
    assert server.service.compilations == before
