"""What tests send to a server over HTTP, and how they read the answers."""

import json

import httpx


def stream(server, route, body) -> list:
    """The events of a stream: bodies, and the text of what is no JSON."""
    found = []
    with httpx.stream("POST", f"{server.url}{route}", json={**body, "stream": True}, timeout=60) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        for line in response.iter_lines():
            if line.startswith("data: "):
                data = line.removeprefix("data: ")
                found.append(json.loads(data) if data != "[DONE]" else data)
            elif line:
                found.append(line)
    return found


def long_answer(server) -> tuple[str, str]:
    """A prompt whose greedy answer has at least 20 characters, and this answer."""
    prompts = ["a", "abc", "x y", "hello", "the", "zz", "q", "once"]
    texts = [choice["text"] for choice in server.complete(prompts, max_tokens=40)["choices"]]
    return next((prompt, text) for prompt, text in zip(prompts, texts) if len(text) >= 20)


def choices_of(events):
    return [choice for event in events if isinstance(event, dict) for choice in event["choices"]]


def error(response) -> dict:
    """The error of a response, which has OpenAI's shape."""
    (found,) = response.json().values()
    assert set(found) == {"message", "type", "param", "code"} and "\n" not in found["message"]
    return found
