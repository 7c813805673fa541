"""GKE: the rendered manifest, and the commands of gke.sh."""

import shlex
import subprocess

import kubernetes_validate
import pytest
import yaml
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

COLM = ["colm", "train", "--base", "/mnt/a model", "--data", "it's $(HOME) $x.jsonl", "--dev", 'a "b" \\d\n@NAME@ &']


def expanded(words):
    """Expand words as Kubernetes does: $$ is $; any other $ could begin a variable."""
    assert all("$" not in word.replace("$$", "") for word in words)
    return [word.replace("$$", "$") for word in words]


def rendered(desk):
    done = desk("gke.sh", "render", "--", *COLM)
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)


def test_manifest_has_the_environments_values(desk):
    manifest = rendered(desk)
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert manifest["metadata"]["name"] == "my-colm"
    assert manifest["spec"]["failurePolicy"]["maxRestarts"] == 3
    (group,) = manifest["spec"]["replicatedJobs"]
    job = group["template"]["spec"]
    assert (job["parallelism"], job["completions"], job["backoffLimit"]) == (4, 4, 0)
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # required by podFailurePolicy
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
        "cloud.google.com/gke-spot": "true",
    }
    assert pod["tolerations"][0]["key"] == "cloud.google.com/gke-spot"
    (container,) = pod["containers"]
    assert expanded(container["command"]) == [*COLM, "--distributed", "auto"]
    assert container["resources"]["limits"] == container["resources"]["requests"] == {"google.com/tpu": 4}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts["files"] == desk.values["MOUNT"]
    (volume,) = [volume for volume in pod["volumes"] if volume["name"] == "files"]
    assert volume["csi"]["volumeAttributes"]["bucketName"] == "my-bucket"
    assert "metadata-cache:ttl-secs:0" in volume["csi"]["volumeAttributes"]["mountOptions"]
    assert {volume["name"] for volume in pod["volumes"]} == set(mounts)


