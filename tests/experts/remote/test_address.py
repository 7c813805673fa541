"""Addresses of endpoints, and where their keys come from."""

import pytest

from colm_jax.errors import UserError
from colm_jax.experts.remote.address import Address
from colm_jax.settings.models import is_endpoint


@pytest.mark.parametrize(
    "text, base, name",
    [
        ("http://127.0.0.1:8000/v1#tiny", "http://127.0.0.1:8000/v1", "tiny"),
        ("https://api.example.org/v1/#org/model-7b:free", "https://api.example.org/v1", "org/model-7b:free"),
        ("HTTPS://Example.org:443/api/v1#a%20b", "https://example.org:443/api/v1", "a b"),
        ("http://[::1]:8000/v1#tiny", "http://[::1]:8000/v1", "tiny"),
    ],
)
def test_addresses_are_read(text, base, name):
    assert is_endpoint(text)
    found = Address.parse(text)
    assert (found.base, found.name, str(found)) == (base, name, f"{base}#{name}")
    assert Address.parse(str(found)).base == base


@pytest.mark.parametrize(
    "text, error",
    [
        ("http://host/v1", "names no model; add it at the end"),
        ("ftp://host/v1#a", "no address of an endpoint"),
        ("http:///v1#a", "no address of an endpoint"),
        ("http://host:99999/v1#a", "an endpoint is http"),
        ("http://user:secret@host/v1#a", "holds a user name or password"),
        ("http://host/v1?key=x#a", "must not have a query"),
    ],
)
def test_wrong_addresses_are_one_line(text, error):
    with pytest.raises(UserError, match=error) as raised:
        Address.parse(text)
    assert "\n" not in str(raised.value) and "secret" not in str(raised.value)


def test_models_are_no_addresses():
    assert not any(map(is_endpoint, ("model", "org/model", "/models/a.gguf", "org/http://x")))


def test_a_hosts_own_key_comes_first(monkeypatch):
    address = Address.parse("https://api.some-host.org:8443/v1#a")
    monkeypatch.delenv("COLM_API_KEY", raising=False)
    assert address.key() is None
    monkeypatch.setenv("COLM_API_KEY", "general")
    assert address.key() == "general"
    monkeypatch.setenv("COLM_API_KEY_API_SOME_HOST_ORG", "own")
    assert address.key() == "own"


@pytest.mark.parametrize(
    "text, encrypted", [("https://a.org/v1#m", True), ("http://localhost/v1#m", True), ("http://a.org/v1#m", False)]
)
def test_what_can_be_read_on_the_way(text, encrypted):
    assert Address.parse(text).encrypted == encrypted
