"""Cloud TPU VMs: what is asked for, in which order, and that a job whose machines are taken away goes on."""

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
    """Of the calls of gcloud: what each does, without questions about states."""
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


def test_train_from_nothing_to_nothing(desk):
    desk.says("states", "MISSING", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")
    desk.says("colm.sh", "exit 0")
    done = desk("tpu_vm.sh", "train", "--", *COLM)
    assert done.returncode == 0, done.stderr
    calls = desk.calls
    assert kinds(calls) == ["create", *SET_UP, "delete"]
    flags = ["--node-id=my-colm", "--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite", "--spot"]
    assert [*TPUS, "queued-resources", "create", "my-colm", *WHERE, *flags] in calls
    assert [*TPUS, "queued-resources", "delete", "my-colm", *WHERE, "--force", "--quiet"] in calls
    script, there = str(LAUNCH / "on_worker.sh"), "my-colm:colm-launch/"
    assert [*TPUS, "tpu-vm", "scp", script, str(desk.wheel), there, *WHERE, "--worker=all"] in calls
    # Each worker got the command to the letter, through the shells between.
    assert [call for call in calls if call[0] == "colm"] == [[*COLM, "--distributed", "auto"]] * 2
    installs = [call for call in calls if call[:3] == ["uv", "pip", "install"]]
    assert len(installs) == 2
    assert installs[0][-1] == f"./colm-launch/{desk.wheel.name}[tpu,gcs]"
    (mount, _) = [call for call in calls if call[0] == "gcsfuse"]
    assert mount[-2:] == ["my-bucket", desk.values["MOUNT"]]
    assert {"--metadata-cache-ttl-secs=0", "--metadata-cache-negative-ttl-secs=0"} < set(mount)


def test_without_a_mount_the_bucket_is_no_directory(desk):
    desk.values |= {"MOUNT": "", "BUCKET": ""}
    desk.says("states", "MISSING", "ACTIVE")
    desk.says("colm.sh", "exit 0")
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
        ("v5p-16", "1,4,1", 8),  # of two hosts
        ("v3-8", "1,16,1", 8),
        ("v5litepod-16", "16", None),
    ],
)
def test_a_mesh_that_is_not_the_slice_s_is_refused_before_it_costs(desk, accelerator, mesh, has):
    desk.values["ACCELERATOR"] = accelerator
    for command in ("train", "start"):
        done = desk("tpu_vm.sh", command, "--", "colm", "train", "--mesh", mesh)
        assert (done.returncode, desk.calls) == (2, [])
        said = f"ACCELERATOR={accelerator} has {has}" if has else "three whole numbers"
        assert f"--mesh {mesh}: " in done.stderr and said in done.stderr


@pytest.mark.parametrize("accelerator, mesh", [("v6e-8", "1,4,1"), ("v5p-8", "1,2,1"), ("v3-8", "1,8,1")])
def test_one_host_may_use_a_part_of_its_chips(desk, accelerator, mesh):
    desk.values["ACCELERATOR"] = accelerator
    done = desk("tpu_vm.sh", "train", "--dry_run", "--", "colm", "train", f"--mesh={mesh}")
    assert done.returncode == 0, done.stderr


def test_the_command_s_own_settings_are_checked_before_it_costs(desk):
    gin = desk.directory / "run.gin"
    gin.write_text("")
    words = [*COLM, "--gin_file", str(gin), "--gin_file=gs://my-bucket/b.gin"]
    desk.says("refusals", "check")
    done = desk("tpu_vm.sh", "train", "--", *words)
    assert (done.returncode, desk.calls) == (2, [])
    assert [json.loads(line) for line in (desk.fake / "checks").read_text().splitlines()] == [words[1:]]
    # What lies on the machines' side of the mount cannot be read here.
    done = desk("tpu_vm.sh", "train", "--dry_run", "--", *COLM, "--gin_file", "/mnt/colm/run.gin")
    assert done.returncode == 0
    assert "/mnt/colm/run.gin is not seen from here" in done.stderr
    assert len((desk.fake / "checks").read_text().splitlines()) == 1


def test_dry_run_prints_what_a_run_does_and_runs_nothing(desk):
    printed = desk("tpu_vm.sh", "train", "--dry_run", "--", *COLM)
    assert printed.returncode == 0, printed.stderr
    assert desk.calls == []
    desk.says("states", "MISSING", "ACTIVE")
    desk.says("colm.sh", "exit 0")
    desk("tpu_vm.sh", "train", "--", *COLM)
    commands = [shlex.split(line) for line in printed.stdout.splitlines() if not line.startswith("#")]
    done = [call for call in desk.calls if call[0] == "gcloud"]
    assert all(command in done for command in commands)
    assert kinds(commands) == kinds(done)


