"""An OpenAI-compatible server for tests: a tiny deterministic language model behind it, and faults on request.

The model's tokens are bytes: the 256 single ones and a few longer ones, some of which lie over boundaries of spans.
"""

import json
import ssl
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

LONG = (" the", " cat", " sat", " play", "ing", "er", ". ", " on", " mat", "e,", " a", " and", " 12")
SPECIAL = 1  # the end of text, the last id
SIZE = 256 + len(LONG) + SPECIAL
EOS = SIZE - 1
KNOWN = {"model", "prompt", "messages", "max_tokens", "temperature", "top_p", "seed", "n", "stream", "logprobs", "echo"}
KNOWN |= {"presence_penalty", "frequency_penalty", "top_logprobs", "tools"}


class FakeModel:
    """Next-token distributions that depend on the last three tokens."""

    tokens = (*(bytes([b]) for b in range(256)), *(text.encode() for text in LONG), b"")

    def __init__(self, seed=0, end=-3.0):
        self.seed = seed
        bias = np.full(SIZE, -8.0)
        bias[[ord(c) for c in "abcdefghijklmnopqrstuvwxyz"]] = 0.0
        bias[[ord(c) for c in " .,1'"]] = 0.5
        bias[256:EOS] = 3.5
        bias[EOS] = end
        self._bias = bias
        self.log_probs = lru_cache(1 << 14)(self._log_probs)

    def encode(self, text):
        """Longest match first."""
        data, ids = text.encode(), []
        while data:
            long = max((i for i in range(256, EOS) if data.startswith(self.tokens[i])), key=self.length, default=None)
            ids.append(data[0] if long is None else long)
            data = data[len(self.tokens[ids[-1]]) :]
        return tuple(ids)

    def length(self, token):
        return len(self.tokens[token])

    def _log_probs(self, last):
        """[V] of what follows up to three tokens."""
        logits = self._bias + 1.5 * np.random.default_rng([self.seed, *last]).standard_normal(SIZE)
        return logits - np.log(np.exp(logits).sum())

    def after(self, ids):
        return self.log_probs(tuple(ids[-3:]))

    def write(self, ids, most, temperature=0.0, seed=0, first=None):
        """Return the ids that follow, and whether the end came; `first` limits the first one, [V] bool."""
        ids, start = list(ids), len(ids)
        rng = np.random.default_rng(seed)
        for _ in range(most):
            scores = self.after(ids)
            if first is not None:
                scores, first = np.where(first, scores, -np.inf), None
            if temperature:
                scores = scores / temperature + rng.gumbel(size=SIZE)
            token = int(scores.argmax())
            if token == EOS:
                return ids[start:], True
            ids.append(token)
        return ids[start:], False

    def text(self, ids):
        return b"".join(self.tokens[i] for i in ids).decode("utf-8", "replace")

    def word(self, token):
        """How servers spell a token."""
        return "</s>" if token == EOS else self.tokens[token].decode("utf-8", "replace")


@dataclass
class Features:
    """What the server can do."""

    completions: bool = True
    lists: bool = True
    ids: bool = True
    top: int = 20  # 0: no log-probabilities
    echo: bool = True
    shifted: bool = False  # an echo gives each token's log-probability at the position behind it
    prompt_logprobs: bool = False
    chat: bool = True
    continues: str = "continue_final_message"  # or "prefill", or ""
    strict: bool = False  # unknown fields are refused
    tokenize: bool = True
    names: tuple = ("tiny",)
    key: str | None = None
    context: int = 100000  # characters
    content_form: bool = False  # log-probabilities of completions as llama.cpp gives them


@dataclass
class Server:
    """The state of a running server."""

    model: FakeModel
    features: Features
    url: str = ""
    faults: list = field(default_factory=list)  # each spoils one request for a continuation
    requests: list = field(default_factory=list)  # (path, headers, body) of each request
    lock: threading.Lock = field(default_factory=threading.Lock)
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def address(self):
        return f"{self.url}/v1#tiny"

    def asked(self):
        """Bodies of the requests for continuations."""
        return [body for path, _, body in self.requests if path.endswith("completions")]


class Refusal(Exception):
    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


