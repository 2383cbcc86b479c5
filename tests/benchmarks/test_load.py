"""Loads on the real server, among them one that refuses and one that dies."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.answers import Answer, summarise
from benchmarks.cli import main
from benchmarks.endpoint import Endpoint
from benchmarks.prompts import prompt
from benchmarks.thin import Load, run_thin

THIN = ["--client", "thin", "--seconds", "1"]


def load(url: str, out: Path, *more: str) -> int:
    return main(["load", url, *THIN, "--out", str(out), *more])


def test_clients_rates_and_the_search_are_measured_and_every_picture_is_compared(
    server, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "load.json"
    loads = ["--clients", "8", "--rates", "4", "--search", "--slo", "20000"]
    assert load(server.url, out, *loads) == 0
    result = json.loads(out.read_text())
    closed, slow, *searched = result["points"]
    assert (closed["clients"], closed["rate"], slow["rate"]) == (8, None, 4.0)
    for point in result["points"]:
        assert point["compared"] == point["answered"] == point["requests"] > 0
        assert (point["wrong"], point["failed"], point["shed"]) == (0, 0, 0)
        assert 0 < point["latency_ms"]["p50"] <= point["latency_ms"]["p99"]
        assert 1 <= point["server"]["mean_batch"] <= 16
        assert point["holds"]
    assert closed["server"]["mean_batch"] > 1
    # Twenty seconds hold at any rate, so the search ends just below where it may look.
    assert result["highest_rate_within_slo"] == max(p["rate"] for p in searched)
    assert result["highest_rate_within_slo"] > 0.9 * closed["throughput"]
    assert (result["different_when_asked_alone_again"], result["stopped"]) == (0, None)
    assert "commit" in result["environment"]
    with Image.open(tmp_path / "load.png") as chart:
        assert chart.width > chart.height
    assert "8 cl." in capsys.readouterr().out


class Impatient(BaseHTTPRequestHandler):
    """Says that it keeps the connection and ends it."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")
        self.close_connection = True


def test_a_connection_that_the_server_ended_is_opened_again() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Impatient) as stub:
        threading.Thread(target=stub.serve_forever, daemon=True).start()
        endpoint = Endpoint(f"http://127.0.0.1:{stub.server_port}")
        connection = endpoint.connect()
        for _ in range(2):
            assert endpoint.generate(connection, b"{}").read() == b"{}"
            time.sleep(0.2)
        connection.close()
        stub.shutdown()


def test_previews_are_timed(server, tmp_path: Path) -> None:
    assert load(server.url, tmp_path / "load.json", "--clients", "2", "--stream") == 0
    (point,) = json.loads((tmp_path / "load.json").read_text())["points"]
    assert point["wrong"] == 0 < point["compared"]
    assert 0 < point["partial_ms"]["p50"] < point["latency_ms"]["p50"]


def test_what_is_refused_is_counted_and_what_is_had_before_the_server_dies_is_kept(
    start, tmp_path: Path, capsys
) -> None:
    server = start("--queue-seconds", "0.01")
    server.wait_ready()
    out = tmp_path / "load.json"

    def kill() -> None:
        while not out.exists():
            time.sleep(0.05)
        server.process.kill()

    thread = threading.Thread(target=kill)
    thread.start()
    assert load(server.url, out, "--clients", "16", "2", "3") == 2
    thread.join()
    assert "stopped answering under 2 clients" in capsys.readouterr().err
    result = json.loads(out.read_text())
    refused, died = result["points"]
    assert refused["shed"] > 0 == refused["failed"]
    assert any("429" in error for error in refused["errors"])
    assert refused["good"] <= refused["answered"] == refused["requests"] - refused["shed"]
    assert died["failed"] > 0
    assert "stopped answering" in result["stopped"]
    assert (tmp_path / "load.png").exists()


def test_says_when_every_request_is_refused(server, tmp_path: Path, capsys) -> None:
    assert load(server.url, tmp_path / "load.json", "--model", "unknown") == 2
    assert "48 of 48 requests failed" in (line := capsys.readouterr().err)
    assert "model_not_found" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://127.0.0.1:9", "http://127.0.0.1:9 does not answer"),
        ("127.0.0.1:8000", "'127.0.0.1:8000' is not a URL; expected the root"),
        ("http://127.0.0.1:port", "is not a URL"),
    ],
)
def test_says_when_the_url_is_wrong(tmp_path: Path, capsys, url: str, said: str) -> None:
    assert load(url, tmp_path / "load.json") == 2
    assert said in capsys.readouterr().err


