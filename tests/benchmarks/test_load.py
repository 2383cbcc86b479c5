import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from benchmarks.cli import main


def test_measures_a_server_and_writes_the_result(server, tmp_path: Path, capsys) -> None:
    out = tmp_path / "load.json"
    load = ["--requests", "12", "--concurrency", "3", "--steps", "2"]
    assert main(["load", server.url, *load, "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert (result["answered"], result["failed"]) == (12, 0)
    assert 0 < result["latency_ms"]["p50"] <= result["latency_ms"]["p99"]
    assert result["images_per_second"] == pytest.approx(12 / result["seconds"], rel=0.01)
    assert "3 clients" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["load.json"]


def test_says_when_every_request_is_refused(server, capsys) -> None:
    assert main(["load", server.url, "--requests", "2", "--model", "unknown"]) == 2
    assert "all 2 requests failed" in (line := capsys.readouterr().err)
    assert "model_not_found" in line


def test_says_when_nobody_answers(capsys) -> None:
    assert main(["load", "http://127.0.0.1:9", "--requests", "1"]) == 2
    assert "http://127.0.0.1:9 does not answer" in capsys.readouterr().err


def test_refuses_a_load_of_nothing(capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["load", "http://127.0.0.1:9", "--requests", "0"])
    assert stopped.value.code == 2
    assert "expected a whole number from 1" in capsys.readouterr().err


def test_says_when_the_result_cannot_be_written(server, tmp_path: Path, capsys) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "load.json"
    assert main(["load", server.url, "--requests", "1", "--out", str(out)]) == 2
    assert f"cannot write {out}" in capsys.readouterr().err


def test_an_answer_without_a_picture_is_a_failure(capsys) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), WebSite) as site:
        Thread(target=site.serve_forever, daemon=True).start()
        assert main(["load", f"http://127.0.0.1:{site.server_port}", "--requests", "1"]) == 2
        site.shutdown()
    assert "the first answer: <html>" in capsys.readouterr().err


class WebSite(BaseHTTPRequestHandler):
    """A server of something else."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>")

    def log_message(self, *words: object) -> None:
        pass
