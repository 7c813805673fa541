"""Eight virtual CPU devices for every test, and the models and meshes that tests share."""

import gc
import os
from pathlib import Path

# Eight devices; and, since tests compile far more than they compute, machine code that is not optimised. What is given
# in the environment comes last, and wins.
os.environ["XLA_FLAGS"] = (
    f"--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 {os.environ.get('XLA_FLAGS', '')}"
).strip()
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"  # no test fetches anything
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import jax
import pytest

from colm_jax.parallel import make_mesh
from tests.jobs import start_job
from tests.tiny import write_model


def pytest_sessionstart(session):
    devices = jax.devices()
    if len(devices) != 8 or devices[0].platform != "cpu":
        pytest.exit(f"the tests need 8 virtual CPU devices, JAX has {devices}; see tests/conftest.py", returncode=1)


@pytest.fixture(scope="module", autouse=True)
def strict_promotion(request):
    """Makes implicit promotion of dtypes an error in the tests of numerical code."""
    strict = request.path.parent.name in ("models", "objectives", "training", "decoding")
    with jax.numpy_dtype_promotion("strict" if strict else "standard"):
        yield


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Lets a module's compiled programs go: each takes mappings of memory, of which a process may have only so many."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of pretrained models, data and reference vectors that lies beside the repository."""
    path = Path(os.environ.get("COLM_SHARED") or Path(__file__).parents[2] / "shared")
    if not (path / "models").is_dir():
        reason = f"no shared models and vectors at {path}; set COLM_SHARED to where they lie"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    return path


@pytest.fixture(scope="session")
def mesh() -> jax.sharding.Mesh:
    return make_mesh()


@pytest.fixture
def tiny_model(tmp_path):
    """Writes random Llama directories: `tiny_model("name", dtype="float32", seed=0, **config_fields)`."""

    def make(name: str = "tiny", **settings) -> Path:
        return write_model(tmp_path / name, **settings)

    return make


@pytest.fixture
def jobs():
    """Starts jobs, as `jobs(command, out, count)`; what is left of them at the end is killed."""
    everything = []

    def start(command, out, count):
        started = start_job(command, out, count)
        everything.extend(started)
        return started

    yield start
    for process in everything:
        if process.poll() is None:
            process.kill()
            process.communicate()
