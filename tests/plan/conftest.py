import pytest


@pytest.fixture(autouse=True, scope="module")
def _no_checks(unchecked_types):
    """A plan compiles with shapes in place of arrays."""
