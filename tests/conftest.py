"""One tiny real export and one real server for the whole session."""

import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from cdm_serve.engine.manifest import Manifest, read_manifest
from cdm_serve.engine.pipeline import Pipeline
from cdm_serve.engine.runtimes import open_runtime
from distill import cli as distill
from export import cli as export

RECIPE = """
teacher = "{folder}/teacher"
output = "{folder}/tiny"
prompts = "{folder}/prompts.txt"
height = 64
width = 64
max_sequence_length = 0
steps = 4
updates = 2
batch = 2
[schedule]
n_max = 3
"""
ROOT = Path(__file__).parents[1]
STUB = "triton_python_b"  # the model's process; the kernel keeps 15 characters

# Files of which a process has long, so that none is left alone with one at the end; the first two
# begin with exports or runs of their own, and not both with the one that all others wait for.
LONG = (
    "distill/test_distill_cli.py",
    "api/test_errors.py",
    "demo/test_toy.py",
    "api/test_playground.py",
    "cdm_serve/test_server.py",
    "export/test_export_architectures.py",
    "engine/test_scheduler.py",
    "benchmarks/load/test_load.py",
    "engine/test_warmup.py",
    "triton/test_slow.py",
    "triton/test_supervisor.py",
    "triton/test_registry.py",
    "export/test_export_int8.py",
    "tests/test_shipped_models.py",
)

# Networks as small as these are slower on several threads; also in the processes that tests start.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Servers start in seconds: what is measured longer is not more true for networks as small as these.
os.environ.setdefault("CDM_SERVE_WARM_UP_SECONDS", "0.2")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        return next((k for k, name in enumerate(LONG) if str(item.path).endswith(name)), len(LONG))

    items.sort(key=place)