@pytest.mark.parametrize("gone", ["SUSPENDED", "FAILED"])
def test_machines_taken_away_are_replaced_and_the_same_command_goes_on(desk, gone):
    """The first machines never finish; what they left in the bucket is what the next ones find."""
    desk.says("states", "MISSING", "ACTIVE", "ACTIVE", "SUSPENDING" if gone == "SUSPENDED" else gone, "ACTIVE")
    bucket = desk.directory / "bucket"
    bucket.mkdir()
    desk.says(
        "colm.sh",
        f'B="{bucket}/$WORKER"; if [ -e "$B" ]; then echo resumed >>"$B"; else echo begun >"$B"; sleep 60; fi',
    )
    done = desk("tpu_vm.sh", "train", "--", *COLM)
    assert done.returncode == 0, done.stderr
    assert kinds(desk.calls) == ["create", *SET_UP, "delete", "create", *SET_UP, "delete"]
    starts = [call for call in desk.calls if any("on_worker.sh start" in word for word in call)]
    assert starts[0] == starts[1]
    assert "1 of 3" in done.stderr
    assert {path.read_text() for path in bucket.iterdir()} == {"begun\nresumed\n"}


def test_a_preempted_node_counts_while_its_request_still_says_active(desk):
    desk.says("states", "MISSING", "ACTIVE")
    desk.says("nodes", "PREEMPTED", "READY")
    flag = desk.directory / "flag"
    desk.says("colm.sh", f'if [ -e "{flag}$WORKER" ]; then exit 0; fi; touch "{flag}$WORKER"; exit 1')
    done = desk("tpu_vm.sh", "train", "--", *COLM)
    assert done.returncode == 0, done.stderr
    assert kinds(desk.calls).count("create") == 2


def test_a_job_that_was_told_to_stop_starts_again_on_the_same_machines(desk):
    desk.says("states", "MISSING", "ACTIVE")
    flag = desk.directory / "flag"
    desk.says("colm.sh", f'if [ -e "{flag}$WORKER" ]; then exit 0; fi; touch "{flag}$WORKER"; exit 143')
    done = desk("tpu_vm.sh", "train", "--keep", "--", *COLM)
    assert done.returncode == 0, done.stderr
    assert kinds(desk.calls) == ["create", *SET_UP, "ssh mount", "ssh start"]
    assert "cost" in done.stderr  # they were kept


@pytest.mark.parametrize("status", [1, 2])
def test_a_job_that_fails_is_not_repeated(desk, status):
    desk.says("states", "MISSING", "ACTIVE")
    desk.says("colm.sh", f'echo "colm: data.jsonl:3: no text"; exit {status}')
    done = desk("tpu_vm.sh", "train", "--", *COLM)
    assert done.returncode == 1
    assert kinds(desk.calls) == ["create", *SET_UP, "ssh log"]
    assert "colm: data.jsonl:3: no text" in done.stdout
    assert "the job failed" in done.stderr and "cost" in done.stderr


def test_it_gives_up_after_so_many_restarts(desk):
    desk.says("states", "MISSING", "ACTIVE")
    desk.says("colm.sh", "exit 143")
    desk.values["RESTARTS"] = "2"
    done = desk("tpu_vm.sh", "train", "--", *COLM)
    assert done.returncode == 1
    assert kinds(desk.calls).count("ssh start") == 3


def test_a_request_that_is_refused_ends_it(desk):
    desk.says("states", "MISSING", "FAILED")
    done = desk("tpu_vm.sh", "train", "--", *COLM)
    assert done.returncode == 1
    assert kinds(desk.calls) == ["create"]
    assert "quota" in done.stderr


def test_nothing_is_made_anew_where_somebody_deletes(desk):
    desk.says("states", "MISSING", "ACTIVE", "DELETING")
    desk.says("colm.sh", "sleep 60")
    done = desk("tpu_vm.sh", "train", "--", *COLM)
    assert done.returncode == 1
    assert kinds(desk.calls) == ["create", *SET_UP]


def test_called_again_it_watches_what_runs(desk):
    desk.says("states", "ACTIVE")
    desk.says("colm.sh", 'until grep -q "on_worker.sh same" "$FAKE/calls"; do sleep 0.05; done')
    assert desk("tpu_vm.sh", "create").returncode == 0
    for command in (["install"], ["mount"], ["start", "--", *COLM]):
        done = desk("tpu_vm.sh", *command)
        assert done.returncode == 0, done.stderr
    done = desk("tpu_vm.sh", "train", "--", *COLM)
    assert done.returncode == 0, done.stderr
    assert kinds(desk.calls) == ["create", *SET_UP, "ssh same", "delete"]


