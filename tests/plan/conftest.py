import jaxtyping
import pytest


@pytest.fixture(scope="module", autouse=True)
def unchecked_types():
    """Checks no types: a plan compiles with shapes in the place of arrays."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
