"""What ``make release`` builds: the wheel's contents, and that it serves where nothing else is."""

import os
import re
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import httpx
import pytest
from conftest import Server, free_port

import cdm_serve

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow  # builds an sdist and from it a wheel, and installs that


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert [path.name for path in folder.glob("*.tar.gz")] == [
        f"cdm_serve-{cdm_serve.__version__}.tar.gz"
    ]
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_what_the_commands_read_is_in_it(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0].partition("-")[0] for name in wheel.namelist()}
    assert tops == {"cdm_serve", "distill", "export", "benchmarks"}
    # Every file of these kinds that git has, and each as it is here.
    here = [ROOT / "distill/demo/emoji/sprites.png"]
    patterns = ["cdm_serve/playground/*", "distill/recipes/*", "distill/accelerate/*"]
    for pattern in [*patterns, "export/triton/*.p*", "*/*/*.py", "*/*/*/*.py"]:
        here += [path for path in ROOT.glob(pattern) if path.parts[len(ROOT.parts)] in tops]
    assert len(here) > 50
    for path in here:
        assert wheel.read(path.relative_to(ROOT).as_posix()) == path.read_bytes()


def test_its_licences(wheel: zipfile.ZipFile) -> None:
    for name in ("LICENSE", "distill/demo/emoji/OFL.txt"):
        inside = f"cdm_serve-{cdm_serve.__version__}.dist-info/licenses/{name}"
        assert wheel.read(inside) == (ROOT / name).read_bytes()


def test_serving_requires_no_torch(wheel: zipfile.ZipFile) -> None:
    text = wheel.read(f"cdm_serve-{cdm_serve.__version__}.dist-info/METADATA").decode()
    metadata = Parser().parsestr(text)
    assert metadata["Version"] == cdm_serve.__version__
    lines = metadata.get_all("Requires-Dist") or []
    names = {re.split(r"[^A-Za-z0-9-]", line)[0] for line in lines if "extra ==" not in line}
    assert "fastapi" in names and "tritonclient" in names
    assert not names & {"torch", "diffusers", "transformers", "accelerate", "onnx", "ray"}
    assert not names & {"nvidia-pytriton", "openvino", "tokenizers"}  # a gateway has no engine


def test_alone_in_a_fresh_environment_it_serves_an_export(
    wheel: zipfile.ZipFile, repository: Path, server: Server, tmp_path: Path
) -> None:
    """From a folder where the source is not; only what it requires is fetched."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    binaries = tmp_path / "venv" / "bin"
    install = [binaries / "python", "-m", "pip", "install", "--quiet"]
    install += ["-c", ROOT / "constraints.txt", f"{wheel.filename}[cpu]"]
    subprocess.run(install, check=True, cwd=tmp_path, env=environment)
    port = str(free_port())
    output = tmp_path / "output"
    with output.open("w") as file:
        process = subprocess.Popen(
            [binaries / "cdm-serve", "--model-repository", repository, "--port", port],
            stdout=file,
            stderr=file,
            text=True,
            cwd=tmp_path,
            env=environment,
        )
    url = f"http://127.0.0.1:{port}"
    alone = Server(process, url, output, httpx.Client(base_url=url, timeout=60.0))
    try:
        alone.wait_ready()
        job = ("a fox", 7, 4, "96x64")
        assert alone.picture(*job) == server.picture(*job)
        assert alone.http.get("/").status_code == 200
    finally:
        alone.http.close()
        assert alone.interrupt() == 0
    where = "import cdm_serve; print(cdm_serve.__file__)"
    command = [binaries / "python", "-c", where]
    found = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert found.stdout.startswith(str(tmp_path)), found.stderr
