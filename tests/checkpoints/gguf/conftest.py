"""An empty cache for every test."""

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The folder in which converted files are kept."""
    monkeypatch.setenv("COLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
