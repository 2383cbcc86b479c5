"""The images built for real, on a Debian of our own where no registry can be reached.

The ``triton`` image is not among them: its base is NVIDIA's alone.
"""

import ast
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from compose import services
from conftest import ROOT, descendants, free_port

pytestmark = [
    pytest.mark.slow,  # minutes: a whole Debian, then everything that pip installs
    pytest.mark.skipif(os.geteuid() != 0, reason="debootstrap and chroot need root"),
    pytest.mark.skipif(shutil.which("buildah") is None, reason="apt install buildah"),
    pytest.mark.skipif(shutil.which("debootstrap") is None, reason="apt install debootstrap"),
]

# What python:3.11-slim-bookworm has, of Debian's own.
PACKAGES = "python3,python3-venv,libpython3.11,ca-certificates"
KEY = "0123456789abcdef0123"


@dataclass
class Images:
    """A store of images that is gone with its folder."""

    folder: Path

    def buildah(self, *arguments: str | Path) -> str:
        done = subprocess.run(self.command(*arguments), capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
        return done.stdout.strip()

    def command(self, *arguments: str | Path) -> list[str]:
        store = ["--root", self.folder / "root", "--runroot", self.folder / "runroot"]
        return [str(word) for word in ("buildah", *store, *arguments)]

    def build(self, target: str) -> str:
        """The Dockerfile's target on our base; its name."""
        name = f"localhost/cdm-{target}"
        self.buildah(
            "bud",
            "--isolation=chroot",
            "--network=host",
            "--layers",
            "--build-arg=BASE_IMAGE=localhost/cdm-base",
            f"--target={target}",
            f"--tag={name}",
            *(f"--volume={path}:{inside}:ro" for path, inside in self.pip()),
            ROOT,
        )
        return name

    def pip(self) -> list[tuple[Path, Path]]:
        """This machine's configuration of pip in one file, and the paths that it names."""
        command = [sys.executable, "-m", "pip", "config", "list"]
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        settings, paths = {}, set()
        for line in sorted(listed.splitlines(), reverse=True):  # the environment's win
            name, _, value = line.partition("=")
            settings[name.rpartition(".")[2]] = ast.literal_eval(value)
        for word in " ".join(settings.values()).split():
            # The files of an index lie beside it.
            local = word.startswith("file://")
            path = Path(word.removeprefix("file://")).parent if local else Path(word)
            if path.is_absolute() and path.exists():
                paths.add(path)
        file = self.folder / "pip.conf"
        lines = [f"{name} = {value}" for name, value in settings.items()]
        file.write_text("\n".join(["[global]", *lines, ""]))
        return [(file, Path("/etc/pip.conf")), *((path, path) for path in sorted(paths))]


@pytest.fixture(scope="module")
def images():
    with tempfile.TemporaryDirectory(prefix="cdm-images-", dir="/var/tmp") as folder:
        store = Images(Path(folder))
        base = store.folder / "base"
        command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", base]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:]
        container = store.buildah("from", "scratch")
        store.buildah("add", "--quiet", container, base, "/")
        store.buildah("commit", "--quiet", "--rm", container, "localhost/cdm-base")
        shutil.rmtree(base)
        try:
            yield store
        finally:
            store.buildah("rm", "--all")
            store.buildah("rmi", "--all", "--force")


@contextlib.contextmanager
def running(images, image, folder, environment, *volumes):
    """The image's own command as its own user, until left."""
    container = images.buildah("from", "--pull-never", image)
    command = images.command("run", "--isolation=chroot", "--network=host")
    command += [f"--env={name}={value}" for name, value in environment.items()]
    command += [f"--volume={path}:{inside}:ro" for path, inside in volumes]
    output = folder / "output"
    with output.open("w") as file:
        process = subprocess.Popen(
            [*command, container, "--", "cdm-serve"], stdout=file, stderr=file, text=True
        )
    try:
        yield process, output
    finally:
        # Buildah would not pass a signal on.
        for pid, name in descendants(process.pid).items():
            if name == "cdm-serve":
                os.kill(pid, signal.SIGTERM)
        process.wait(120)
        images.buildah("rm", container)


def draw(port, process, output):
    """A picture, when the server is ready."""
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 180
    while True:
        assert process.poll() is None and time.monotonic() < deadline, output.read_text()
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
                break
        time.sleep(0.2)
    answer = httpx.post(
        f"{url}/v1/images/generations",
        json={"prompt": "a fox", "seed": 7, "size": "64x64"},
        headers={"authorization": f"Bearer {KEY}"},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    return answer.json()["data"][0]["b64_json"]


def installed(images, image):
    container = images.buildah("from", "--pull-never", image)
    try:
        listed = images.buildah(
            "run", "--isolation=chroot", container, "--", "python3", "-m", "pip", "list"
        )
        return {line.split()[0] for line in listed.splitlines()[2:]}
    finally:
        images.buildah("rm", container)


@pytest.mark.parametrize("name", ["gateway", "cpu"])
def test_an_image_serves(images, name, server, repository, tmp_path):
    image = images.build(services()[name]["build"]["target"])
    packages = installed(images, image)
    assert "cdm-serve" in packages and "torch" not in packages
    assert ("nvidia-pytriton" in packages) == (name == "cpu")
    port = free_port()
    keys = tmp_path / "keys"
    keys.write_text(KEY)
    environment = services()[name]["environment"] | {
        "CDM_SERVE_HOST": "127.0.0.1",
        "CDM_SERVE_PORT": str(port),
    }
    if name == "gateway":
        environment["CDM_SERVE_TRITON"] = server.triton_address()
    for folder in (tmp_path, *repository.parents):  # the image's user is nobody here
        if folder.stat().st_uid == 0 and folder.is_relative_to(tempfile.gettempdir()):
            folder.chmod(folder.stat().st_mode | 0o055)
    volumes = [(keys, "/run/secrets/api_keys"), (repository, "/models")]
    with running(images, image, tmp_path, environment, *volumes) as (process, output):
        again = server.generate(prompt="a fox", seed=7, size="64x64").json()
        assert draw(port, process, output) == again["data"][0]["b64_json"]
    assert '"stopped"' in output.read_text()


def test_the_export_image_exports(images, tmp_path):
    image = images.build(services()["export"]["build"]["target"])
    models = tmp_path / "models"
    models.mkdir()
    models.chmod(0o777)
    container = images.buildah("from", "--pull-never", image)
    images.buildah(
        "run",
        "--isolation=chroot",
        f"--volume={models}:/models",
        f"--volume={ROOT / 'models'}:/work/models:ro",
        container,
        "--",
        *services()["export"]["command"],
        "--components",
        "vae_decoder",
    )
    assert list(models.rglob("*.onnx"))
