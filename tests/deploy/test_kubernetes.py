"""The manifests for Kubernetes: rendered, checked by its schema, and against what Compose runs."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from compose import services
from conftest import ROOT, Server

FOLDER = ROOT / "deploy" / "kubernetes"
OWN = {"ServiceMonitor"}  # of the Prometheus operator, whose schema is not Kubernetes' own


def manifests(file: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(file.read_text(encoding="utf-8")))


ALL = {file: manifests(file) for file in FOLDER.rglob("*.yaml") if "kustom" not in file.name}
PODS = [
    each["spec"]["template"]["spec"]
    for file in ALL.values()
    for each in file
    if each["kind"] in ("Deployment", "Job")
]


@pytest.mark.parametrize("file", ALL, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_every_manifest_holds_the_schema(file: Path) -> None:
    for manifest in ALL[file]:
        if manifest["kind"] not in OWN:
            kubernetes_validate.validate(manifest, "1.31", strict=True)


def test_what_is_wrong_is_noticed() -> None:
    (service,) = [each for each in ALL[FOLDER / "cpu" / "serve.yaml"] if each["kind"] == "Service"]
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(service | {"spek": {}}, "1.31", strict=True)


@pytest.mark.parametrize("name", ["cpu", "gpu", "monitoring"])
def test_kustomize_renders_all_that_is_there(name: str) -> None:
    folder = FOLDER / name
    if shutil.which("kubectl"):
        command = ["kubectl", "kustomize", str(folder)]
        ran = subprocess.run(command, capture_output=True, text=True, check=True)
        rendered = list(yaml.safe_load_all(ran.stdout))
        images = [c["image"] for each in rendered for c in containers(each)]
        assert all(image.endswith(":0.1.0") for image in images)
    else:  # what it would read
        (kustomization,) = manifests(folder / "kustomization.yaml")
        rendered = [
            each for file in kustomization["resources"] for each in manifests(folder / file)
        ]
    # The job is created by hand, once for a student.
    expected = [e for file, all_ in ALL.items() if file.parent == folder for e in all_]
    expected = [each for each in expected if each["kind"] != "Job"]
    assert sorted(e["kind"] for e in rendered) == sorted(e["kind"] for e in expected)


def containers(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    spec = manifest["spec"].get("template", {}).get("spec", {})
    return list(spec.get("containers", []))


@pytest.mark.parametrize("pod", PODS, ids=lambda pod: pod["containers"][0]["name"])
def test_every_pod_is_confined(pod: dict[str, Any]) -> None:
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    (container,) = pod["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert "memory" in container["resources"]["limits"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_triton_is_started_as_by_compose() -> None:
    (pod,) = [pod for pod in PODS if pod["containers"][0]["name"] == "triton"]
    container, service = pod["containers"][0], services()["triton"]
    assert container["command"] == service["command"]
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    assert environment.items() <= service["environment"].items()


def test_probes_and_the_queues_metric_are_the_servers(server: Server) -> None:
    for pod in PODS:
        for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
            probe = pod["containers"][0].get(kind, {})
            if "httpGet" in probe:
                assert server.http.get(probe["httpGet"]["path"]).status_code == 200
    (scale,) = ALL[FOLDER / "monitoring" / "scale.yaml"]
    metric = scale["spec"]["metrics"][0]["object"]["metric"]["name"]
    (monitor,) = ALL[FOLDER / "monitoring" / "monitor.yaml"]
    (endpoint,) = monitor["spec"]["endpoints"]
    assert f"\n{metric} " in server.http.get(endpoint["path"]).text
