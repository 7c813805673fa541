"""Serving on GKE: the rendered Deployment and Service, and the commands of gke_serve.sh."""

import subprocess

import kubernetes_validate
import pytest
import yaml

from tests.launch.test_gke import expanded

SERVE = ["colm", "serve", "--base", "gs://my-bucket/a team", "--name", 'it\'s $(HOME) $x "b" \\d\n@NAME@ &']
ADDED = ["--host", "0.0.0.0", "--port", "8000", "--api_key_env", "COLM_SERVE_KEY"]


@pytest.fixture
def desk(desk):
    desk.values |= {"GKE_HOSTS": "1", "GKE_TOPOLOGY": "2x2", "MOUNT": "", "BUCKET": ""}
    return desk


def rendered(desk, *arguments):
    done = desk("gke_serve.sh", "render", "--", *SERVE, *arguments)
    assert done.returncode == 0, done.stderr
    deployment, service = yaml.safe_load_all(done.stdout)
    return deployment, service


def pod_of(deployment):
    return deployment["spec"]["template"]["spec"]


def container_of(deployment):
    (container,) = pod_of(deployment)["containers"]
    return container


@pytest.mark.parametrize("gpu", ["", "nvidia-l4"])
@pytest.mark.parametrize("spot", ["true", "false"])
def test_manifest_is_valid_by_its_schemas(desk, gpu, spot):
    desk.values |= {"GKE_GPU": gpu, "SPOT": spot}
    for manifest in rendered(desk):
        kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


def test_manifest_has_the_environments_values(desk):
    desk.values |= {"REPLICAS": "2"}
    deployment, service = rendered(desk)
    assert deployment["metadata"]["name"] == service["metadata"]["name"] == "my-colm"
    assert deployment["spec"]["replicas"] == 2
    pod, container = pod_of(deployment), container_of(deployment)
    assert (pod["serviceAccountName"], container["image"]) == ("colm", desk.values["IMAGE"])
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "2x2",
        "cloud.google.com/gke-spot": "true",
    }
    assert container["resources"]["limits"] == container["resources"]["requests"] == {"google.com/tpu": 4}
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_gpus_replace_tpu_chips(desk):
    desk.values |= {"GKE_GPU": "nvidia-l4", "GKE_CHIPS": "1", "SPOT": "false"}
    desk.values |= {"GKE_ACCELERATOR": "", "GKE_TOPOLOGY": ""}
    deployment, _ = rendered(desk)
    assert pod_of(deployment)["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-l4"}
    assert pod_of(deployment)["tolerations"] == []
    assert container_of(deployment)["resources"]["limits"] == {"nvidia.com/gpu": 1}


def test_service_leads_to_the_pods(desk):
    deployment, service = rendered(desk)
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"] == labels
    ports = {port["name"]: port["containerPort"] for port in container_of(deployment)["ports"]}
    (port,) = service["spec"]["ports"]
    assert ports[port["targetPort"]] == 8000


def test_server_listens_outside_the_pod_and_asks_for_the_secrets_key(desk):
    deployment, _ = rendered(desk)
    container = container_of(deployment)
    assert expanded(container["command"]) == [*SERVE, *ADDED]
    (key,) = [variable for variable in container["env"] if variable["name"] == "COLM_SERVE_KEY"]
    assert key["valueFrom"] == {"secretKeyRef": {"name": "colm-key", "key": "key"}}
    desk.values["KEY_SECRET"] = "another"
    (key,) = [v for v in container_of(rendered(desk)[0])["env"] if v["name"] == "COLM_SERVE_KEY"]
    assert key["valueFrom"]["secretKeyRef"]["name"] == "another"


def window(probe):
    """Seconds of failures after which a probe acts."""
    return probe["periodSeconds"] * probe["failureThreshold"]


def test_probes_wait_for_compilation_and_for_the_drain(desk):
    container = container_of(rendered(desk)[0])
    probes = [container[name] for name in ("startupProbe", "readinessProbe", "livenessProbe")]
    assert all(probe["httpGet"] == {"path": "/health", "port": "http"} for probe in probes)
    assert window(container["startupProbe"]) == 1800
    desk.values["START_SECONDS"] = "3601"
    container = container_of(rendered(desk, "--drain", "300")[0])
    assert window(container["startupProbe"]) == 3610
    assert window(container["livenessProbe"]) > 300  # /health is 503 while requests are drained
    assert window(container["readinessProbe"]) < 30


