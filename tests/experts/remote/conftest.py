"""Spans of a base with a token per character, and experts at servers of tests."""

import string

import pytest

from colm_jax.data.span_units import SpanUnits
from colm_jax.experts.remote import RemoteExpert
from colm_jax.experts.remote.address import KEY_VARIABLE
from colm_jax.settings.remote import RemoteSettings
from colm_jax.text.tokenizer import load_tokenizer
from tests.tiny import SPECIAL, write_tokenizer

WORDS = (*SPECIAL, *sorted(set(string.printable) - set("\r\x0b\x0c")), "é", "中")
PATIENT = {"timeout": 20.0, "deadline": 40.0, "backoff": 0.01}  # what is not about time limits


@pytest.fixture(scope="session")
def units(tmp_path_factory):
    tokenizer = load_tokenizer(write_tokenizer(tmp_path_factory.mktemp("tokenizer"), words=WORDS))
    return SpanUnits.of([tokenizer, None], [4096, None], [len(WORDS), 0])


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)


@pytest.fixture
def connect(units):
    """Connects to a server of the tests, with patience and short back-off; closed at the end."""
    experts = []

    def make(server, abilities=None, ledger=None, **settings):
        settings = RemoteSettings(**{**PATIENT, **settings})
        experts.append(RemoteExpert(server.address, units, settings, ledger=ledger, abilities=abilities))
        return experts[-1]

    yield make
    for expert in experts:
        expert.close()