def test_invalid_input_is_not_restarted(desk):
    spec = rendered(desk)["spec"]
    (rule,) = spec["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"]
    container = spec["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [2]}
    (policy,) = spec["failurePolicy"]["rules"]
    assert (policy["action"], policy["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])


def test_manifest_without_spot(desk):
    desk.values["SPOT"] = "false"
    pod = rendered(desk)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert "cloud.google.com/gke-spot" not in pod["nodeSelector"]
    assert pod["tolerations"] == []


def test_apply_applies_the_manifest_to_the_named_cluster(desk):
    dry = desk("gke.sh", "apply", "--dry_run", "--", *COLM)
    assert desk.calls == []
    done = desk("gke.sh", "apply", "--", *COLM)
    assert done.returncode == 0, done.stderr
    assert desk.calls == [["kubectl", "--context=gke one", "apply", "-f", "-"]]
    applied = (desk.fake / "applied").read_text()
    assert yaml.safe_load(applied) == rendered(desk)
    # The printed command does the same in a shell.
    (desk.fake / "applied").unlink()
    path = f"{desk.fake / 'bin'}:/usr/bin:/bin"
    subprocess.run(["bash", "-c", dry.stdout], check=True, env={"PATH": path, "FAKE": str(desk.fake)}, timeout=60)
    assert (desk.fake / "applied").read_text() == applied
    assert desk.calls == [desk.calls[0]] * 2


def test_manifest_without_mount_has_no_bucket_volume(desk):
    desk.values |= {"MOUNT": "", "BUCKET": ""}
    pod = rendered(desk)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
    assert [volume["name"] for volume in pod["spec"]["volumes"]] == ["memory"]
    assert [mount["name"] for mount in pod["spec"]["containers"][0]["volumeMounts"]] == ["memory"]
    assert "annotations" not in pod["metadata"]


@pytest.mark.parametrize(
    "values, mesh, line",
    [
        ({"GKE_HOSTS": "2"}, "1,16,1", "GKE_TOPOLOGY=4x4: has 16 chips, and GKE_HOSTS=2 times GKE_CHIPS=4 is 8"),
        ({"GKE_TOPOLOGY": "2x2x2"}, "1,8,1", "GKE_TOPOLOGY=2x2x2: has 8 chips"),
        ({}, "1,8,2,", "must be three whole numbers"),
        ({}, "1,4,2", "--mesh 1,4,2: takes 8 devices, and GKE_TOPOLOGY=4x4 has 16"),
    ],
)
def test_mesh_or_hosts_that_do_not_match_the_topology_are_errors(desk, values, mesh, line):
    desk.values |= values
    done = desk("gke.sh", "apply", "--", "colm", "train", "--mesh", mesh)
    assert (done.returncode, desk.calls) == (2, [])
    assert line in done.stderr and done.stderr.count("\n") == 1


def test_status_logs_and_delete_select_the_jobs_label(desk):
    for command in (["status"], ["logs", "--follow"], ["delete"]):
        assert desk("gke.sh", *command).returncode == 0
    control, ours = ["kubectl", "--context=gke one", "--namespace=default"], "--selector=colm-jax=my-colm"
    assert desk.calls[0] == [*control, "get", "jobset", ours]
    assert ours in desk.calls[1] and ours in desk.calls[2]
    assert {"--container=colm", "--follow=true"} < set(desk.calls[2])
    assert desk.calls[3] == [*control, "delete", "jobset", ours]
    manifest = rendered(desk)
    pods = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
    assert manifest["metadata"]["labels"] == pods["metadata"]["labels"] == {"colm-jax": "my-colm"}


@pytest.mark.parametrize("claim", ["", "my-files"])
def test_manifest_is_valid_by_its_schemas(desk, claim):
    """By JobSet's schema, and by Kubernetes' for its jobs."""
    desk.values["CLAIM"] = claim
    manifest = rendered(desk)
    read = JobsetV1alpha2JobSet.from_dict(manifest).to_dict()  # drops unknown fields
    assert as_strings(read) == as_strings(manifest)
    for group in manifest["spec"]["replicatedJobs"]:
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": group["name"]}, **group["template"]}
        kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)


def as_strings(tree):
    """Convert numbers to strings: a quantity may be an int or a float."""
    if isinstance(tree, dict):
        return {key: as_strings(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [as_strings(value) for value in tree]
    return f"{tree:g}" if isinstance(tree, (int, float)) and not isinstance(tree, bool) else tree


def test_array_applies_a_job_for_each_line(desk):
    lines = ["colm sweep --out '/mnt/colm/a b' --trial x", 'colm sweep --out "it\'s" --trial $y']
    (desk.directory / "c.txt").write_text("\n".join(lines))
    desk.values |= {"GKE_HOSTS": "1", "GKE_TOPOLOGY": "2x2", "CLAIM": "my-files"}
    done = desk("gke.sh", "array", "c.txt")
    assert done.returncode == 0, done.stderr
    assert desk.calls == [["kubectl", "--context=gke one", "apply", "-f", "-"]] * 2
    manifests = list(yaml.safe_load_all((desk.fake / "applied").read_text()))
    assert [manifest["metadata"]["name"] for manifest in manifests] == ["my-colm-1", "my-colm-2"]
    assert {manifest["metadata"]["labels"]["colm-jax"] for manifest in manifests} == {"my-colm"}
    for manifest, line in zip(manifests, lines, strict=True):
        pod = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
        assert expanded(pod["containers"][0]["command"]) == ["bash", "-c", line]
        assert {"name": "files", "persistentVolumeClaim": {"claimName": "my-files"}} in pod["volumes"]


@pytest.mark.parametrize(
    "values, line",
    [
        ({"GKE_HOSTS": "1", "GKE_TOPOLOGY": "2x2"}, "CLAIM is not set"),
        ({"CLAIM": "my-files"}, "GKE_HOSTS=4: must be 1"),
        ({"CLAIM": "my-files", "GKE_HOSTS": "1", "GKE_TOPOLOGY": "2x2", "NAME": 46 * "a"}, "at most 45"),
    ],
)
def test_array_requirements(desk, values, line):
    (desk.directory / "c.txt").write_text("colm sweep --trial x\n")
    desk.values |= values
    done = desk("gke.sh", "array", "c.txt")
    assert (done.returncode, desk.calls) == (2, [])
    assert line in done.stderr and done.stderr.count("\n") == 1


def test_xpk_runs_the_same_command(desk):
    desk("gke.sh", "xpk", "--", *COLM)
    (call,) = desk.calls
    assert call[:3] == ["xpk", "workload", "create"]
    flags = dict(flag.partition("=")[::2] for flag in call[3:])
    assert shlex.split(flags.pop("--command")) == [*COLM, "--distributed", "auto"]
    assert flags == {
        "--cluster": "my-cluster",
        "--workload": "my-colm",
        "--project": "my-project",
        "--zone": "us-west4-a",
        "--tpu-type": "v5litepod-16",
        "--num-slices": "1",
        "--docker-image": "us-docker.pkg.dev/my-project/colm/colm:1",
        "--max-restarts": "3",
    }
