"""Loads on the real server, among them one that refuses and one that dies."""

import json
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.cli import main
from benchmarks.load.client import Answer, Load, run_load
from benchmarks.load.search import KNOWN
from benchmarks.load.summary import summarise
from benchmarks.prompts import Requests, prompt


def load(url: str, out: Path, *more: str) -> int:
    return main(["load", url, "--seconds", "1", "--out", str(out), *more])


def result(folder: Path) -> dict:
    (path,) = folder.glob("load-*.json")
    return json.loads(path.read_text())


def test_clients_rates_and_the_search_are_measured_and_every_picture_is_compared(
    server, tmp_path: Path, capsys
) -> None:
    loads = ["--clients", "8", "--rates", "4", "--search", "--slo", "20000"]
    assert load(server.url, tmp_path, *loads) == 0
    found = result(tmp_path)
    closed, slow, *searched = found["points"]
    assert (closed["clients"], closed["rate"], slow["rate"]) == (8, None, 4.0)
    for point in found["points"]:
        assert point["compared"] == point["answered"] == point["requests"] > 0
        assert (point["wrong"], point["failed"], point["shed"]) == (0, 0, 0)
        assert 0 < point["latency_ms"]["p50"] <= point["latency_ms"]["p99"]
        assert 1 <= point["server"]["mean_batch"] <= 16
        assert point["holds"]
    assert closed["server"]["mean_batch"] > 1
    # Twenty seconds hold at any rate, so the search ends just below where it may look.
    assert found["highest_rate_within_slo"] == max(p["rate"] for p in searched)
    assert found["highest_rate_within_slo"] > 0.9 * closed["throughput"]
    assert (found["different_when_asked_alone_again"], found["stopped"]) == (0, None)
    assert "commit" in found["environment"]
    (path,) = tmp_path.glob("load-*.png")
    with Image.open(path) as chart:
        assert chart.width > chart.height
    assert "8 cl." in capsys.readouterr().out


def test_edits_among_them_are_right_too(server, tmp_path: Path) -> None:
    before = server.metric("cdm_engine_picture_seconds_count", model="tiny")
    assert load(server.url, tmp_path, "--clients", "4", "--edits") == 0
    (point,) = result(tmp_path)["points"]
    assert point["compared"] == point["requests"] > KNOWN / 2
    assert (point["wrong"], point["failed"], point["shed"]) == (0, 0, 0)
    # Each picture was encoded once, and is known when it comes again.
    encoded = server.metric("cdm_engine_picture_seconds_count", model="tiny") - before
    assert encoded == KNOWN / 2


def test_previews_are_timed(server, tmp_path: Path) -> None:
    assert load(server.url, tmp_path, "--clients", "2", "--stream") == 0
    (point,) = result(tmp_path)["points"]
    assert point["wrong"] == 0 < point["compared"]
    assert 0 < point["partial_ms"]["p50"] < point["latency_ms"]["p50"]


@pytest.mark.slow
def test_what_is_refused_is_counted_and_what_is_had_before_the_server_dies_is_kept(
    start, tmp_path: Path, capsys
) -> None:
    server = start("--queue-seconds", "0.01")
    server.wait_ready()

    def kill() -> None:
        while not list(tmp_path.glob("load-*.json")):
            time.sleep(0.05)
        server.process.kill()

    thread = threading.Thread(target=kill)
    thread.start()
    assert load(server.url, tmp_path, "--clients", "16", "2", "3") == 2
    thread.join()
    assert "stopped answering under 2 clients" in capsys.readouterr().err
    found = result(tmp_path)
    refused, died = found["points"]
    assert refused["shed"] > 0 == refused["failed"]
    assert any("429" in error for error in refused["errors"])
    assert refused["good"] <= refused["answered"] == refused["requests"] - refused["shed"]
    assert died["failed"] > 0
    assert "stopped answering" in found["stopped"]
    assert list(tmp_path.glob("load-*.png"))


def test_says_when_every_request_is_refused(server, tmp_path: Path, capsys) -> None:
    assert load(server.url, tmp_path, "--model", "unknown") == 2
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
    assert load(url, tmp_path) == 2
    assert said in capsys.readouterr().err


