"""Slurm: submitted jobs, and the batch scripts near the time limit."""

import os
import shlex
import signal
import subprocess
import time

import pytest

from tests.launch.conftest import LAUNCH

COLM = ["colm", "train", "--base", "/data/a model", "--data", "it's $HOME.jsonl", "--out", 'a "b"']


def test_submit_passes_flags_and_command_to_sbatch(desk):
    desk.values |= {"ACCOUNT": "my lab", "SBATCH_FLAGS": "(--constraint='a|b')"}
    dry = desk("slurm.sh", "submit", "--dry_run", "--", *COLM)
    assert not (desk.directory / "my logs").exists()
    done = desk("slurm.sh", "submit", "--", *COLM)
    assert done.returncode == 0, done.stderr
    logs = desk.values["LOGS"]
    flags = ["--job-name=my-colm", "--partition=gpu", "--time=24:00:00", "--cpus-per-task=6", "--account=my lab"]
    flags += ["--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8", f"--output={logs}/%x-%j.log", "--constraint=a|b"]
    sbatch = ["sbatch", *flags, str(LAUNCH / "slurm.sbatch"), *COLM]
    assert desk.calls == [sbatch]
    assert (desk.directory / "my logs").is_dir()
    printed = [shlex.split(line) for line in dry.stdout.splitlines()]
    assert printed == [["mkdir", "-p", logs], ["env", f"COLM_LAUNCH={LAUNCH}", "COLM_RESTARTS=3", *sbatch]]


@pytest.mark.parametrize("mesh, takes", [("1,8,1", 8), ("2,16,1", 32)])
def test_mesh_must_cover_all_gpus(desk, mesh, takes):
    done = desk("slurm.sh", "submit", "--", *COLM, "--mesh", mesh)
    assert (done.returncode, desk.calls) == (2, [])
    assert f"--mesh {mesh}: takes {takes} devices, and NODES=2 times GPUS_PER_NODE=8 has 16" in done.stderr
    assert desk("slurm.sh", "submit", "--", *COLM, "--mesh=1,16,1").returncode == 0


def test_array_has_a_task_for_each_line(desk):
    commands = desk.directory / "my commands.txt"
    commands.write_text("colm sweep --trial a\ncolm sweep --trial b")  # the last line has no newline
    done = desk("slurm.sh", "array", "my commands.txt")
    assert done.returncode == 0, done.stderr
    (call,) = desk.calls
    assert "--array=1-2%4" in call
    assert call[-2:] == [str(LAUNCH / "slurm_array.sbatch"), str(commands)]


@pytest.mark.parametrize(
    "text, line", [(None, "no such file"), ("", "or empty"), ("colm a\n\ncolm b\n", ":2: empty line")]
)
def test_invalid_command_file_is_a_one_line_error(desk, text, line):
    if text is not None:
        (desk.directory / "c.txt").write_text(text)
    done = desk("slurm.sh", "array", "c.txt")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert line in done.stderr


