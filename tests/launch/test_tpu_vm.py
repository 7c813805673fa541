"""Cloud TPU VMs: the calls of gcloud and their order, and that a preempted job resumes."""

import json
import shlex
import time

import pytest

from tests.launch.conftest import LAUNCH

COLM = [
    "colm",
    "train",
    "--base",
    "/mnt/a model",
    "--data",
    "it's $HOME.jsonl",
    "--dev",
    'a "b" `c` \\d',
    "--mesh",
    "1,16,1",
]
WHERE = ["--project=my-project", "--zone=us-west4-a"]
TPUS = ["gcloud", "compute", "tpus"]


def kinds(calls):
    """Return what each call of gcloud does, without queries of states."""
    found = []
    for call in calls:
        if call[0] != "gcloud" or call[4] == "describe":
            continue
        command = next((a.partition("=")[2] for a in call if a.startswith("--command=")), "")
        command = command.rpartition("|| ")[2]
        what = shlex.split(command)[2] if "on_worker.sh" in command else command.partition(" ")[0]
        found.append(f"{call[4]} {what}".strip())
    return [kind for kind in found if kind != "ssh status"]


SET_UP = ["ssh mkdir", "scp", "ssh install", "ssh mount", "ssh start"]


def test_train_creates_runs_and_deletes(desk):
    desk.set_output("states", "MISSING", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")
    desk.set_output("colm.sh", "exit 0")
    done = desk("tpu_vm.sh", "train", "--", *COLM)
    assert done.returncode == 0, done.stderr
    calls = desk.calls
    assert kinds(calls) == ["create", *SET_UP, "delete"]
    flags = ["--node-id=my-colm", "--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite", "--spot"]
    assert [*TPUS, "queued-resources", "create", "my-colm", *WHERE, *flags] in calls
    assert [*TPUS, "queued-resources", "delete", "my-colm", *WHERE, "--force", "--quiet"] in calls
    script, there = str(LAUNCH / "on_worker.sh"), "my-colm:colm-launch/"
    assert [*TPUS, "tpu-vm", "scp", script, str(desk.wheel), there, *WHERE, "--worker=all"] in calls
    # The command reaches each worker unchanged through all shells.
    assert [call for call in calls if call[0] == "colm"] == [[*COLM, "--distributed", "auto"]] * 2
    installs = [call for call in calls if call[:3] == ["uv", "pip", "install"]]
    assert len(installs) == 2
    assert installs[0][-1] == f"./colm-launch/{desk.wheel.name}[tpu,gcs]"
    (mount, _) = [call for call in calls if call[0] == "gcsfuse"]
    assert mount[-2:] == ["my-bucket", desk.values["MOUNT"]]
    assert {"--metadata-cache-ttl-secs=0", "--metadata-cache-negative-ttl-secs=0"} < set(mount)


def test_bucket_is_not_mounted_without_mount(desk):
    desk.values |= {"MOUNT": "", "BUCKET": ""}
    desk.set_output("states", "MISSING", "ACTIVE")
    desk.set_output("colm.sh", "exit 0")
    done = desk("tpu_vm.sh", "train", "--", *COLM, "--out", "gs://a-bucket/RUN")
    assert done.returncode == 0, done.stderr
    assert kinds(desk.calls) == ["create", *[step for step in SET_UP if step != "ssh mount"], "delete"]
    assert not [call for call in desk.calls if call[0] == "gcsfuse"]
    done = desk("tpu_vm.sh", "mount")
    assert done.returncode == 2 and "MOUNT is not set" in done.stderr


@pytest.mark.parametrize(
    "accelerator, mesh, has",
    [
        ("v5litepod-16", "1,8,1", 16),
        ("v5litepod-16", "2,16,1", 16),
        ("v6e-8", "1,16,1", 8),
        ("v5p-16", "1,16,1", 8),  # cores
        ("v5p-16", "1,4,1", 8),  # two hosts
        ("v3-8", "1,16,1", 8),
        ("v5litepod-16", "16", None),
    ],
)
def test_mesh_must_match_the_slice_before_anything_is_created(desk, accelerator, mesh, has):
    desk.values["ACCELERATOR"] = accelerator
    for command in ("train", "start"):
        done = desk("tpu_vm.sh", command, "--", "colm", "train", "--mesh", mesh)
        assert (done.returncode, desk.calls) == (2, [])
        expected = f"ACCELERATOR={accelerator} has {has}" if has else "three whole numbers"
        assert f"--mesh {mesh}: " in done.stderr and expected in done.stderr


@pytest.mark.parametrize("accelerator, mesh", [("v6e-8", "1,4,1"), ("v5p-8", "1,2,1"), ("v3-8", "1,8,1")])
def test_one_host_may_use_some_of_its_chips(desk, accelerator, mesh):
    desk.values["ACCELERATOR"] = accelerator
    done = desk("tpu_vm.sh", "train", "--dry_run", "--", "colm", "train", f"--mesh={mesh}")
    assert done.returncode == 0, done.stderr


def test_settings_are_checked_before_anything_is_created(desk):
    gin = desk.directory / "run.gin"
    gin.write_text("")
    words = [*COLM, "--gin_file", str(gin), "--gin_file=gs://my-bucket/b.gin"]
    desk.set_output("refusals", "check")
    done = desk("tpu_vm.sh", "train", "--", *words)
    assert (done.returncode, desk.calls) == (2, [])
    assert [json.loads(line) for line in (desk.fake / "checks").read_text().splitlines()] == [words[1:]]
    # A file on the machines' mount cannot be read here.
    done = desk("tpu_vm.sh", "train", "--dry_run", "--", *COLM, "--gin_file", "/mnt/colm/run.gin")
    assert done.returncode == 0
    assert "/mnt/colm/run.gin is not readable here" in done.stderr
    assert len((desk.fake / "checks").read_text().splitlines()) == 1


def test_dry_run_prints_the_commands_and_runs_none(desk):
    printed = desk("tpu_vm.sh", "train", "--dry_run", "--", *COLM)
    assert printed.returncode == 0, printed.stderr
    assert desk.calls == []
    desk.set_output("states", "MISSING", "ACTIVE")
    desk.set_output("colm.sh", "exit 0")
    desk("tpu_vm.sh", "train", "--", *COLM)
    commands = [shlex.split(line) for line in printed.stdout.splitlines() if not line.startswith("#")]
    done = [call for call in desk.calls if call[0] == "gcloud"]
    assert all(command in done for command in commands)
    assert kinds(commands) == kinds(done)


@pytest.mark.parametrize("gone", ["SUSPENDED", "FAILED"])
def test_preempted_machines_are_replaced_and_the_command_resumes(desk, gone):
    """The first machines never finish; the next ones do."""
    desk.set_output("states", "MISSING", "ACTIVE", "ACTIVE", "SUSPENDING" if gone == "SUSPENDED" else gone, "ACTIVE")
    bucket = desk.directory / "bucket"
    bucket.mkdir()
    desk.set_output(
        "colm.sh",
        f'if [ "$(grep -c \'"create"\' "$FAKE/calls")" = 1 ]; then sleep 60; fi; echo resumed >>"{bucket}/$WORKER"',
    )
    done = desk("tpu_vm.sh", "train", "--", *COLM)
    assert done.returncode == 0, done.stderr
    assert kinds(desk.calls) == ["create", *SET_UP, "delete", "create", *SET_UP, "delete"]
    starts = [call for call in desk.calls if any("on_worker.sh start" in word for word in call)]
    assert starts[0] == starts[1]
    assert "1 of 3" in done.stderr
    assert {path.read_text() for path in bucket.iterdir()} == {"resumed\n"}


def test_preempted_node_is_replaced_while_its_request_is_active(desk):
    desk.set_output("states", "MISSING", "ACTIVE")
    desk.set_output("nodes", "PREEMPTED", "READY")
    flag = desk.directory / "flag"
    desk.set_output("colm.sh", f'if [ -e "{flag}$WORKER" ]; then exit 0; fi; touch "{flag}$WORKER"; exit 1')
    done = desk("tpu_vm.sh", "train", "--", *COLM)
    assert done.returncode == 0, done.stderr
    assert kinds(desk.calls).count("create") == 2


def test_stopped_job_is_restarted_on_the_same_machines(desk):
    desk.set_output("states", "MISSING", "ACTIVE")
    flag = desk.directory / "flag"
    desk.set_output("colm.sh", f'if [ -e "{flag}$WORKER" ]; then exit 0; fi; touch "{flag}$WORKER"; exit 143')
    done = desk("tpu_vm.sh", "train", "--keep", "--", *COLM)
    assert done.returncode == 0, done.stderr
    assert kinds(desk.calls) == ["create", *SET_UP, "ssh mount", "ssh start"]
    assert "cost" in done.stderr  # they are kept


@pytest.mark.parametrize("status", [1, 2])
def test_failed_job_is_not_restarted(desk, status):
    desk.set_output("states", "MISSING", "ACTIVE")
    desk.set_output("colm.sh", f'echo "colm: data.jsonl:3: no text"; exit {status}')
    done = desk("tpu_vm.sh", "train", "--", *COLM)
    assert done.returncode == 1
    assert kinds(desk.calls) == ["create", *SET_UP, "ssh log"]
    assert "colm: data.jsonl:3: no text" in done.stdout
    assert "the job failed" in done.stderr and "cost" in done.stderr


def test_train_restarts_at_most_restarts_times(desk):
    desk.set_output("states", "MISSING", "ACTIVE")
    desk.set_output("colm.sh", "exit 143")
    desk.values["RESTARTS"] = "2"
    done = desk("tpu_vm.sh", "train", "--", *COLM)
    assert done.returncode == 1
    assert kinds(desk.calls).count("ssh start") == 3


def test_failed_request_ends_train(desk):
    desk.set_output("states", "MISSING", "FAILED")
    done = desk("tpu_vm.sh", "train", "--", *COLM)
    assert done.returncode == 1
    assert kinds(desk.calls) == ["create"]
    assert "quota" in done.stderr


def test_deleted_machines_are_not_created_again(desk):
    desk.set_output("states", "MISSING", "ACTIVE", "DELETING")
    desk.set_output("colm.sh", "sleep 60")
    done = desk("tpu_vm.sh", "train", "--", *COLM)
    assert done.returncode == 1
    assert kinds(desk.calls) == ["create", *SET_UP]


def test_rerun_monitors_the_running_job(desk):
    desk.set_output("states", "ACTIVE")
    desk.set_output("colm.sh", 'until grep -q "on_worker.sh same" "$FAKE/calls"; do sleep 0.05; done')
    assert desk("tpu_vm.sh", "create").returncode == 0
    for command in (["install"], ["mount"], ["start", "--", *COLM]):
        done = desk("tpu_vm.sh", *command)
        assert done.returncode == 0, done.stderr
    done = desk("tpu_vm.sh", "train", "--", *COLM)
    assert done.returncode == 0, done.stderr
    assert kinds(desk.calls) == ["create", *SET_UP, "ssh same", "delete"]


def test_another_command_does_not_replace_the_running_one(desk):
    desk.set_output("states", "ACTIVE")
    desk.set_output("colm.sh", "sleep 60")
    for command in (["create"], ["install"], ["start", "--", *COLM]):
        assert desk("tpu_vm.sh", *command).returncode == 0
    done = desk("tpu_vm.sh", "train", "--", "colm", "generate", "--base", "B")
    assert done.returncode == 1
    assert "another command runs" in done.stderr
    assert "delete" not in kinds(desk.calls)


def test_rerun_of_a_finished_job_deletes_the_machines(desk):
    desk.set_output("states", "ACTIVE")
    desk.set_output("colm.sh", "exit 0")
    for command in (["create"], ["install"], ["mount"], ["start", "--", *COLM]):
        assert desk("tpu_vm.sh", *command).returncode == 0
    until(lambda: desk("tpu_vm.sh", "status").stdout.count("colm-status: 0") == 2)
    done = desk("tpu_vm.sh", "train", "--", *COLM)
    assert done.returncode == 0, done.stderr
    assert kinds(desk.calls) == ["create", *SET_UP, "ssh same", "delete"]


def test_train_uses_existing_machines(desk):
    desk.set_output("states", "ACTIVE")
    desk.set_output("colm.sh", "exit 0")
    assert desk("tpu_vm.sh", "create").returncode == 0
    done = desk("tpu_vm.sh", "train", "--", *COLM)
    assert done.returncode == 0, done.stderr
    assert kinds(desk.calls) == ["create", *SET_UP, "delete"]


def test_unreachable_workers_are_not_touched(desk):
    desk.set_output("states", "ACTIVE")  # but there are no workers
    done = desk("tpu_vm.sh", "train", "--", *COLM)
    assert done.returncode == 1 and "unreachable" in done.stderr
    assert kinds(desk.calls) == []


def test_failed_delete_is_retried(desk):
    desk.set_output("states", "MISSING", "ACTIVE")
    desk.set_output("colm.sh", "exit 0")
    desk.set_output("refusals", "delete", "delete")
    done = desk("tpu_vm.sh", "train", "--", *COLM)
    assert done.returncode == 0, done.stderr
    assert kinds(desk.calls) == ["create", *SET_UP, "delete", "delete", "delete"]


def test_rerun_does_not_repeat_a_failed_request(desk):
    desk.set_output("states", "FAILED")
    done = desk("tpu_vm.sh", "train", "--", *COLM)
    assert done.returncode == 1 and "quota" in done.stderr
    assert kinds(desk.calls) == []


@pytest.mark.parametrize("script, command", [("tpu_vm.sh", "train"), ("tpu_vm.sh", "start"), ("gke.sh", "apply")])
def test_out_must_be_in_a_bucket_or_under_the_mount(desk, script, command):
    for mount in (desk.values["MOUNT"], ""):
        desk.values["MOUNT"] = mount
        for out in (["--out", "RUN"], ["--out", "gs://b/A", "--out=/tmp/RUN"], ["--out", "gs://bucket"]):
            done = desk(script, command, "--", "colm", "train", *out)
            assert (done.returncode, desk.calls) == (2, [])
            assert "must be gs://BUCKET/NAME" in done.stderr
            assert (f"or be under MOUNT ({mount})" in done.stderr) == bool(mount)


def test_stop_lets_the_command_handle_sigterm(desk):
    desk.set_output("states", "ACTIVE")
    desk.set_output("colm.sh", "trap 'echo saved; exit 143' TERM", "echo begun", "while :; do sleep 0.05; done")
    for command in (["create"], ["install"], ["start", "--", *COLM]):
        assert desk("tpu_vm.sh", *command).returncode == 0
    log = desk.fake / "workers" / "0" / "colm-run" / "log"
    until(lambda: "begun" in log.read_text())
    assert desk("tpu_vm.sh", "status").stdout.count("colm-status: running") == 2
    assert desk("tpu_vm.sh", "stop").returncode == 0
    until(lambda: desk("tpu_vm.sh", "status").stdout.count("colm-status: 143") == 2)
    assert "saved" in desk("tpu_vm.sh", "logs").stdout


def until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_create_and_ssh_flags_are_passed_on(desk):
    desk.values |= {
        "SPOT": "false",
        "CREATE_FLAGS": "(--network='my net' --internal-ips)",
        "SSH_FLAGS": "(--internal-ip)",
    }
    desk("tpu_vm.sh", "create")
    assert desk.calls[-1][-3:] == ["--runtime-version=v2-alpha-tpuv5-lite", "--network=my net", "--internal-ips"]
    desk("tpu_vm.sh", "mount")
    assert "--internal-ip" in next(call for call in desk.calls if "ssh" in call)


@pytest.mark.parametrize(
    "command, line",
    [
        (["train"], "write the command after --"),
        (["train", "--", "colm", "export", "--run", "R"], "colm export: only run, score, train"),
        (["train", "--", "colm", "train", "--distributed", "auto"], "--distributed: is added by this script"),
        (["train", "--kept", "--", *COLM], "--kept: no such flag"),
        (["begin"], "begin: no such command"),
    ],
)
def test_invalid_command_is_a_one_line_error(desk, command, line):
    done = desk("tpu_vm.sh", *command)
    assert done.returncode == 2
    assert line in done.stderr and done.stderr.count("\n") == 1
    assert desk.calls == []


def test_calls_are_json_lines(desk):
    desk("tpu_vm.sh", "delete")
    assert json.loads((desk.fake / "calls").read_text())[:3] == TPUS
