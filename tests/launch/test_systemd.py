"""The systemd unit of `colm serve`: its keys, its command, and systemd's own check of it."""

import re
import shlex
import shutil
import subprocess

import pytest

from colm_jax.cli.parser import parse
from tests.launch.conftest import LAUNCH

UNIT = LAUNCH / "colm-serve.service"


def keys():
    """Return the values of each key of [Service]."""
    found: dict[str, list[str]] = {}
    section = UNIT.read_text().partition("[Service]\n")[2].partition("\n[")[0]
    for line in section.splitlines():
        if not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def the(name):
    (value,) = keys()[name]
    return value


def test_it_runs_as_a_user_of_its_own_with_the_key_from_a_file():
    command, flags = shlex.split(the("ExecStart")), parse(shlex.split(the("ExecStart"))[1:])
    assert command[1] == flags.command == "serve"
    assert (the("DynamicUser"), the("EnvironmentFile")) == ("yes", "/etc/colm-serve.env")
    assert flags.host == "127.0.0.1"
    named = re.findall(r"(\w+)=\.\.\.", UNIT.read_text())
    assert named == [flags.api_key_env] and "COLM_API_KEY" not in UNIT.read_text()  # that one is sent to remote experts


def test_it_has_time_to_drain():
    flags = parse(shlex.split(the("ExecStart"))[1:])
    assert the("KillSignal") == "SIGTERM"
    assert int(the("TimeoutStopSec")) >= flags.drain + 30


def test_it_restarts_after_failures_but_not_after_invalid_input():
    assert (the("Restart"), the("RestartPreventExitStatus")) == ("on-failure", "2")


def test_its_files_are_in_its_cache_directory():
    folders = dict(value.split("=", 1) for value in keys()["Environment"])
    assert {"HOME", "COLM_CACHE", "JAX_COMPILATION_CACHE_DIR"} == set(folders)
    assert all(f"{folder}/".startswith(f"/var/cache/{the('CacheDirectory')}/") for folder in folders.values())


if shutil.which("systemd-analyze"):

    @pytest.mark.parametrize("key, accepted", [("Restart", True), ("Restrat", False)])
    def test_systemd_accepts_it(tmp_path, key, accepted):
        text, program = UNIT.read_text(), shlex.split(the("ExecStart"))[0]
        unit = tmp_path / UNIT.name
        unit.write_text(text.replace(program, shutil.which("true")).replace("\nRestart=", f"\n{key}="))
        command = ["systemd-analyze", "verify", "--man=no", str(unit)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        told = [line for line in done.stderr.splitlines() if UNIT.name in line]  # warnings, as of an unknown key
        assert (done.returncode == 0 and not told) == accepted, done.stderr