@pytest.fixture(autouse=True, scope="module")
def threads_as_before() -> Iterator[None]:
    """Recipes set them, and the last digits of a result depend on them."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@dataclass
class Server:
    """A running ``cdm-serve``; ``lines`` is what it has printed."""

    process: subprocess.Popen[str]
    url: str
    output: Path
    http: httpx.Client

    @property
    def printed(self) -> str:
        return self.output.read_text()

    def ready(self) -> bool:
        try:
            return self.http.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def wait_ready(self, seconds: float = 300.0) -> None:
        deadline = time.monotonic() + seconds
        while not self.ready():
            assert self.process.poll() is None, self.printed
            assert time.monotonic() < deadline, self.printed
            time.sleep(0.05)

    def generate(self, **fields: object) -> httpx.Response:
        return self.http.post("/v1/images/generations", json=fields)

    def picture(self, prompt: str, seed: int, steps: int, size: str = "64x64") -> bytes:
        """The file, and proof that it is one."""
        response = self.http.post(
            "/v1/images/generations",
            json={"prompt": prompt, "seed": seed, "num_inference_steps": steps, "size": size},
            headers={"accept": "image/png"},
        )
        assert response.status_code == 200, response.text
        assert response.content.startswith(b"\x89PNG")
        return response.content

    def edit(
        self, image: bytes, mask: bytes | None = None, route: str = "edits", **fields: object
    ) -> httpx.Response:
        files = {"image": image} | ({} if mask is None else {"mask": mask})
        texts = {name: str(value) for name, value in fields.items()}
        return self.http.post(f"/v1/images/{route}", data=texts, files=files)

    def metric(self, name: str, **labels: str) -> float:
        """One number of /metrics; 0.0 when it is not there."""
        for family in text_string_to_metric_families(self.http.get("/metrics").text):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    return sample.value
        return 0.0

    def descendants(self) -> dict[int, str]:
        """Living processes below the server's, with their names."""
        return descendants(self.process.pid)

    def triton_address(self) -> str:
        (triton,) = [pid for pid, name in self.descendants().items() if name == "tritonserver"]
        for argument in Path(f"/proc/{triton}/cmdline").read_text().split("\0"):
            if argument.startswith("--grpc-port="):
                return "127.0.0.1:" + argument.partition("=")[2]
        raise AssertionError("Triton has no gRPC port")

    def interrupt(self, number: int = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.process.wait(120)


def descendants(root: int) -> dict[int, str]:
    parents: dict[int, tuple[int, str]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            head, _, rest = stat.read_text().rpartition(")")
        except OSError:
            continue
        number, _, name = head.partition(" (")
        if rest.split()[0] not in "ZX":
            parents[int(number)] = (int(rest.split()[1]), name)
    found = {root}
    while True:
        more = {pid for pid, (parent, _) in parents.items() if parent in found} - found
        if not more:
            return {pid: parents[pid][1] for pid in found - {root} if pid in parents}
        found |= more


Once = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """A folder that the first process of the session (``pytest -n``) makes, for all to read."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent

    def once(name: str, make: Callable[[Path], object]) -> Path:
        folder = base / name
        with (base / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                make(folder.with_suffix(".unfinished"))
                folder.with_suffix(".unfinished").rename(folder)
        return folder

    return once


@pytest.fixture(scope="session")
def student(once: Once) -> Path:
    """A student that cdm-distill made of a random teacher in two updates."""

    def distil(folder: Path) -> None:
        from pipelines import tiny_decoder, tiny_sd3  # diffusers: seconds

        tiny_sd3(folder / "teacher")
        tiny_decoder(folder / "decoder")
        (folder / "prompts.txt").write_text("a fox\nan owl\ntwo cats\n")
        (folder / "recipe.toml").write_text(RECIPE.format(folder=folder))
        assert distill.main([str(folder / "recipe.toml"), "--run", str(folder / "run")]) == 0

    return once("distilled", distil) / "tiny"


@pytest.fixture(scope="session")
def repository(student: Path, once: Once) -> Path:
    """What cdm-export makes of it, in two sizes and with a tiny decoder."""

    def make(folder: Path) -> None:
        options = ["--sizes", "64x64,96x64", "--max-batch", "8", "--out", str(folder)]
        options += ["--verify", "quick"]
        options += ["--decoder", str(student.with_name("decoder"))]
        assert export.main([str(student), "--to", "onnx", *options]) == 0
        # What a killed export leaves behind; every server of the tests starts beside it.
        (folder / ".tiny.0123abcd.export" / "1").mkdir(parents=True)

    return once("model_repository", make)


@pytest.fixture(scope="session")
def quick_repository(repository: Path, once: Once) -> Path:
    """The same model without batches: a server has half as many graphs to compile at its start."""
    return once("quick_repository", lambda folder: copy_of(repository, folder))


@pytest.fixture(scope="session")
def small_repository(repository: Path, once: Once) -> Path:
    """And in one size, without edits and tiny decoder: a sixth as many."""
    return once("small_repository", lambda folder: copy_reduced(repository, folder))


def copy_of(repository: Path, folder: Path, max_batch: int = 1) -> None:
    shutil.copytree(repository, folder)
    config = folder / "tiny" / "config.pbtxt"
    text = config.read_text()
    reduced = re.sub(r'(key: "max_batch" value \{ string_value: )"8"', rf'\1"{max_batch}"', text)
    assert reduced != text
    config.write_text(reduced)


def copy_reduced(repository: Path, folder: Path, max_batch: int = 1) -> None:
    copy_of(repository, folder, max_batch)
    manifest = folder / "tiny" / "1" / "export.json"
    contents = json.loads(manifest.read_text())
    contents["sizes"] = ["64x64"]
    del contents["components"]["vae_encoder"], contents["components"]["tiny_decoder"]
    manifest.write_text(json.dumps(contents))


@pytest.fixture(scope="session")
def manifest(repository: Path) -> Manifest:
    return read_manifest(repository / "tiny" / "1")


@pytest.fixture(scope="session")
def pipeline(manifest: Manifest) -> Pipeline:
    return Pipeline(manifest, open_runtime("openvino", "auto"))


Start = Callable[..., Server]


@contextmanager
def starting(repository: Path, make_folder: Callable[[str], Path]) -> Iterator[Start]:
    servers: list[Server] = []

    def start(*arguments: str) -> Server:
        folder = make_folder("server")
        port = str(free_port())
        command = [sys.executable, "-m", "cdm_serve", "--model-repository", str(repository)]
        with (folder / "output").open("w") as output:
            process = subprocess.Popen(
                [*command, "--port", port, *arguments],
                stdout=output,
                stderr=output,
                text=True,
                cwd=ROOT,
                env=os.environ | {"TMPDIR": str(folder), "COLUMNS": "300"},
            )
        url = f"http://127.0.0.1:{port}"
        http = httpx.Client(base_url=url, timeout=60.0)
        servers.append(Server(process, url, folder / "output", http))
        return servers[-1]

    try:
        yield start
    finally:
        for server in servers:
            server.http.close()
            server.process.terminate()
        for server in servers:
            server.process.wait(120)


@pytest.fixture(scope="module")
def start(small_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Start a server of one's own on a free port; whatever is left is ended with the module."""
    with starting(small_repository, tmp_path_factory.mktemp) as start:
        yield start


@pytest.fixture(scope="session")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The shared one: leave it ready."""
    with starting(repository, tmp_path_factory.mktemp) as start:
        server = start()
        server.wait_ready()
        yield server


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
