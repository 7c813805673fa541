"""Eight virtual CPU devices for every test, and the models and meshes that tests share."""

import gc
import os
from functools import cache
from importlib.metadata import version
from pathlib import Path

# Eight devices; and, since tests compile far more than they compute, machine code that is compiled quickly: not
# optimised, in one piece, and without the emitters through MLIR, which take half of the time. What is given in the
# environment comes last, and wins.
_FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
# XLA ends the process at a flag that it does not know (any more), and libtpu at these: each with the first version of
# jaxlib where it is gone, or was not tried.
_CPU_FLAGS = {"--xla_cpu_parallel_codegen_split_count=1": (0, 13), "--xla_cpu_use_fusion_emitters=false": (0, 11)}
_JAXLIB = tuple(map(int, version("jaxlib").split(".")[:2]))
_QUICK = " ".join(flag for flag, gone in _CPU_FLAGS.items() if gone > _JAXLIB)
os.environ["XLA_FLAGS"] = f"{_FLAGS} {_QUICK} {os.environ.get('XLA_FLAGS', '')}".strip()
os.environ["JAX_PLATFORMS"] = "cpu"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # what a test compiles does not depend on earlier runs
os.environ["HF_HUB_OFFLINE"] = "1"  # no test fetches anything
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import jax
import jaxtyping
import pytest
import tensorboardX  # noqa: F401  it imports PyTorch, which the hook below would compile from source
from jax.experimental import topologies

# Types and shapes are checked at every call of the numerical packages. The others validate what users pass to them.
jaxtyping.install_import_hook(
    [
        f"colm_jax.{package}"
        for package in "models objectives training scoring labels decoding calibration evaluation data experts".split()
    ],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)

from colm_jax.parallel import make_mesh
from tests.exhaustive import left_out
from tests.fast import is_fast
from tests.jobs import start_job
from tests.real_models import FOLDER, SOURCES
from tests.tiny import write_model

TESTS = Path(__file__).parent
SHARED = Path(os.environ.get("COLM_SHARED") or TESTS.parents[1] / "shared")
NO_SHARED = f"no shared models at {SHARED}"
MAPPINGS, MEMORY = 20_000, 3 * 2**30  # bytes; a module of tests may add as much again
COLLECTED = pytest.StashKey[dict[str, list[str]]]()  # tests (file below tests/ and function), and their parameters
REQUIRE_ALL = "COLM_REQUIRE_ALL"  # set by .ci/run, where whatever a test can skip for is installed


# Tracing makes many objects that live long, among the many more of the imported packages. The collector, which would
# look at all of them again and again, runs seldom.
gc.freeze()
gc.set_threshold(200_000, 50, 50)


@cache
def _start_libtpu() -> None:
    """Let libtpu read XLA_FLAGS, which it does when it first compiles, without those that it does not know."""
    here = jax.sharding.SingleDeviceSharding(_get_topology(platform="tpu", topology_name="v5e:2x2").devices[0])
    argument = jax.ShapeDtypeStruct((8, 128), jax.numpy.float32, sharding=here)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"].replace(_QUICK, ""))
        jax.jit(lambda x: x + 1).trace(argument).lower(lowering_platforms=("tpu",)).compile()


def _topology(*arguments, **named):
    """As JAX's function of this name."""
    found = _get_topology(*arguments, **named)
    _start_libtpu()
    return found


_get_topology, topologies.get_topology_desc = topologies.get_topology_desc, _topology


def pytest_sessionstart(session):
    devices = jax.devices()
    if len(devices) != 8 or devices[0].platform != "cpu":
        pytest.exit(f"the tests need 8 virtual CPU devices, JAX has {devices}; see tests/conftest.py", returncode=1)


@pytest.hookimpl(tryfirst=True)  # before `-m` is looked at
def pytest_collection_modifyitems(config, items):
    parameters: dict[str, list[str]] = {}
    named = []
    for item in items:
        path = item.path.relative_to(TESTS).as_posix()
        if is_fast(path, item.originalname):
            item.add_marker("fast")
        test, name = f"{path}::{item.originalname}", item.callspec.id if hasattr(item, "callspec") else ""
        named.append((item, test, name))
        parameters.setdefault(test, []).append(name)
    few = left_out(parameters)
    config.stash[COLLECTED] = parameters
    for item, test, name in named:
        if (test, name) in few:
            item.add_marker("exhaustive")


def _no_skip(report):
    """Turn a skip into a failure where COLM_REQUIRE_ALL is set; an expected failure is no skip."""
    if os.environ.get(REQUIRE_ALL) and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome, report.longrepr = "failed", f"{reason} ({REQUIRE_ALL} allows no skip)"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    return _no_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
    return _no_skip((yield))


def pytest_terminal_summary(terminalreporter):
    skipped = sum(NO_SHARED in str(report.longrepr) for report in terminalreporter.stats.get("skipped", ()))
    if skipped:
        terminalreporter.write_line(
            f"{skipped} tests were skipped: {NO_SHARED}; set COLM_SHARED to the folder that holds models/", yellow=True
        )


@pytest.fixture(scope="module", autouse=True)
def strict_promotion(request):
    """Makes implicit promotion of dtypes an error in the tests of numerical code."""
    strict = request.path.parent.name in ("models", "objectives", "training", "decoding")
    with jax.numpy_dtype_promotion("strict" if strict else "standard"):
        yield


def _much_is_kept() -> bool:
    """Whether this process has many mappings, or much memory; True where that cannot be seen (outside Linux)."""
    maps, sizes = Path("/proc/self/maps"), Path("/proc/self/statm")
    if not maps.exists():
        return True
    resident = int(sizes.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return maps.read_bytes().count(b"\n") > MAPPINGS or resident > MEMORY


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Lets compiled programs go where they take much memory, or many of the 65,530 mappings that a process may have."""
    yield
    if _much_is_kept():
        jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of pretrained models, data and reference vectors; without it, skip the test."""
    if not (SHARED / "models").is_dir():
        pytest.skip(NO_SHARED)
    return SHARED


@pytest.fixture(scope="module")
def unchecked_types():
    """Checks no types and shapes, where programs are compiled with shapes in place of arrays."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


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


@pytest.fixture(scope="session")
def real(tmp_path_factory):
    """The folder of the published models, whose converted files are in one cache; without it, skip the test."""
    folder = Path(os.environ.get(FOLDER, ""))
    if not os.environ.get(FOLDER) or not all((folder / name).exists() for name in SOURCES):
        pytest.skip(
            f"no {' and '.join(SOURCES)} in {FOLDER}={os.environ.get(FOLDER, '')!s}; python tests/real_models.py"
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLM_CACHE", str(tmp_path_factory.getbasetemp() / "real"))
        yield folder