def test_refuses_a_load_of_nothing(capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["load", "http://127.0.0.1:9", "--rates", "0"])
    assert stopped.value.code == 2
    assert "expected a number above 0" in capsys.readouterr().err


def test_says_when_the_result_cannot_be_written(server, tmp_path: Path, capsys) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "load.json"
    assert load(server.url, out, "--clients", "1") == 2
    assert f"cannot write {out}" in capsys.readouterr().err


def test_an_answer_without_a_picture_is_a_failure(tmp_path: Path, capsys) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), WebSite) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        assert load(f"http://127.0.0.1:{site.server_port}", tmp_path / "load.json") == 2
        site.shutdown()
    assert "the first answer: 200: <html>" in capsys.readouterr().err


class WebSite(BaseHTTPRequestHandler):
    """A server of something else."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "6")
        self.end_headers()
        self.wfile.write(b"<html>")

    def log_message(self, *words: object) -> None:
        pass


def test_only_right_pictures_in_time_are_good() -> None:
    right = Answer(0, due=0.0, sent=0.0, ended=0.2, status=200, picture="a")
    wrong = Answer(1, due=0.0, sent=0.0, ended=0.2, status=200, picture="b")
    late = Answer(2, due=0.0, sent=0.5, ended=1.0, status=200, picture="c")
    unknown = Answer(3, due=0.0, sent=0.0, ended=0.3, status=200, picture="d")
    shed = Answer(4, due=0.0, sent=0.0, ended=0.1, status=429, error="busy")
    lost = Answer(5, due=0.0, sent=0.0, ended=2.0, status=None, error="gone")
    known = {0: "a", 1: "a", 2: "c"}
    point = summarise([right, wrong, late, unknown, shed, lost], known, slo_ms=500, rate=3.0)
    assert (point.requests, point.answered, point.shed, point.failed) == (6, 4, 1, 1)
    assert (point.compared, point.wrong, point.good) == (3, 1, 2)
    assert (point.throughput, point.goodput) == (2.0, 1.0)
    assert point.latency_ms["p50"] == 250.0
    assert point.client_lag_ms["p99"] == pytest.approx(475.0)
    assert point.errors == ("429: busy", "no answer: gone")
    assert not point.holds


def test_an_open_loop_asks_as_often_as_it_should_however_slow_the_answers(server) -> None:
    body = json.dumps({"prompt": "an owl", "seed": 1}).encode()
    answers = run_thin(Endpoint(server.url), Load(rate=40), lambda _: body, count(), seconds=2)
    assert 55 < len(answers) < 105  # 80, and three deviations
    due = [answer.due for answer in sorted(answers, key=lambda a: a.request)]
    assert due == sorted(due)
    assert due[-1] - due[0] < 2
    assert len({answer.picture for answer in answers if answer.status == 200}) == 1


def test_prompts_come_again_only_after_840() -> None:
    assert len({prompt(number) for number in range(840)}) == 840
    assert prompt(840) == prompt(0)


@pytest.mark.slow
def test_aiperf_sends_the_same_requests(server, tmp_path: Path) -> None:
    out = tmp_path / "load.json"
    loads = ["--client", "aiperf", "--clients", "2", "--rates", "6", "--seconds", "4"]
    assert main(["load", server.url, *loads, "--stream", "--out", str(out)]) == 0
    for point in json.loads(out.read_text())["points"]:
        assert point["compared"] == point["requests"] > 4
        assert (point["wrong"], point["failed"]) == (0, 0)
        assert point["partial_ms"]["p50"] < point["latency_ms"]["p50"]


@pytest.mark.slow
def test_aiperf_is_left_with_what_it_has_when_the_server_dies(
    start, tmp_path: Path, capsys
) -> None:
    server = start()
    server.wait_ready()
    out = tmp_path / "load.json"

    def kill() -> None:
        while not out.exists():
            time.sleep(0.05)
        time.sleep(12)
        server.process.kill()

    thread = threading.Thread(target=kill)
    thread.start()
    loads = ["--client", "aiperf", "--clients", "2", "3", "--seconds", "20"]
    assert main(["load", server.url, *loads, "--out", str(out)]) == 2
    thread.join()
    assert "stopped answering under 3 clients" in capsys.readouterr().err
    assert len(json.loads(out.read_text())["points"]) == 2
