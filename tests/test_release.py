"""What ``make release`` builds, without fetching anything: the wheel's contents."""

import re
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import cdm_serve

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow  # builds an sdist and from it a wheel


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
    here = [ROOT / "cdm_serve/playground.html", ROOT / "distill/emoji/sprites.png"]
    for pattern in ("distill/recipes/*", "distill/accelerate/*", "export/triton/*.p*", "*/*/*.py"):
        here += [path for path in ROOT.glob(pattern) if path.parts[len(ROOT.parts)] in tops]
    assert len(here) > 50
    for path in here:
        assert wheel.read(path.relative_to(ROOT).as_posix()) == path.read_bytes()


def test_its_licences(wheel: zipfile.ZipFile) -> None:
    for name in ("LICENSE", "distill/emoji/OFL.txt"):
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