def test_refuses_a_load_of_nothing(capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["load", "http://127.0.0.1:9", "--rates", "0"])
    assert stopped.value.code == 2
    assert "expected a number above 0" in capsys.readouterr().err


def test_says_when_the_result_cannot_be_written(tmp_path: Path, capsys) -> None:
    (tmp_path / "file").touch()
    assert load("http://127.0.0.1:9", tmp_path / "file") == 2
    assert f"--out: cannot make {tmp_path}/file" in capsys.readouterr().err


def test_an_answer_without_a_picture_is_a_failure(tmp_path: Path, capsys) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), WebSite) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        assert load(f"http://127.0.0.1:{site.server_port}", tmp_path) == 2
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


def answer(request: int, picture: bytes, ended: float, sent: float = 0.0) -> Answer:
    return Answer(request, 0.0, sent, ended, 200, b"\x89PNG" + picture)


def test_only_right_pictures_in_time_are_good() -> None:
    answers = [
        answer(0, b"a", 0.2),
        answer(1, b"b", 0.2),  # wrong
        answer(2, b"c", 1.0, sent=0.5),  # late
        answer(3, b"d", 0.3),  # unknown
        Answer(4, due=0.0, sent=0.0, ended=0.1, status=429, content=b"busy"),
        Answer(5, due=0.0, sent=0.0, ended=2.0, status=None, error="gone"),
    ]
    known = {0: b"\x89PNGa", 1: b"\x89PNGa", 2: b"\x89PNGc"}
    point = summarise(answers, known, slo_ms=500, rate=3.0)
    assert (point.requests, point.answered, point.shed, point.failed) == (6, 4, 1, 1)
    assert (point.compared, point.wrong, point.good) == (3, 1, 2)
    assert (point.throughput, point.goodput) == (2.0, 1.0)
    assert point.latency_ms["p50"] == 250.0
    assert point.client_lag_ms["p99"] == pytest.approx(475.0)
    assert point.errors == ("429: busy", "no answer: gone")
    assert not point.holds


def test_an_open_loop_asks_as_often_as_it_should_however_slow_the_answers(server) -> None:
    body = json.dumps({"prompt": "an owl", "seed": 1}).encode()
    answers = run_load(server.url, Load(rate=40), lambda _: body, count(), seconds=2)
    assert 55 < len(answers) < 105  # 80, and three deviations
    due = [answer.due for answer in sorted(answers, key=lambda a: a.request)]
    assert due == sorted(due)
    assert due[-1] - due[0] < 2
    assert len({answer.picture for answer in answers if answer.status == 200}) == 1


class Slow(BaseHTTPRequestHandler):
    """Is full at first, then answers after a second."""

    protocol_version = "HTTP/1.1"
    asked = 0

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        type(self).asked += 1
        if self.asked == 1:
            self.send_response(429)
            self.send_header("retry-after", "1")
        else:
            time.sleep(1)
            self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        with suppress(BrokenPipeError):  # the last one leaves
            self.wfile.write(b"{}")

    def log_message(self, *words: object) -> None:
        pass


def test_clients_come_back_when_told_and_leave_when_tired() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Slow) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        url, body = f"http://127.0.0.1:{site.server_port}", Requests().body
        first, second = run_load(url, Load(clients=1), body, iter(range(2)), polite=True)
        (tired,) = run_load(url, Load(clients=1), body, iter([2]), patience=lambda _: 0.1)
        site.shutdown()
    assert (first.status, first.retry_after, second.status) == (429, 1.0, 200)
    assert second.sent - first.ended >= 1.0
    assert (tired.status, tired.error) == (None, "left") and tired.latency < 1


def test_prompts_come_again_only_after_840_and_fresh_ones_never() -> None:
    assert len({prompt(number) for number in range(840)}) == 840
    assert prompt(840) == prompt(0)
    assert Requests().fields(840)["prompt"] != Requests().fields(0)["prompt"]
    assert Requests(known=48).fields(48) == Requests(known=48).fields(0)


def test_steps_are_asked_for_in_turn() -> None:
    requests = Requests(steps=(2, 8))
    asked = [requests.fields(number)["num_inference_steps"] for number in range(4)]
    assert asked == [2, 8, 2, 8]