class Job:
    """A batch script, started as by Slurm; the fakes of srun and scancel also run the step and signal it."""

    def __init__(self, desk, script, *arguments, **variables):
        self.desk = desk
        pids = desk.fake / "step"
        for tool, text in {
            "srun": f'while [[ $1 == --* ]]; do shift; done\n"$@" & echo $! >"{pids}"\nwait $!\n',
            "scancel": f'kill -TERM "$(<"{pids}")"\n',
        }.items():
            path = desk.fake / "bin" / tool
            path.rename(path.with_name(f"record-{tool}"))
            record = f'{path.with_name(f"record-{tool}")} "$@"\n'
            path.write_text(f"#!/bin/bash\n{record}{text}")
            path.chmod(0o755)
        environment = {"PATH": f"{desk.fake / 'bin'}:/usr/bin:/bin", "FAKE": str(desk.fake), "SLURM_JOB_ID": "77"}
        environment |= {"SLURM_SUBMIT_DIR": str(LAUNCH.parent), "HOME": str(desk.directory), **variables}
        command = ["bash", str(LAUNCH / script), *arguments]
        self.process = subprocess.Popen(
            command, env=environment, cwd=desk.directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def signal(self):
        """Send Slurm's signal before the time limit, once the step runs."""
        end = time.monotonic() + 20
        while not (self.desk.directory / "begun").exists():
            assert time.monotonic() < end
            time.sleep(0.02)
        self.process.send_signal(signal.SIGTERM)

    def end(self):
        output, _ = self.process.communicate(timeout=30)
        return self.process.returncode, output

    def calls(self, name):
        return [call[1:] for call in self.desk.calls if call[0].removeprefix("record-") == name]


EXITS_ON_SIGTERM = ["trap 'kill $pid; exit 143' TERM", "sleep 60 & pid=$!", "touch begun", "wait"]


def test_step_is_one_process_per_gpu_that_sees_all_gpus(desk):
    desk.set_output("colm.sh", 'echo "CPUs of a step: $SRUN_CPUS_PER_TASK"')
    job = Job(desk, "slurm.sbatch", *COLM, SLURM_CPUS_PER_TASK="6")
    status, output = job.end()
    assert status == 0 and "CPUs of a step: 6" in output
    flags = ["--kill-on-bad-exit=0", "--wait=180", "--gpu-bind=none"]
    assert job.calls("srun") == [[*flags, *COLM, "--distributed", "auto"]]
    assert job.calls("scontrol") == []


def test_job_near_its_time_limit_is_signalled_and_requeued(desk):
    (desk.fake / "bin" / "colm").write_text("\n".join(["#!/bin/bash", *EXITS_ON_SIGTERM]))
    job = Job(desk, "slurm.sbatch", *COLM)
    job.signal()
    status, output = job.end()
    assert status == 143, output
    assert job.calls("scancel") == [["--signal=TERM", "77"]]
    assert job.calls("scontrol") == [["requeue", "Incomplete", "77"]]


def test_job_is_requeued_at_most_restarts_times(desk):
    (desk.fake / "bin" / "colm").write_text("\n".join(["#!/bin/bash", *EXITS_ON_SIGTERM]))
    job = Job(desk, "slurm.sbatch", *COLM, SLURM_RESTART_COUNT="3", COLM_RESTARTS="3")
    job.signal()
    status, output = job.end()
    assert status == 143 and "requeued 3 times" in output
    assert job.calls("scontrol") == []


def test_job_that_ignores_the_signal_is_requeued_before_the_limit(desk):
    (desk.fake / "bin" / "colm").write_text(
        "#!/bin/bash\ntrap '' TERM\ntouch begun\nuntil grep -q scontrol $FAKE/calls; do sleep 0.1; done\n"
    )
    job = Job(desk, "slurm.sbatch", *COLM, COLM_PATIENCE="1")
    job.signal()
    assert job.end()[0] == 0
    assert job.calls("scontrol") == [["requeue", "Incomplete", "77"]]


@pytest.mark.parametrize("status", [1, 2, 143])
def test_job_that_exits_by_itself_is_not_requeued(desk, status):
    desk.set_output("colm.sh", f"exit {status}")
    job = Job(desk, "slurm.sbatch", *COLM)
    assert job.end()[0] == status
    assert job.calls("scontrol") == []


def test_array_task_runs_its_line(desk):
    desk.set_output("colm.sh", "exit 0")
    (desk.directory / "c.txt").write_text("colm sweep --trial 'a b'\ncolm sweep --trial \"c's\"\n")
    job = Job(desk, "slurm_array.sbatch", "c.txt", SLURM_ARRAY_TASK_ID="2")
    assert job.end()[0] == 0
    assert desk.calls[-1] == ["colm", "sweep", "--trial", "c's"]


def test_array_task_without_a_line_is_an_error(desk):
    (desk.directory / "c.txt").write_text("colm a\n")
    status, output = Job(desk, "slurm_array.sbatch", "c.txt", SLURM_ARRAY_TASK_ID="2").end()
    assert (status, output.count("\n")) == (2, 1)
    assert "has no line 2" in output


def test_batch_scripts_have_the_required_sbatch_options():
    for name in ("slurm.sbatch", "slurm_array.sbatch"):
        lines = (LAUNCH / name).read_text().splitlines()
        assert {"#SBATCH --requeue", "#SBATCH --signal=B:TERM@300", "#SBATCH --open-mode=append"} <= set(lines)
        assert os.access(LAUNCH / name, os.X_OK)
