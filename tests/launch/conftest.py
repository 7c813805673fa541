"""Fixture `desk`: an environment file, and `fake.py` in place of every tool of a cloud or cluster."""

import json
import os
import shlex
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"
TOOLS = "gcloud kubectl xpk sbatch srun scontrol scancel ssh uv sudo gcsfuse mountpoint colm"
VALUES = {
    "PROJECT": "my-project",
    "ZONE": "us-west4-a",
    "NAME": "my-colm",
    "BUCKET": "my-bucket",
    "ACCELERATOR": "v5litepod-16",
    "RUNTIME": "v2-alpha-tpuv5-lite",
    "SPOT": "true",
    "RESTARTS": "3",
    "POLL": "0",
    "KUBE_CONTEXT": "gke one",
    "NAMESPACE": "default",
    "SERVICE_ACCOUNT": "colm",
    "IMAGE": "us-docker.pkg.dev/my-project/colm/colm:1",
    "CLUSTER": "my-cluster",
    "GKE_ACCELERATOR": "tpu-v5-lite-podslice",
    "GKE_TOPOLOGY": "4x4",
    "GKE_HOSTS": "4",
    "GKE_CHIPS": "4",
    "CLAIM": "",
    "PARTITION": "gpu",
    "NODES": "2",
    "GPUS_PER_NODE": "8",
    "CPUS_PER_GPU": "6",
    "TIME": "24:00:00",
    "ARRAY_LIMIT": "4",
}


class Desk:
    """Runs launch scripts with an environment file and the fakes on PATH."""

    def __init__(self, directory: Path):
        self.directory, self.fake = directory, directory / "fake"
        (self.fake / "bin").mkdir(parents=True)
        for tool in TOOLS.split():
            (self.fake / "bin" / tool).write_text(
                f"#!{sys.executable} -S\n{(Path(__file__).parent / 'fake.py').read_text()}"
            )
            (self.fake / "bin" / tool).chmod(0o755)
        self.wheel = directory / "my wheels" / "colm_jax-0.1.0-py3-none-any.whl"
        self.wheel.parent.mkdir()
        self.wheel.touch()
        self.values = {
            **VALUES,
            "PACKAGE": str(self.wheel),
            "MOUNT": str(directory / "mnt"),
            "LOGS": str(directory / "my logs"),
        }

    @property
    def env(self) -> Path:
        path = self.directory / "my env.sh"
        path.write_text(
            "".join(
                f"{name}={value if value[:1] == '(' else shlex.quote(value)}\n" for name, value in self.values.items()
            )
        )
        return path

    def __call__(self, script: str, *words: str, env: bool = True, **variables: str) -> subprocess.CompletedProcess:
        flags = ["--env", str(self.env)] if env else []
        place = words.index("--") if "--" in words else len(words)
        path = f"{self.fake / 'bin'}:/usr/bin:/bin"
        return subprocess.run(
            ["bash", str(LAUNCH / script), *words[:place], *flags, *words[place:]],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=self.directory,
            env={"PATH": path, "FAKE": str(self.fake), "HOME": str(self.directory), **variables},
        )

    @property
    def calls(self) -> list[list[str]]:
        """The calls of the tools, in order."""
        path = self.fake / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def set_output(self, file: str, *lines: str) -> None:
        """Set what gcloud prints (`states`, `nodes`), which calls fail (`refusals`), or what colm does (`colm.sh`)."""
        (self.fake / file).write_text("\n".join(lines) + "\n")


@pytest.fixture
def desk(tmp_path):
    desk = Desk(tmp_path)
    yield desk
    for pid in desk.fake.glob("workers/*/colm-run/pid"):  # of a failed test
        with suppress(ProcessLookupError):
            os.killpg(int(pid.read_text()), 9)
