"""Models come, change and go while the server serves."""

import json
import os
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import STUB


@pytest.fixture(scope="module")
def own_repository(small_repository, tmp_path_factory):
    # A path that a shell would take apart, and of more than ASCII.
    folder = tmp_path_factory.mktemp("own") / 'it\'s $HOME #1; "größe"' / "model_repository"
    shutil.copytree(small_repository, folder)
    return folder


@pytest.fixture(scope="module")
def own_server(own_repository, start):
    server = start("--model-repository", str(own_repository))
    server.wait_ready()
    return server


def put(repository, name, change=lambda folder: None):
    """As cdm-export does it: built beside its place, then renamed."""
    folder = repository / f".{name}.0000aaaa.export"
    shutil.copytree(repository / "tiny", folder)
    change(folder)
    old = repository / f".{name}.0000aaaa.old"
    if (repository / name).exists():
        (repository / name).rename(old)
    folder.rename(repository / name)
    shutil.rmtree(old, ignore_errors=True)


def rename_fingerprint(folder):
    manifest = folder / "1" / "export.json"
    contents = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(contents | {"fingerprint": "0123456789abcdef"}))


def served(server):
    entries = server.http.get("/v1/models").json()["data"]
    return {entry["id"]: entry["fingerprint"] for entry in entries}


def wait_until(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_model_is_added_replaced_and_taken_away(own_server, own_repository):
    server, repository = own_server, own_repository
    picture = server.picture("a fox", 7, 4)
    restarts = server.http.get("/readyz").json()["restarts"]
    assert list(served(server)) == ["tiny"]

    put(repository, "another")
    wait_until(lambda: "another" in served(server))
    assert list(served(server)) == ["another", "tiny"]
    fields = {"prompt": "a fox", "seed": 7, "num_inference_steps": 4}
    one, other = (
        server.generate(**fields, model=name).json()["data"][0] for name in ("tiny", "another")
    )
    assert one["seed"] == other["seed"] == 7

    # Replaced under load: every request is answered with a picture, and the same one.
    put(repository, "another", rename_fingerprint)
    with ThreadPoolExecutor(4) as pool:
        before = served(server)["another"]
        answers = []
        while served(server)["another"] == before:
            batch = [
                pool.submit(server.generate, **fields, model=name)
                for name in ("another", "tiny", "another", "tiny")
            ]
            answers += [future.result() for future in batch]
        assert {answer.status_code for answer in answers} == {200}
    assert served(server)["another"] == "0123456789abcdef"
    assert server.generate(**fields, model="another").status_code == 200

    shutil.rmtree(repository / "another")
    wait_until(lambda: "another" not in served(server))
    assert server.generate(**fields, model="another").status_code == 404
    assert server.picture("a fox", 7, 4) == picture
    assert server.http.get("/readyz").json()["restarts"] == restarts


def test_a_broken_model_is_told_and_changes_nothing(own_server, own_repository):
    server, repository = own_server, own_repository
    before = served(server)

    def damage(folder):
        rename_fingerprint(folder)
        (folder / "1" / "transformer.onnx").write_bytes(b"no graph")

    put(repository, "broken", damage)
    wait_until(lambda: "model broken cannot be loaded, it is not served" in server.printed)
    put(repository, "spoiled")
    wait_until(lambda: "spoiled" in served(server))
    put(repository, "spoiled", damage)
    wait_until(lambda: "model spoiled cannot be loaded, the one before stays" in server.printed)
    assert server.generate(prompt="a fox", model="spoiled").status_code == 200
    assert served(server) == before | {"spoiled": before["tiny"]}


@pytest.mark.slow
def test_a_model_that_dies_at_its_first_moment_is_told_and_keeps_no_other_from_loading(
    own_server, own_repository
):
    server, repository = own_server, own_repository
    before = served(server)
    stubs = {pid for pid, name in server.descendants().items() if name == STUB}

    def new():
        return {pid for pid, name in server.descendants().items() if name == STUB} - stubs

    put(repository, "doomed")
    wait_until(new)
    for pid in new():
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: "model doomed cannot be loaded, it is not served: " in server.printed)
    put(repository, "later")
    wait_until(lambda: "later" in served(server))
    put(repository, "doomed")
    # Later than at once, Triton finds it out by itself, and takes the model again.
    said = "doomed is loaded again when the server starts again"
    wait_until(lambda: said in server.printed or "doomed" in served(server))
    assert "later" in served(server) and served(server).items() >= before.items()
