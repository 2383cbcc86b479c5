"""A server that cannot start says why in one line and exits with 2."""

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from cdm_serve.server import listen
from cdm_serve.settings import Settings
from cdm_serve.triton.launcher import _working_folder

ROOT = Path(__file__).parents[2]


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "cdm_serve", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "300"} | environment,
        timeout=300,
    )


def refusal(result):
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("cdm-serve: ")
    return line


def test_a_port_in_use(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refusal(run("--port", port, "--model-repository", tmp_path))
    assert f"127.0.0.1:{port}" in line
    assert "--port" in line


def test_answers_are_not_held_back():
    """asyncio sets TCP_NODELAY only where the socket says that it is TCP."""
    with listen(Settings(port=0)) as listener:
        listener.listen()

        async def accepted():
            port = listener.getsockname()[1]
            done = asyncio.get_running_loop().create_future()

            async def serve(reader, writer):
                peer = writer.get_extra_info("socket")
                done.set_result(peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
                writer.close()

            async with await asyncio.start_server(serve, sock=listener):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                try:
                    return await done
                finally:
                    writer.close()
                    await writer.wait_closed()

        assert asyncio.run(accepted())


def test_no_repository(tmp_path):
    line = refusal(run("--port", 0, "--model-repository", tmp_path / "none"))
    assert "does not exist" in line
    assert "cdm-export STUDENT --to onnx --out" in line


def test_an_empty_repository(tmp_path):
    line = refusal(run("--port", 0, "--model-repository", tmp_path))
    assert "holds no model" in line
    assert "cdm-export" in line


def test_a_model_that_was_never_exported(tmp_path):
    """What a fresh clone holds: the files in git, without the weights."""
    (tmp_path / "emoji" / "1").mkdir(parents=True)
    shutil.copy(ROOT / "export/triton/config.pbtxt", tmp_path / "emoji")
    shutil.copy(ROOT / "export/triton/model.py", tmp_path / "emoji" / "1")
    line = refusal(run("--port", 0, "--model-repository", tmp_path))
    assert "export.json is missing" in line
    assert f"cdm-export STUDENT --to onnx --out {tmp_path}" in line


def test_an_export_that_does_not_match(repository, tmp_path):
    shutil.copytree(repository, tmp_path / "repository")
    with (tmp_path / "repository" / "tiny" / "1" / "transformer.onnx").open("ab") as file:
        file.write(b"x")
    line = refusal(run("--port", 0, "--model-repository", tmp_path / "repository"))
    assert "transformer.onnx is not the file that was exported" in line
    assert "cdm-export" in line


def test_why_a_model_does_not_load(repository, tmp_path):
    """Its own line, though everything else of Triton's log is not shown."""
    shutil.copytree(repository / "tiny", tmp_path / "tiny")
    shutil.copy(tmp_path / "tiny" / "configs" / "gpu.pbtxt", tmp_path / "tiny" / "config.pbtxt")
    config = tmp_path / "tiny" / "config.pbtxt"
    config.write_text(config.read_text().replace("KIND_GPU gpus: [ 0 ]", "KIND_CPU"))
    result = run("--port", 0, "--model-repository", tmp_path)
    assert result.returncode == 2
    line = result.stderr.splitlines()[-1]
    assert "cdm-serve: model tiny cannot be loaded:" in line
    assert "this onnxruntime has no CUDAExecutionProvider: pip uninstall onnxruntime" in line


def test_a_folder_that_triton_cannot_load(repository, tmp_path):
    shutil.copytree(repository / "tiny", tmp_path / "my model")
    line = refusal(run("--port", 0, "--model-repository", tmp_path))
    assert f"{tmp_path / 'my model'} has a name that Triton cannot load: rename" in line


def test_tritons_own_folder_is_one_that_a_shell_leaves_alone(tmp_path, monkeypatch):
    unsafe = tmp_path / "a b"
    unsafe.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(unsafe))
    folder = _working_folder()
    folder.rmdir()
    assert not folder.is_relative_to(unsafe)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert _working_folder().parent == tmp_path


def test_no_libpython(repository):
    """The standard library is made to look for the file where it is not."""
    code = (
        "import sys, sysconfig, ctypes.util\n"
        "sysconfig.get_config_vars()['LIBDIR'] = '/nonexistent'\n"
        "ctypes.util.find_library = lambda name: None\n"
        "from cdm_serve.cli import main\n"
        f"sys.exit(main(['--port', '0', '--model-repository', {str(repository)!r}]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300
    )
    line = refusal(result)
    assert "libpython3.11.so.1.0 is missing" in line
    assert "apt install libpython3.11" in line


def test_an_external_triton_that_is_not_there():
    result = run("--port", 0, "--triton", "127.0.0.1:9", "--start-seconds", "1")
    assert result.returncode == 2
    assert "Triton at 127.0.0.1:9 was not ready within 1 seconds" in result.stderr


def test_a_wrong_option():
    assert "--port is 'x': it must be a valid integer" in refusal(run("--port=x"))
    result = run("--nonsense")
    assert result.returncode == 2
    assert "unrecognized arguments: --nonsense" in result.stderr


def test_beyond_this_machine_only_with_keys():
    line = refusal(run("--host", "0.0.0.0", "--port", 0))
    assert "would let in everyone" in line
    assert "--without-keys" in line


def test_a_wrong_setting_in_the_environment():
    line = refusal(run(CDM_SERVE_PORT="abc"))
    assert "CDM_SERVE_PORT is 'abc': it must be a valid integer" in line


def test_help_is_short():
    result = run("--help", COLUMNS="100")
    assert result.returncode == 0
    assert len(result.stdout.splitlines()) < 80
    for flag in ("--port", "--model-repository", "--api-key-file", "--config"):
        assert flag in result.stdout
    assert "--api-keys" not in result.stdout
    assert "--engine-gpus GPUS" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 100


def test_a_folder_for_links_that_is_none(tmp_path):
    line = refusal(run("--port", 0, "--triton", "127.0.0.1:9", "--link-folder", tmp_path / "none"))
    assert "nothing can be written to --link-folder" in line
    assert "No such file" in line