def test_another_command_does_not_take_the_place_of_what_runs(desk):
    desk.says("states", "ACTIVE")
    desk.says("colm.sh", "sleep 60")
    for command in (["create"], ["install"], ["start", "--", *COLM]):
        assert desk("tpu_vm.sh", *command).returncode == 0
    done = desk("tpu_vm.sh", "train", "--", "colm", "generate", "--base", "B")
    assert done.returncode == 1
    assert "another command runs" in done.stderr
    assert "delete" not in kinds(desk.calls)


def test_called_again_when_the_job_is_done_it_ends_it(desk):
    desk.says("states", "ACTIVE")
    desk.says("colm.sh", "exit 0")
    for command in (["create"], ["install"], ["mount"], ["start", "--", *COLM]):
        assert desk("tpu_vm.sh", *command).returncode == 0
    until(lambda: desk("tpu_vm.sh", "status").stdout.count("colm-status: 0") == 2)
    done = desk("tpu_vm.sh", "train", "--", *COLM)
    assert done.returncode == 0, done.stderr
    assert kinds(desk.calls) == ["create", *SET_UP, "ssh same", "delete"]


def test_on_machines_that_are_there_everything_else_is_done(desk):
    desk.says("states", "ACTIVE")
    desk.says("colm.sh", "exit 0")
    assert desk("tpu_vm.sh", "create").returncode == 0
    done = desk("tpu_vm.sh", "train", "--", *COLM)
    assert done.returncode == 0, done.stderr
    assert kinds(desk.calls) == ["create", *SET_UP, "delete"]


def test_workers_out_of_reach_are_left_alone(desk):
    desk.says("states", "ACTIVE")  # and there is nobody
    done = desk("tpu_vm.sh", "train", "--", *COLM)
    assert done.returncode == 1 and "out of reach" in done.stderr
    assert kinds(desk.calls) == []


def test_what_google_refuses_for_a_moment_is_asked_again(desk):
    desk.says("states", "MISSING", "ACTIVE")
    desk.says("colm.sh", "exit 0")
    desk.says("refusals", "delete", "delete")
    done = desk("tpu_vm.sh", "train", "--", *COLM)
    assert done.returncode == 0, done.stderr
    assert kinds(desk.calls) == ["create", *SET_UP, "delete", "delete", "delete"]


def test_a_refused_request_is_not_repeated_when_called_again(desk):
    desk.says("states", "FAILED")
    done = desk("tpu_vm.sh", "train", "--", *COLM)
    assert done.returncode == 1 and "quota" in done.stderr
    assert kinds(desk.calls) == []


@pytest.mark.parametrize("script, command", [("tpu_vm.sh", "train"), ("tpu_vm.sh", "start"), ("gke.sh", "apply")])
def test_results_must_lie_in_a_bucket_or_under_the_mount(desk, script, command):
    for mount in (desk.values["MOUNT"], ""):
        desk.values["MOUNT"] = mount
        for out in (["--out", "RUN"], ["--out", "gs://b/A", "--out=/tmp/RUN"], ["--out", "gs://bucket"]):
            done = desk(script, command, "--", "colm", "train", *out)
            assert (done.returncode, desk.calls) == (2, [])
            assert "must be gs://BUCKET/NAME" in done.stderr
            assert (f"or lie under MOUNT ({mount})" in done.stderr) == bool(mount)


def test_stop_lets_the_command_answer(desk):
    desk.says("states", "ACTIVE")
    desk.says("colm.sh", "trap 'echo saved; exit 143' TERM", "echo begun", "while :; do sleep 0.05; done")
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


def test_more_flags(desk):
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
        (["train"], "write the command behind --"),
        (["train", "--", "colm", "export", "--run", "R"], "colm export: only run, score, train"),
        (["train", "--", "colm", "train", "--distributed", "auto"], "--distributed: is added by this script"),
        (["train", "--kept", "--", *COLM], "--kept is not among its flags"),
        (["begin"], "begin: no such command"),
    ],
)
def test_wrong_commands_are_one_line(desk, command, line):
    done = desk("tpu_vm.sh", *command)
    assert done.returncode == 2
    assert line in done.stderr and done.stderr.count("\n") == 1
    assert desk.calls == []


def test_calls_are_json_lines(desk):
    desk("tpu_vm.sh", "delete")
    assert json.loads((desk.fake / "calls").read_text())[:3] == TPUS