def answer(server, path, body):
    """The value that is answered to a body."""
    known, model = server.features, server.model
    if path == "/tokenize" and known.tokenize:
        if "prompt" not in body:
            raise Refusal(400, "needs a prompt")
        return {"tokens": list(model.encode(body["prompt"]))}
    chat = path == "/v1/chat/completions" and known.chat
    if not chat and not (path == "/v1/completions" and known.completions):
        raise Refusal(404, "Not Found")
    if body["model"] not in known.names:
        raise Refusal(404, f"model {body['model']} does not exist")
    if known.strict and (unknown := body.keys() - KNOWN):
        raise Refusal(400, f"unknown field {sorted(unknown)[0]}")
    if chat:
        text = render(known, body)
        logprobs = body.get("top_logprobs") if body.get("logprobs") else None
        choice, scores = continuation(server, body, text, logprobs, chat=True)
        found = {"choices": [choice]}
        if known.prompt_logprobs and "prompt_logprobs" in body:
            found["prompt_logprobs"] = scores
        return found
    prompts = body["prompt"]
    if isinstance(prompts, str):
        prompts = [prompts]
    elif prompts and isinstance(prompts[0], int):
        if not known.ids:
            raise Refusal(400, "prompt must be a text")
        prompts = [model.text(prompts)]
    elif not known.lists:
        raise Refusal(400, "prompt must be a text")
    choices = []
    for index, prompt in enumerate(prompts):
        choice, scores = continuation(server, body, prompt, body.get("logprobs"), chat=False)
        if known.prompt_logprobs and "prompt_logprobs" in body:
            choice["prompt_logprobs"] = scores
        choices.append({**choice, "index": index})
    return {"choices": choices[::-1]}  # their indices say which is which


def render(known, body):
    """The chat template."""
    messages = body["messages"]
    unfinished = messages[-1]["role"] == "assistant" and (
        known.continues == "prefill"
        or (known.continues == "continue_final_message" and body.get("continue_final_message") is True)
    )
    text = "".join(f"[{m['role']}]{m['content']}\n" for m in messages[: -1 if unfinished else None])
    return text + "[assistant]" + (messages[-1]["content"] if unfinished else "")


def continuation(server, body, text, logprobs, chat):
    """A choice, and vLLM's log-probabilities of the prompt."""
    known, model = server.features, server.model
    if len(text) > known.context:
        raise Refusal(400, "the prompt is longer than the context")
    if logprobs is not None and logprobs > known.top:
        raise Refusal(400, f"logprobs must be at most {known.top}")
    prompt = model.encode(text)
    ids, ended = model.write(prompt, body["max_tokens"], body.get("temperature", 1.0), body.get("seed", 0))
    if text.endswith("7, 8, 9,"):  # what every model knows
        ids = model.encode(" 10, 11, 12")[: body["max_tokens"]]
    shown = [*ids, EOS] if ended else ids
    whole, start = (*prompt, *shown), len(prompt)
    first = 0 if body.get("echo") and known.echo else start
    choice = {"finish_reason": "stop" if ended else "length", "logprobs": None, "index": 0}
    written = (text if first == 0 else "") + model.text(ids)
    choice |= {"message": {"role": "assistant", "content": written}} if chat else {"text": written}
    if logprobs and known.top:
        shift = int(first == 0 and known.shifted)
        entries = [entry(model, whole, i, logprobs, shift) for i in range(first, len(whole) - shift)]
        if chat or known.content_form:
            choice["logprobs"] = {"content": [as_object(*e) for e in entries]}
        else:
            choice["logprobs"] = {
                "tokens": [word for word, _, _ in entries],
                "token_logprobs": [own for _, own, _ in entries],
                "top_logprobs": [None if own is None else dict(likely) for _, own, likely in entries],
            }
    scores = [None]
    for i in range(1, len(prompt)):
        word, own, likely = entry(model, prompt, i, body.get("prompt_logprobs") or 1)
        items = {str(prompt[i]): {"logprob": own, "rank": 1, "decoded_token": word}}
        for rank, (other, log_prob) in enumerate(likely):
            items.setdefault(f"x{rank}", {"logprob": log_prob, "rank": rank, "decoded_token": other})
        scores.append(items)
    return choice, scores


def entry(model, ids, i, top, shift=0):
    """Token i: its spelling, log-probability, and the likeliest ones."""
    if i == 0:
        return model.word(ids[0]), None, []
    scores = model.after(ids[: i + shift])
    likely = [int(v) for v in np.argsort(-scores, kind="stable")[:top]]
    return model.word(ids[i]), float(scores[ids[i]]), [(model.word(v), float(scores[v])) for v in likely]


