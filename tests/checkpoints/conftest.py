"""A Hub for tests of checkpoints, and a small team to publish."""

import json

import numpy as np
import pytest

from colm_jax.checkpoints.identity import hash_model
from colm_jax.checkpoints.team import load_base, make_gate, save_team
from colm_jax.parallel import make_mesh
from tests.checkpoints.hub import TOKEN, FakeHub
from tests.tiny import write_model


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub that huggingface_hub asks in place of the real one, logged in, with an empty cache."""
    found = FakeHub()
    values = {
        "ENDPOINT": found.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": found.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HUB_CACHE": str(tmp_path / "cache"),
    }
    for name, value in values.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield found
    found.server.shutdown()
    found.server.server_close()


@pytest.fixture
def frozen(tmp_path):
    """A base, an expert, and a team of them as a run writes it whose base was not trained: (base, expert, team)."""
    return write_frozen_team(tmp_path)


def write_frozen_team(folder, trainable="gate"):
    """`frozen`, in a folder."""
    base, expert = write_model(folder / "base"), write_model(folder / "expert", seed=1)
    decoder = load_base(base, "float32", make_mesh()).decoder
    kernel = np.random.default_rng(0).normal(size=(decoder.config.width, 1)).astype(np.float32)
    facts = {
        "experts": [{"model": str(expert), "revision": None, "sha256": hash_model(expert), "kind": "resident"}],
        "threshold": 0.25,
        "provenance": {
            "base": {"model": str(base), "revision": None, "sha256": hash_model(base)},
            "data": {"data": {"file": "train.jsonl", "sha256": "0" * 64}},
            "training": {"objective": "marginal", "trainable": trainable},
        },
    }
    save_team(folder / "team", decoder, make_gate(kernel), base, "float32", facts)
    (folder / "team/manifest.json").write_text(json.dumps({"inputs": {"base": str(base)}}))
    return base, expert, folder / "team"
