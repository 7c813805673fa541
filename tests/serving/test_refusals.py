"""What the server refuses, in OpenAI's shape: wrong fields, long bodies, a missing key, other web pages."""

from base64 import b64encode

import httpx
import pytest

from colm_jax import CoLM
from colm_jax.settings.serving import ServingSettings
from tests.serving.client import error
from tests.serving.conftest import start


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": "a" * 200}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [99]}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 65}, "n"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop_token_ids": [77]}, "stop_token_ids"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"threshold": 2}, "threshold"),
        ({"strategy": "compose"}, "strategy"),
        ({"strategy": 3}, "strategy"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"guided_choice": ["a"]}, "guided_choice"),
        ({"expert_prompt": "a", "expert_messages": []}, "expert_prompt"),
        ({"expert_prompt": "a" * 300}, "expert_prompt"),
        ({"expert_messages": [{"role": "king"}]}, "expert_messages"),
        ({"expert_prompt": "b", "logprobs": 1}, "logprobs"),
        ({"max_tokens": 3, "prompt": ["a"] * 50, "n": 7}, "n"),
        ({"speculate": "often"}, "speculate"),
    ],
)
def test_a_bad_field_is_named(server, fields, param):
    before = server.metric("colm_requests_total", outcome="400", route="/v1/completions")
    response = server.post("/v1/completions", {"prompt": "a", **fields})
    assert response.status_code == 400, response.text
    found = error(response)
    assert found["param"] == param and found["type"] == "invalid_request_error" and found["message"]
    assert server.metric("colm_requests_total", outcome="400", route="/v1/completions") == before + 1


def test_fields_that_change_nothing_are_accepted(server):
    neutral = {
        **{"user": "me", "metadata": {"a": "b"}, "store": True, "logit_bias": {}, "suffix": None, "tools": None},
        **{"presence_penalty": 0, "frequency_penalty": 0.0, "response_format": {"type": "text"}, "best_of": 1},
    }
    assert server.complete("a", **neutral)["choices"] == server.complete("a")["choices"]


def test_other_errors_have_openais_shape_too(server):
    for response, status in (
        (server.post("/v1/completions", {"prompt": "a", "model": "gpt-4"}), 404),
        (httpx.post(f"{server.url}/v1/completions", content=b"{"), 400),
        (httpx.post(f"{server.url}/v1/completions", content=b'{"prompt": "' + b"a" * 100_001 + b'"}'), 413),
        (httpx.get(f"{server.url}/v1/completions"), 405),
        (httpx.get(f"{server.url}/nowhere"), 404),
        (
            server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
            400,
        ),
        (server.post("/v1/chat/completions", {"messages": [{"role": "king", "content": 3}]}), 400),
        (server.post("/tokenize", {}), 400),
        (server.post("/detokenize", {"tokens": [4000]}), 400),
        (server.post("/v1/candidates", {"tokens": [3] * 129}), 400),
    ):
        assert response.status_code == status, response.text
        assert error(response)["message"]


def test_the_key_is_asked_for_on_every_route_but_health(team_directory):
    settings = ServingSettings(slots=1, strategies=("base",))
    locked = start(lambda: CoLM.from_pretrained(team_directory), settings, key="se cret")
    routes = [("GET", r) for r in ("/", "/metrics", "/v1/models", "/v1/models/tiny", "/tokenizer_info", "/nowhere")]
    routes += [("POST", f"/{r}") for r in ("v1/completions", "v1/chat/completions", "tokenize", "detokenize")]
    routes += [("POST", "/v1/candidates")]
    for method, route in routes:
        for header in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Bearer"},
            {"Authorization": "se cret"},
        ):
            response = httpx.request(method, f"{locked.url}{route}", headers=header)
            assert response.status_code == 401, route
            assert error(response)["code"] == "invalid_api_key"
    assert httpx.get(f"{locked.url}/health").status_code == 200
    basic = {"Authorization": "Basic " + b64encode(b"anyone:se cret").decode()}
    for header in ({"Authorization": "Bearer se cret"}, basic):
        assert httpx.get(f"{locked.url}/v1/models", headers=header).status_code == 200
    assert httpx.get(f"{locked.url}/").headers["www-authenticate"].startswith("Basic")


def test_front_ends_may_send_fields_of_their_own_where_the_server_lets_them(team_directory):
    settings = ServingSettings(slots=1, strategies=("base",), ignore_unknown_fields=True)
    lenient = start(lambda: CoLM.from_pretrained(team_directory), settings, origins=("https://chat.example",))
    assert lenient.post("/v1/completions", {"prompt": "a", "chat_id": 3, "mirostat": 1}).status_code == 200
    refused = lenient.post("/v1/completions", {"prompt": "a", "logit_bias": {"3": 5}})
    assert refused.status_code == 400  # this one would change the answer
    asks = {"Origin": "https://chat.example", "Access-Control-Request-Method": "POST"}
    allowed = httpx.options(f"{lenient.url}/v1/completions", headers=asks)
    assert allowed.headers["access-control-allow-origin"] == "https://chat.example"


def test_no_other_page_may_call_the_api(server):
    """Nor send what browsers send without asking the server first: a form, or JSON as plain text."""
    for origin in ("https://chat.example", "null", "http://127.0.0.1"):
        headers = {"Origin": origin, "Content-Type": "text/plain"}
        response = httpx.post(f"{server.url}/v1/completions", content=b'{"prompt": "a"}', headers=headers)
        assert response.status_code == 403 and "--cors_origin" in error(response)["message"]
        assert "access-control-allow-origin" not in response.headers
    own = server.post("/v1/completions", {"prompt": "a", "max_tokens": 1}, headers={"Origin": server.url})
    assert own.status_code == 200


def test_other_names_of_this_machine_are_refused(server, monkeypatch):
    monkeypatch.setattr(server.server, "hosts", ("127.0.0.1", "localhost"))
    for host, status in (
        ("evil.example", 403),
        ("evil.example:8000", 403),
        ("[", 403),
        ("localhost:1", 200),
        ("127.0.0.1", 200),
    ):
        assert httpx.get(f"{server.url}/v1/models", headers={"Host": host}).status_code == status
