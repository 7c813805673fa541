"""The tiers of tests, and what may be missing: it skips tests, is named, and fails where no skip is allowed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import COLLECTED
from tests.exhaustive import KEPT, WHOLE, left_out
from tests.fast import FILES, SLOW

TESTS = Path(__file__).parent
PACKAGES = sorted(path.parent.name for path in (TESTS.parent / "colm_jax").glob("*/__init__.py"))


def test_every_fast_file_and_slow_test_exists():
    assert not [name for name in FILES if not (TESTS / name).is_file()]
    for path, function in (name.split("::") for name in SLOW):
        assert path in FILES and f"def {function}(" in (TESTS / path).read_text(encoding="utf-8")


def test_every_test_to_leave_out_exists_and_leaves_some_out(request):
    """Of the files of this run, which may be some; the tests of the others have to exist."""
    collected = request.config.stash[COLLECTED]
    left = left_out(collected)
    for test in (*KEPT, *WHOLE):
        path, function = test.split("::")
        assert f"def {function}(" in (TESTS / path).read_text(encoding="utf-8"), test
        if found := collected.get(test):
            assert 0 < sum((test, name) in left for name in found) < len(found) + (test in WHOLE), test


def test_every_package_with_tests_has_a_fast_one():
    tested = {name for name in PACKAGES if (TESTS / name).is_dir()}
    assert len(tested) > 15
    assert tested <= {name.partition("/")[0] for name in FILES if "/" in name}


@pytest.mark.parametrize("required", ["", "1"])
def test_without_the_shared_models_tests_skip_or_fail(required, tmp_path):
    environment = {**os.environ, "COLM_SHARED": str(tmp_path), "COLM_REQUIRE_ALL": required}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/models/test_parity.py"]
    done = subprocess.run(command, cwd=TESTS.parent, env=environment, capture_output=True, text=True)
    line = f"tests were skipped: no shared models at {tmp_path}; set COLM_SHARED to the folder that holds models/"
    assert (done.returncode, line in done.stdout) == ((1, False) if required else (0, True)), done.stdout
    assert ("COLM_REQUIRE_ALL allows no skip" in done.stdout) == bool(required)
