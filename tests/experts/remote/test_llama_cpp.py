"""A server that nobody here wrote, llama-cpp-python's, with a published model: the spans of the same weights here.

pip install "llama-cpp-python[server]"       # compiles for many minutes; COLM_LLAMA_PYTHON names its interpreter
COLM_REAL_MODELS=DIR pytest -m server
"""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import pytest

from colm_jax.checkpoints.directory import resolve
from colm_jax.checkpoints.huggingface import load_model
from colm_jax.data.span_units import SpanUnits
from colm_jax.data.units import TextView
from colm_jax.errors import UserError
from colm_jax.experts.protocol import Call
from colm_jax.experts.remote import RemoteExpert
from colm_jax.parallel import make_mesh
from colm_jax.settings.remote import RemoteSettings
from colm_jax.text.tokenizer import load_tokenizer
from tests.real_models import FOLDER
from tests.tiny import run

pytestmark = [pytest.mark.server, pytest.mark.timeout(900)]
MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
PYTHON = os.environ.get("COLM_LLAMA_PYTHON", sys.executable)
PROMPTS = ("The sun rises in the east. A dog is an animal that likes", "One, two, three,", "Water boils at a")
LENGTH = 64  # tokens to which texts are padded here
CLOSE = 0.7  # logits by which the two may disagree: llama.cpp rounds activations to 8 bits


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = os.environ.get(FOLDER)
    if not folder or not (Path(folder) / MODEL).exists():
        pytest.skip(f"no {MODEL} in {FOLDER}={folder or ''}; python tests/real_models.py")
    if subprocess.run([PYTHON, "-c", "import llama_cpp.server.app"], capture_output=True).returncode:
        pytest.skip(f"no llama-cpp-python[server] for {PYTHON}; COLM_LLAMA_PYTHON names another interpreter")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLM_CACHE", str(tmp_path_factory.getbasetemp() / "real"))
        yield Path(folder) / MODEL


@pytest.fixture(scope="module")
def address(path):
    """The address of a running server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = {"model": path, "model_alias": "smol", "host": "127.0.0.1", "port": port, "n_ctx": 256}
    options |= {"logits_all": "true", "n_threads": 1, "n_threads_batch": 1, "verbose": "false"}
    command = [PYTHON, "-m", "llama_cpp.server", *(str(part) for k, v in options.items() for part in (f"--{k}", v))]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            for _ in range(600):
                assert server.poll() is None, "the server ended"
                try:
                    httpx.get(f"http://127.0.0.1:{port}/v1/models")
                    break
                except httpx.TransportError:
                    time.sleep(0.1)
            yield f"http://127.0.0.1:{port}/v1#smol"
        finally:
            server.kill()


@pytest.fixture(scope="module")
def tokenizer(path):
    return load_tokenizer(resolve(path))


@pytest.fixture(scope="module")
def expert(address, tokenizer):
    units = SpanUnits.of([tokenizer, None], [2048, None], [tokenizer.size, 0])
    settings = RemoteSettings(timeout=120, deadline=240, concurrency=1, tokens=6)
    expert = RemoteExpert(address, units, settings)
    yield expert
    expert.close()


def test_what_the_server_can_do_is_found(expert):
    known = expert.abilities
    assert (known.listed, known.completions, known.chat, known.top) == (True, True, True, 20)
    assert not known.lists and not known.ids
    # It gives the log-probabilities of an echoed token at the position behind it, and begins answers anew.
    assert not known.scores and not known.verified
    with pytest.raises(UserError, match="use objective weak"):
        expert.score([TextView({"prompt": "A"}, (" dog",), False)], lambda done, total: None)


def written(expert, prompt, count):
    """Spans that the server writes one after the other."""
    answer = []
    for _ in range(count):
        expert.start([Call(0, {"prompt": prompt}, list(answer), seed=0)])
        (found,) = expert.finished(wait=True)
        assert not found.lost, found.why
        if found.unit is None:
            break
        answer.append(found.unit)
    expert.release(0)
    return answer


def test_its_spans_are_those_of_the_weights_here(expert, path, tokenizer):
    """The oracle reads the whole text again for every token, in float32."""
    decoder = load_model(resolve(path), "float32", make_mesh())[0]
    rule, texts, equal, close = expert._units.rule, tokenizer.token_bytes, 0, 0

    def logits(ids):
        padded = np.zeros((1, LENGTH), np.int32)
        padded[0, : len(ids)] = ids
        return np.asarray(run(decoder, padded)[1][0, len(ids) - 1])

    total = 0
    for prompt in PROMPTS:
        before = ""
        for unit in written(expert, prompt, 6):
            ids, text, gap = tokenizer.encode_prompt(prompt + before), "", 0.0
            start = len(ids)
            while len(text) < len(unit.text) + 1 and len(ids) < LENGTH:
                found = logits(ids)
                token = int(found.argmax())
                said = texts.within(token).decode("utf-8", "replace")
                ids, text = [*ids, token], text + said
                if not unit.text.startswith(text[: len(unit.text)]):
                    own = tokenizer.encode_plain(unit.text)[len(ids) - 1 - start]
                    gap = float(found.max() - found[own])
                    break
            ends = [i for i in range(1, len(text)) if rule.opens(text[i - 1], text[i])]
            equal += bool(ends) and text[: ends[0]] == unit.text
            close += gap <= CLOSE
            total, before = total + 1, before + unit.text
    assert total >= 12
    assert close == total and equal >= 0.8 * total


def test_its_own_spans_are_found_again(expert):
    spans = tuple(unit.text for unit in written(expert, PROMPTS[0], 4))
    (places,) = expert.greedy_spans([TextView({"prompt": PROMPTS[0]}, spans, False)], 9, 0, lambda done, total: None)
    assert places.asked.all() and places.is_argmax.all() and len(spans) == 4
    (places,) = expert.greedy_spans(
        [TextView({"prompt": PROMPTS[0]}, (" zzz", *spans[1:]), False)], 9, 0, lambda done, total: None
    )
    assert not places.is_argmax[0]
