"""A server of a tiny random team, which all tests of this folder share."""

import json
import threading
import time
from dataclasses import dataclass

import httpx
import pytest

from colm_jax import CoLM
from colm_jax.decoding.risk import EVIDENCE, Risk
from colm_jax.serving.server import listen, serve
from colm_jax.serving.state import Server
from colm_jax.settings.serving import ServingSettings
from tests.tiny import CHAT_TEMPLATE, write_model, write_team

SLOTS = 4
# Marks about half of the tokens of a random team.
NONE, MOST = (0.0,) * len(EVIDENCE), (30.0,) * len(EVIDENCE)
RISK = Risk(NONE, (1.0,) * len(EVIDENCE), (-30.0,) * len(EVIDENCE), MOST, (0.3, *NONE[:6], 0.4, -0.3), -1.0, 0.5)


@dataclass
class Served:
    """A server that answers, and the team behind it."""

    url: str
    name: str
    server: Server

    @property
    def service(self):
        """The team's service."""
        return self.server.service

    @property
    def team(self) -> CoLM:
        """The team."""
        return self.service.team

    def post(self, route: str, body, **options) -> httpx.Response:
        """The response to a request with this body."""
        return httpx.post(f"{self.url}{route}", json=body, timeout=60, **options)

    def complete(self, prompt, **fields) -> dict:
        """The body of a greedy completion."""
        response = self.post("/v1/completions", {"prompt": prompt, "temperature": 0, "max_tokens": 20, **fields})
        assert response.status_code == 200, response.text
        return response.json()

    def idle(self) -> bool:
        """Whether nothing runs and nothing waits, soon."""
        until = time.monotonic() + 20
        while time.monotonic() < until:
            if self.service.idle and not self.service.running:
                return True
            time.sleep(0.01)
        return False

    def metric(self, name: str, **labels: str) -> float:
        """The value of a metric; 0 where it has none yet."""
        shown = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
        wanted = f"{name}{{{shown}}}" if labels else name
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.rsplit(" ", 1)[0] == wanted), 0.0)


def start(load, settings: ServingSettings, name: str = "tiny", **options) -> Served:
    """Start a server in a thread of this process, and wait until it answers."""
    where, server = listen("127.0.0.1", 0), Server(name, settings, **options)
    threading.Thread(target=serve, args=(server, where, load), daemon=True).start()
    served = Served(f"http://127.0.0.1:{where.getsockname()[1]}", name, server)
    until = time.monotonic() + 300
    while httpx.get(f"{served.url}/health").status_code != 200:
        assert time.monotonic() < until
        time.sleep(0.1)
    return served


@pytest.fixture(scope="session")
def team_directory(tmp_path_factory):
    """A tiny team with a chat template; its gate defers about half of the tokens."""
    folder = tmp_path_factory.mktemp("served")
    base = write_model(folder / "base", chat_template=CHAT_TEMPLATE)
    team = write_team(folder / "team", base, write_model(folder / "expert", seed=1))
    facts = json.loads((team / "colm.json").read_text())
    (team / "colm.json").write_text(json.dumps(facts | {"risk": RISK.as_json()}))
    return team


@pytest.fixture(scope="session")
def server(team_directory) -> Served:
    """A server of this team."""
    settings = ServingSettings(slots=SLOTS, max_waiting=300, ping=0.5, max_choices=64, max_body=100_000)
    return start(lambda: CoLM.from_pretrained(team_directory), settings)
