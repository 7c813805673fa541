"""Substitute for gcloud, kubectl, sbatch, srun and the others: appends its arguments to a file as a line of JSON.

gcloud's machines are directories, in which a shell runs the commands sent over ssh. Their states are read from files,
one line per query; the last line is repeated.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

here = Path(os.environ["FAKE"])
name, arguments = Path(sys.argv[0]).name, sys.argv[1:]
workers = here / "workers"


def next_line(file: str, default: str) -> str:
    path = here / file
    lines = path.read_text().splitlines() if path.exists() else [default]
    if len(lines) > 1:
        path.write_text("\n".join(lines[1:]) + "\n")
    return lines[0]


def option(flag: str) -> str:
    return next(argument.partition("=")[2] for argument in arguments if argument.startswith(flag + "="))


def kill_jobs() -> None:
    for pid in workers.glob("*/colm-run/pid"):
        with suppress(ProcessLookupError):
            os.killpg(int(pid.read_text()), signal.SIGKILL)


def ssh() -> int:
    chosen = sorted(workers.iterdir()) if option("--worker") == "all" else [workers / option("--worker")]
    results = []
    for worker in chosen:
        environment = {**os.environ, "HOME": str(worker), "WORKER": worker.name}
        results.append(subprocess.run(["bash", "-c", option("--command")], cwd=worker, env=environment).returncode)
    return max(results, default=255)


def fails(what: str) -> bool:
    """Return whether this call must fail: `refusals` has a line for each."""
    path = here / "refusals"
    if not path.exists() or what not in path.read_text().splitlines():
        return False
    lines = path.read_text().splitlines()
    lines.remove(what)
    path.write_text("\n".join(lines))
    return True


def gcloud() -> int:
    command = arguments[2:4]
    if fails(command[1]):
        return 1
    if command == ["queued-resources", "create"]:
        for number in range(2):
            (workers / str(number)).mkdir(parents=True)
    elif command == ["queued-resources", "delete"]:
        kill_jobs()
        shutil.rmtree(workers, ignore_errors=True)
    elif command == ["queued-resources", "describe"]:
        state = next_line("states", "ACTIVE")
        if state == "MISSING":
            print("ERROR: NOT_FOUND: Resource was not found", file=sys.stderr)
            return 1
        print(state)
    elif command == ["tpu-vm", "describe"]:
        print(next_line("nodes", "READY"))
    elif command == ["tpu-vm", "scp"]:
        files = [a for a in arguments[4:] if not a.startswith("-")][:-1]
        for worker in workers.iterdir():
            for file in files:
                shutil.copy(file, worker / "colm-launch")
    elif command == ["tpu-vm", "ssh"]:
        return ssh()
    return 0


if name == "colm" and arguments[:1] == ["check"]:  # called by the scripts first
    with (here / "checks").open("a") as file:
        file.write(json.dumps(arguments[1:]) + "\n")
    sys.exit(2 if fails("check") else 0)
with (here / "calls").open("a") as file:
    file.write(json.dumps([name, *arguments]) + "\n")
if name == "gcloud":
    sys.exit(gcloud())
if fails(name):
    sys.exit(1)
if name == "kubectl" and "apply" in arguments:
    with (here / "applied").open("a") as file:
        file.write(f"---\n{sys.stdin.read()}")
if name == "mountpoint":
    sys.exit(1)
if name == "sudo" and arguments[0] == "mkdir":
    Path(arguments[-1]).mkdir(parents=True, exist_ok=True)
if name == "uv" and arguments[0] == "venv":
    (Path(arguments[-1]) / "bin").mkdir(parents=True)
    (Path(arguments[-1]) / "bin" / "python").touch(0o755)
    (Path(arguments[-1]) / "bin" / "colm").symlink_to(here / "bin" / "colm")
if name == "colm":  # the test sets a shell script
    sys.exit(subprocess.run(["bash", str(here / "colm.sh"), *arguments]).returncode)