def as_object(word, own, likely):
    top = [{"token": text, "logprob": log_prob} for text, log_prob in likely]
    return {"token": word, "logprob": own, "top_logprobs": top}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer goes out at once
    disable_nagle_algorithm = True
    state: Server

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.state.requests.append((self.path, dict(self.headers), None))
        if self._denied():
            return
        if self.path == "/v1/models":
            self._reply(200, {"data": [{"id": name} for name in self.state.features.names]})
        else:
            self._reply(404, {"detail": "Not Found"})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.state.lock:
            self.state.requests.append((self.path, dict(self.headers), body))
            fault = self.state.faults.pop(0) if self.state.faults and "completions" in self.path else None
        if self._denied():
            return
        try:
            if fault is not None:
                name, *parts = fault.split()
                getattr(self, f"_fault_{name}")(body, *parts)
            else:
                self._reply(200, answer(self.state, self.path, body))
        except Refusal as error:
            self._reply(error.status, {"error": {"message": str(error)}})
        except (BrokenPipeError, ConnectionResetError):
            pass

    def _denied(self):
        key = self.state.features.key
        if key is None or self.headers.get("Authorization") == f"Bearer {key}":
            return False
        self._reply(401, {"error": {"message": f"wrong key {self.headers.get('Authorization')}"}})
        return True

    def _reply(self, status, value, **headers):
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", "Content-Length": len(data), **headers}.items():
            self.send_header(name.replace("_", "-"), str(text))
        self.end_headers()
        self.wfile.write(data)

    # Faults.

    def _fault_status(self, body, status, after=None):
        self._reply(int(status), {"error": {"message": "later"}}, **({"Retry_After": after} if after else {}))

    def _fault_silence(self, body):
        self.state.stop.wait(5)
        self.close_connection = True

    def _fault_half(self, body):
        data = json.dumps(answer(self.state, self.path, body)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2])
        self.wfile.flush()
        self.close_connection = True
        self.connection.close()

    def _fault_json(self, body):
        self._reply(200, b'{"choices": [')

    def _fault_nan(self, body):
        self._reply(200, b'{"choices": [{"text": NaN}]}')

    def _fault_choices(self, body):
        found = answer(self.state, self.path, body)
        self._reply(200, {"choices": found["choices"][1:]})

    def _fault_lengths(self, body):
        found = answer(self.state, self.path, body)
        for choice in found["choices"]:
            choice["logprobs"]["tokens"] = choice["logprobs"]["tokens"][:-1]
        self._reply(200, found)

    def _fault_list(self, body):
        if isinstance(body["prompt"], list):
            self.state.faults.append("list")
            raise Refusal(400, "lists do not work today")
        self._reply(200, answer(self.state, self.path, body))

    def _fault_drip(self, body):
        """A byte at a time, each of them soon enough."""
        data = json.dumps(answer(self.state, self.path, body)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        for byte in data:
            if self.state.stop.is_set():
                return
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            time.sleep(0.05)

    def _fault_headers(self, body):
        """Headers without an end."""
        for _ in range(100):
            if self.state.stop.is_set():
                return
            self.wfile.write(b"HTTP/1.1 200 OK\r\n"[:1] if _ == 0 else b"T")
            self.wfile.flush()
            time.sleep(0.05)

    def _fault_redirect(self, body, target, status="307"):
        self._reply(int(status), {}, Location=target)

    def _fault_text(self, body, value, reason="length"):
        """Another text, given as JSON, and why it ends."""
        choice = {"index": 0, "text": json.loads(value), "finish_reason": reason, "logprobs": None}
        self._reply(200, {"choices": [choice]})


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """Connections that a client gives up are part of the tests."""


@contextmanager
def serving(model=None, certificate=None, **features):
    """Run a server for the block; with a file of certificate and key, over TLS."""
    state = Server(model or FakeModel(), Features(**features))
    http = _Quiet(("127.0.0.1", 0), type("Bound", (Handler,), {"state": state}))
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        http.socket = context.wrap_socket(http.socket, server_side=True)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    state.url = f"{'https' if certificate else 'http'}://127.0.0.1:{http.server_port}"
    try:
        yield state
    finally:
        state.stop.set()
        http.shutdown()
        http.server_close()
        thread.join()
