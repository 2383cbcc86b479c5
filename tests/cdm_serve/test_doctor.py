"""``cdm-serve doctor`` tells the truth of this machine, and of what is taken from it."""

import ctypes.util
import json
import os
import shutil
import sys
import sysconfig

import fake_gpu
import pytest
from conftest import free_port

from cdm_serve import doctor
from cdm_serve.cli import main


@pytest.fixture
def examined(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "300")

    def examine(repository, *arguments):
        code = main(
            [
                "doctor",
                "--model-repository",
                str(repository),
                "--port",
                str(free_port()),
                *arguments,
            ]
        )
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        return code, [" ".join(line) for line in lines]

    return examine


@pytest.fixture
def copied(repository, tmp_path):
    shutil.copytree(repository / "tiny", tmp_path / "tiny")
    return tmp_path


def test_a_machine_that_would_serve(examined, repository):
    code, lines = examined(repository)
    assert code == 0 and lines[-1] == "it would serve"
    text = "\n".join(lines)
    assert f", {len(os.sched_getaffinity(0))} cores, " in text
    assert "✓ Triton nvidia-pytriton 0.7.0, with libpython3.11" in text
    assert "✓ model tiny whole, 64x64, 96x64, fp32, " in text
    assert "- TensorRT not here" in text and "pip install 'cdm-serve[tensorrt]'" in text
    assert len(lines) < 24


def test_without_libpython(examined, repository, monkeypatch):
    monkeypatch.setitem(sysconfig.get_config_vars(), "LIBDIR", "/nonexistent")
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: None)
    code, lines = examined(repository)
    assert code == 2 and lines[-1] == "it would not serve: see Triton"
    assert any(
        line.startswith("✗ Triton") and "apt install libpython3.11" in line for line in lines
    )


def test_without_an_export(examined, tmp_path):
    code, lines = examined(tmp_path)
    assert code == 2 and lines[-1] == "it would not serve: see models"
    assert any(f"`cdm-export STUDENT --to onnx --out {tmp_path}`" in line for line in lines)


def test_every_model_is_told_with_its_reason(examined, copied):
    """One whose bytes were changed behind size and date, and one for a GPU."""
    for name in ("changed", "gpu"):
        shutil.copytree(copied / "tiny", copied / name)
    path = copied / "changed" / "1" / "transformer.onnx"
    stat, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns - 10**12))
    shutil.copy(copied / "gpu" / "configs" / "gpu.pbtxt", copied / "gpu" / "config.pbtxt")
    code, lines = examined(copied)
    assert code == 2 and lines[-1] == "it would not serve: see model changed, model gpu"
    told = {line.split()[2]: line for line in lines if line[2:].startswith("model ")}
    assert told["tiny"].startswith("✓")
    assert "transformer.onnx is not the file that was exported (sha256" in told["changed"]
    assert "this onnxruntime has no CUDAExecutionProvider: pip uninstall" in told["gpu"]


@pytest.mark.parametrize("visible", ["1", "GPU-7c"])
def test_a_machine_with_gpus(examined, copied, monkeypatch, tmp_path, visible):
    """What the driver shows, and engines that were built by another version."""
    fake_gpu.install(monkeypatch, fake_gpu.Machine())
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    smi.write_text(
        "#!/bin/sh\n"
        "echo '0, GPU-5ebe, NVIDIA H200, 143771 MiB, 580.1, 9.0'\n"
        "echo '1, GPU-7c2a, NVIDIA H200, 143771 MiB, 580.1, 9.0'\n"
    )
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{smi.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    export = copied / "tiny" / "1" / "export.json"
    contents = json.loads(export.read_text())
    contents["tensorrt"] = {"version": "11.3.0.1", "options": {"version_compatible": False}}
    contents["tensorrt"]["components"] = {}
    contents["runtimes"].append("tensorrt")
    export.write_text(json.dumps(contents))
    config = copied / "tiny" / "config.pbtxt"
    config.write_text(config.read_text().replace('"openvino"', '"tensorrt"'))
    code, lines = examined(copied, "--devices", "1,2")
    text = "\n".join(lines)
    assert code == 2 and "✗ devices there is no GPU 2, only GPU 0, GPU 1: change --devices" in text
    shown = "NVIDIA H200, 143771 MiB, driver 580.1, compute capability 9.0"
    assert f"✓ GPU 0 {shown}, not in CUDA_VISIBLE_DEVICES" in text and f"✓ GPU 1 {shown}\n" in text
    assert "✓ ONNX Runtime 1.31.1, on CUDA, CPU" in text
    assert "✓ TensorRT 11.4.0.106" in text
    assert "the engines were built by TensorRT 11.3.0.1, here is 11.4.0.106: build them" in text


def test_shared_memory_as_docker_gives_it(examined, repository, monkeypatch):
    usage = shutil._ntuple_diskusage(64 * 2**20, 0, 64 * 2**20)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    code, lines = examined(repository)
    assert code == 2
    assert "✗ shared memory only 64 MiB free in /dev/shm: docker run --shm-size 1g" in lines
    full = shutil._ntuple_diskusage(2**30, 2**30, 0)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: full)
    _, lines = examined(repository)
    assert any("only 0 MiB free in /dev/shm: delete what is left there" in line for line in lines)
    # Which a Triton elsewhere has its own of.
    _, lines = examined(repository, "--triton", "127.0.0.1:9")
    assert not any("shared memory" in line for line in lines)


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        (["--on-picture", "nothing:there"], "✗ hook --on-picture must be MODULE:FUNCTION"),
        (["--on-picture", "json:dumps"], "✓ hook json:dumps"),
        (["--c2pa-key", "key.pem"], "✗ signing --c2pa-certificate and --c2pa-key: one needs"),
        (["--devices", "0,1"], "✓ devices a Triton on each of 0, 1"),
        (["--devices", "0", "--ray"], "✗ devices --devices is for the bundled Triton"),
        (["--ray"], "✗ Ray not here ("),
        (["--traces"], "✓ traces sent as OTEL_* variables say"),
    ],
)
def test_what_settings_ask_for_is_looked_at(examined, repository, monkeypatch, flags, found):
    monkeypatch.setitem(sys.modules, "ray", None)
    code, lines = examined(repository, *flags)
    assert any(line.startswith(found) for line in lines), lines
    wrong = "--ray" in flags or found.startswith("✗")
    assert code == (2 if wrong else 0)


def test_traces_without_their_packages(examined, repository, monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    code, lines = examined(repository, "--traces")
    assert code == 2 and any("pip install 'cdm-serve[telemetry]'" in line for line in lines)


def test_a_port_and_a_triton(examined, repository):
    code, lines = examined(repository, "--triton", "127.0.0.1:9", "--host", "0.0.0.0")
    assert code == 2 and lines[-1] == "it would not serve: see keys, Triton"
    assert any("nothing answers at 127.0.0.1:9" in line for line in lines)