@pytest.mark.parametrize("arguments, drain", [((), 60), (("--drain", "300"), 300), (("--drain=5",), 5)])
def test_a_pod_has_time_to_drain(desk, arguments, drain):
    deployment, _ = rendered(desk, *arguments)
    (_, before) = container_of(deployment)["lifecycle"]["preStop"]["exec"]["command"]
    assert pod_of(deployment)["terminationGracePeriodSeconds"] >= drain + int(before) + 30


def test_default_drain_is_the_settings():
    from colm_jax.settings.serving import ServingSettings

    assert ServingSettings().drain == 60


def test_apply_applies_the_manifest_to_the_named_cluster(desk):
    dry = desk("gke_serve.sh", "apply", "--dry_run", "--", *SERVE)
    assert desk.calls == []
    done = desk("gke_serve.sh", "apply", "--", *SERVE)
    assert done.returncode == 0, done.stderr
    assert desk.calls == [["kubectl", "--context=gke one", "apply", "-f", "-"]]
    applied = (desk.fake / "applied").read_text().removeprefix("---\n")
    assert tuple(yaml.safe_load_all(applied)) == rendered(desk)
    # The printed command does the same in a shell.
    (desk.fake / "applied").unlink()
    path = f"{desk.fake / 'bin'}:/usr/bin:/bin"
    subprocess.run(["bash", "-c", dry.stdout], check=True, env={"PATH": path, "FAKE": str(desk.fake)}, timeout=60)
    assert (desk.fake / "applied").read_text().removeprefix("---\n") == applied


def test_settings_are_checked_first(desk):
    desk.set_output("refusals", "check")
    assert desk("gke_serve.sh", "apply", "--", *SERVE).returncode == 2
    assert desk.calls == []


@pytest.mark.parametrize(
    "values, command, line",
    [
        ({"GKE_TOPOLOGY": "4x4"}, SERVE, "GKE_TOPOLOGY=4x4: has 16 chips, and GKE_CHIPS=4; a server runs on one host"),
        ({"KUBE_CONTEXT": ""}, SERVE, "KUBE_CONTEXT is not set"),
        ({"GKE_ACCELERATOR": ""}, SERVE, "GKE_ACCELERATOR is not set"),
        ({"REPLICAS": "two"}, SERVE, "REPLICAS=two: must be a whole number"),
        ({"KEY_SECRET": "My key"}, SERVE, "KEY_SECRET=My key: must be"),
        ({"START_SECONDS": "0"}, SERVE, "START_SECONDS=0: must be"),
        ({}, [*SERVE, "--mesh", "1,1,8"], "--mesh 1,1,8: takes 8 devices, and GKE_CHIPS=4 has 4"),
        ({}, [*SERVE, "--drain", "1.5"], "--drain 1.5: must be a whole number"),
        ({}, [*SERVE, "--host", "::"], "--host: is added by this script"),
        ({}, [*SERVE, "--port=80"], "--port: is added by this script"),
        ({}, [*SERVE, "--api_key_env", "KEY"], "--api_key_env: is added by this script"),
        ({}, [*SERVE, "--dry_run"], "--dry_run: write it before --"),
        ({}, ["colm", "train"], "write the command after --, as in -- colm serve"),
        ({}, [], "write the command after --"),
    ],
)
def test_invalid_input_is_a_one_line_error(desk, values, command, line):
    desk.values |= values
    done = desk("gke_serve.sh", "apply", "--", *command)
    assert (done.returncode, desk.calls) == (2, [])
    assert line in done.stderr and done.stderr.count("\n") == 1


def test_status_logs_and_delete_select_the_label(desk):
    for command in (["status"], ["logs", "--follow"], ["delete"]):
        assert desk("gke_serve.sh", *command).returncode == 0
    control, ours = ["kubectl", "--context=gke one", "--namespace=default"], "--selector=colm-jax=my-colm"
    assert desk.calls[0] == [*control, "get", "deployments,pods,services", ours, "--output=wide"]
    assert {"--container=colm", "--follow=true", ours} < set(desk.calls[1])
    assert desk.calls[2] == [*control, "delete", "deployments,services", ours]
    for manifest in rendered(desk):
        assert manifest["metadata"]["labels"] == {"colm-jax": "my-colm"}


def test_help_needs_no_environment(desk):
    done = desk("gke_serve.sh", "--help", env=False)
    assert done.returncode == 0
    assert done.stdout.startswith("usage: launch/gke_serve.sh")
