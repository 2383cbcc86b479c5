"""What docker-compose.yml says, checked without Docker: by its schema, and as processes."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import httpx
import pytest
import yaml
from compose import services
from conftest import ROOT, free_port

from export.cli import main as export

SHIPPED = {"gateway", "triton", "cpu", "export", "export-gpu"}
BIN = Path(sys.executable).parent


def run(*command):
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("file", ["docker-compose.yml", "deploy/gpus.yml"])
def test_it_is_a_compose_file(file):
    schema = ["--builtin-schema", "vendor.compose-spec"]
    result = run(BIN / "check-jsonschema", *schema, ROOT / file)
    assert result.returncode == 0, result.stdout


def test_hadolint_has_nothing_to_say():
    result = run(BIN / "hadolint", ROOT / "Dockerfile")
    assert result.returncode == 0, result.stdout


def test_every_service_is_confined():
    for name, service in services().items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        limits = service["deploy"]["resources"]["limits"]
        assert limits.keys() == {"cpus", "memory"}, name
        assert "healthcheck" in service or name.startswith("export"), name
    assert {name for name, service in services().items() if "shm_size" in service} == {
        "triton",
        "cpu",
    }


def test_our_images_are_built_from_targets_that_run_as_nobody_special():
    text = (ROOT / "Dockerfile").read_text()
    stages = text.split("\nFROM ")[1:]
    users = {}
    for stage in stages:
        base, _, name = stage.splitlines()[0].partition(" AS ")
        own = [line for line in stage.splitlines() if line.startswith("USER ")]
        users[name] = own[-1] if own else users.get(base)
    targets = {service["build"]["target"] for service in services().values() if "build" in service}
    assert targets == SHIPPED
    assert {users[target] for target in targets} == {"USER 10001:10001", "USER 1000:1000"}


def test_mounted_files_are_there():
    for service in services().values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert not source.startswith("./") or (ROOT / source).exists(), source


def test_images_install_extras_that_are_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    installed = re.findall(r"\.whl\)\[([a-z,]+)\]", (ROOT / "Dockerfile").read_text())
    assert installed == [
        "redis,telemetry",
        "cpu,redis,telemetry",
        "export",
        "export,tensorrt",
        "cuda,tensorrt",
    ]
    assert set(",".join(installed).split(",")) <= project["optional-dependencies"].keys()


def test_images_install_releases_that_are_known_to_work_together():
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", "")
    installs = re.findall(r"pip install .*\.whl.*", text)
    assert len(installs) == 5 and all("constraints.txt" in line for line in installs)


def test_triton_serves_engines_where_there_are_some():
    """Whatever ``config.pbtxt`` says: see ``export.triton_files``."""
    assert "--model-config-name=gpu" in services()["triton"]["command"]


def test_kernels_are_compiled_where_a_container_may_write():
    """CuPy and the driver keep them in the home folder otherwise, which is read-only."""
    for name in ("triton", "export-gpu"):
        service = services()[name]
        folders = {service["environment"][key] for key in ("CUPY_CACHE_DIR", "CUDA_CACHE_PATH")}
        (mounted,) = (mount.partition(":")[0] for mount in service["tmpfs"])
        assert {str(Path(folder).parent) for folder in folders} == {mounted}
        assert service["deploy"]["resources"]["reservations"]["devices"][0]["driver"] == "nvidia"


def test_the_gpu_export_is_a_command_that_cdm_export_knows(tmp_path, capsys):
    """Without a GPU it gets as far as missing one."""
    program, *arguments = services()["export-gpu"]["command"]
    assert program == "cdm-export"
    assert export([*arguments[:-1], str(tmp_path)]) == 2
    assert "--to tensorrt builds on the GPU that will serve" in capsys.readouterr().err


def wait_for(url, process, output):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, output.read_text()
        try:
            if httpx.get(url, timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError(output.read_text())


@pytest.mark.parametrize("name", ["gateway", "cpu"])
def test_the_gateways_start_as_they_are_written(name, server, small_repository, tmp_path):
    """With nothing but their environment, and paths, ports and addresses of this machine."""
    (tmp_path / "keys").write_text("0123456789abcdef0123\n")
    port = free_port()
    replaced = {
        "0.0.0.0": "127.0.0.1",
        "/run/secrets/api_keys": str(tmp_path / "keys"),
        "/models": str(small_repository),
        "haproxy:8001": server.triton_address(),
    }
    service = services()[name]
    assert "command" not in service
    assert 'CMD ["cdm-serve"]' in (ROOT / "Dockerfile").read_text()
    settings = {
        key: replaced.get(value, re.sub(r"\$\{\w+:-(.*)\}", r"\1", value))
        for key, value in service["environment"].items()
    }
    output = tmp_path / "output"
    with output.open("w") as file:
        process = subprocess.Popen(
            [BIN / "cdm-serve"],
            cwd=tmp_path,
            env=os.environ | settings | {"CDM_SERVE_PORT": str(port), "TMPDIR": str(tmp_path)},
            stdout=file,
            stderr=file,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(f"{url}/readyz", process, output)
        _, python, flag, code = service["healthcheck"]["test"]
        assert (python, flag) == ("python3", "-c")
        assert run(sys.executable, "-c", code.replace(":8000", f":{port}")).returncode == 0
        body = {"prompt": "a fox", "seed": 7}
        route = f"{url}/v1/images/generations"
        assert httpx.post(route, json=body).status_code == 401
        headers = {"authorization": "Bearer 0123456789abcdef0123"}
        assert httpx.post(route, json=body, headers=headers, timeout=60).status_code == 200
    finally:
        process.terminate()
        assert process.wait(60) == 0
    assert json.loads(output.read_text().splitlines()[-1])["message"] == "stopped"


@pytest.mark.slow
def test_the_export_service_calls_the_exporter_as_it_is(tmp_path):
    program, *arguments = services()["export"]["command"]
    result = run(BIN / program, *arguments[:-1], tmp_path / "models", "--components", "vae_decoder")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "models").is_dir()


def test_prometheus_finds_the_gateway_and_grafana_the_dashboard():
    prometheus = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text())
    (job,) = prometheus["scrape_configs"]
    (host, port) = job["static_configs"][0]["targets"][0].split(":")
    assert services()[host]["environment"]["CDM_SERVE_HOST"] == "0.0.0.0"
    assert services()["cpu"]["networks"]["default"]["aliases"] == [host]
    assert port == "8000"
    provider = yaml.safe_load((ROOT / "deploy" / "grafana" / "dashboards.yml").read_text())
    folder = provider["providers"][0]["options"]["path"]
    mounts = [volume.split(":") for volume in services()["grafana"]["volumes"]]
    (dashboard,) = [host for host, inside, *_ in mounts if inside.startswith(f"{folder}/")]
    assert json.loads((ROOT / dashboard).read_text())["panels"]
    source = yaml.safe_load((ROOT / "deploy" / "grafana" / "datasources.yml").read_text())
    assert source["datasources"][0]["url"].startswith("http://prometheus:9090")


@pytest.mark.skipif(shutil.which("promtool") is None, reason="apt install prometheus")
def test_promtool_accepts_the_configuration():
    result = run("promtool", "check", "config", ROOT / "deploy" / "prometheus.yml")
    assert result.returncode == 0, result.stdout + result.stderr
