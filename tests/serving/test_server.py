"""`colm serve` as a process: it says when it can answer, drains at SIGTERM, and refuses what cannot work."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from colm_jax.cli.main import main
from tests.tiny import write_model


def start(*flags, **environment):
    command = [sys.executable, "-m", "colm_jax.cli.main", "serve", *map(str, flags), "--port", "0"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env={**os.environ, **environment}, **pipes)


@pytest.fixture(scope="module")
def process(team_directory):
    """A server of two slots, and its address."""
    flags = (
        "--base",
        team_directory,
        "--slots",
        "2",
        "--strategies",
        "defer",
        "--api_key_env",
        "COLM_KEY",
        "--name",
        "a",
    )
    started = start(*flags, COLM_KEY="secret")
    with started:
        line = started.stdout.readline()
        found = re.fullmatch(r"serving a at (http://127\.0\.0\.1:\d+)\n", line)
        if not found:
            started.kill()
        assert found, line + started.stderr.read()
        yield started, found[1]
        started.kill()


def test_sigterm_finishes_what_was_accepted_and_refuses_the_rest(process):
    started, url = process
    log = []
    threading.Thread(target=lambda: log.extend(started.stderr), daemon=True).start()
    options = {"headers": {"Authorization": "Bearer secret"}, "timeout": 60}
    body = {"prompt": "the secret prompt ", "max_tokens": 100, "temperature": 1.0, "seed": 1, "stop_token_ids": []}
    assert httpx.post(f"{url}/v1/completions", json=body).status_code == 401

    def ask(number):
        return httpx.post(f"{url}/v1/completions", json={**body, "n": 8, "seed": number}, **options)

    with ThreadPoolExecutor(12) as pool:
        asked = [pool.submit(ask, number) for number in range(8)]
        while "colm_prompt_tokens_total 152.0" not in httpx.get(f"{url}/metrics", **options).text:  # 8 of 19 tokens
            pass
        started.send_signal(signal.SIGTERM)
        while httpx.get(f"{url}/health").status_code == 200:
            pass
        refused = ask(9)
        answers = [each.result() for each in asked]
    assert refused.status_code == 503 and "retry-after" in refused.headers
    assert [response.status_code for response in answers] == [200] * 8
    assert all(len(response.json()["choices"]) == 8 for response in answers)
    assert started.wait(timeout=30) == 0
    assert not any("Traceback" in line or "secret prompt" in line for line in log)
    assert sum('"outcome": "finished"' in line for line in log) == 8


def test_what_cannot_be_served_is_one_line(tmp_path, capsys, monkeypatch):
    base = str(write_model(tmp_path / "base"))
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = str(busy.getsockname()[1])
        monkeypatch.setenv("EMPTY", " ")
        for flags, said in (
            (["--base", base, "--port", port], f"--host 127.0.0.1 --port {port}: cannot listen there"),
            (["--base", base, "--port", "99999"], "--port 99999: cannot listen there"),
            (["--base", base, "--strategies", "defer"], "needs"),
            (["--base", base, "--slots", "0"], "slots must be"),
            (["--base", base, "--api_key_env", "EMPTY"], "EMPTY: this environment variable is not set"),
            (["--base", str(tmp_path / "none")], "none"),
        ):
            assert main(["serve", *flags]) == 2, flags
            lines = capsys.readouterr().err.strip().splitlines()
            assert len(lines) == 1 and said in lines[0], lines
