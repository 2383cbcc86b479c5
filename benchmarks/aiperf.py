"""AIPerf as the client, in an environment of its own: it is large and pins what we do not.

It sends our requests as they are and writes every answer down, so that each picture can be looked
at afterwards. Nothing is fetched when it runs: it counts words with a tokenizer written here.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers

from benchmarks.answers import Answer
from benchmarks.endpoint import Endpoint, picture
from benchmarks.errors import BenchError
from benchmarks.thin import Load

VERSION = "0.13.0"
_GRACE = 20  # seconds for answers after the last request; what is still missing has failed
_START = 90  # seconds AIPerf may take beside the load itself


def environment(say: Callable[[str], None]) -> Path:
    """Return the Python that has AIPerf, which is installed first if need be (1.2 GB).

    Raises:
        BenchError: it cannot be installed.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cdm-serve"
    folder = cache / f"aiperf-{VERSION}"
    python, stamp = folder / "bin" / "python", folder / "complete"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / f"aiperf-{VERSION}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not stamp.exists():
                say(f"installing AIPerf {VERSION} in {folder}, once: 1.2 GB, a few minutes")
                shutil.rmtree(folder, ignore_errors=True)
                _run([sys.executable, "-m", "venv", folder])
                _run([python, "-m", "pip", "install", "--quiet", f"aiperf=={VERSION}"])
                stamp.touch()
    except OSError as error:
        raise BenchError(f"AIPerf cannot be installed in {folder}: {error}") from None
    return python


def run_aiperf(
    python: Path, endpoint: Endpoint, load: Load, bodies: Sequence[dict[str, Any]], seconds: float
) -> tuple[list[Answer], float]:
    """Send the bodies in turn, again and again, for so many seconds.

    Returns:
        The answers, in order of sending, and the CPU-seconds that AIPerf took.

    Raises:
        BenchError: AIPerf has written nothing down.
    """
    before = _child_cpu()
    with tempfile.TemporaryDirectory(prefix="cdm-bench-") as name:
        folder = Path(name)
        sessions = [{"session_id": str(i), "payloads": [body]} for i, body in enumerate(bodies)]
        (folder / "requests.json").write_text(json.dumps({"data": sessions}))
        _write_tokenizer(folder / "tokenizer")
        command: list[str | Path] = [
            python,
            "-m",
            "aiperf",
            *_profile(endpoint, load, folder, seconds),
        ]
        if bodies[0].get("stream"):
            command.append("--streaming")
        said = _bounded(command, folder, seconds + _GRACE + _START)
        answers = [
            _answer(json.loads(line), open_loop=load.rate is not None)
            for line in _records(folder / "out")
        ]
        if not answers:
            raise BenchError(f"AIPerf {VERSION} has measured nothing; it ends with: {said}")
    return sorted(answers, key=lambda a: a.due), _child_cpu() - before


def _profile(endpoint: Endpoint, load: Load, folder: Path, seconds: float) -> list[str]:
    arguments = ["profile", "-m", "any", "--url", endpoint.url]
    arguments += ["--endpoint-type", "image-generation", "--export-level", "raw", "--ui", "none"]
    arguments += ["--input-file", f"{folder}/requests.json", "--custom-dataset-type", "inputs-json"]
    arguments += ["--tokenizer", f"{folder}/tokenizer", "--output-artifact-dir", f"{folder}/out"]
    arguments += ["--benchmark-duration", f"{seconds:g}", "--benchmark-grace-period", f"{_GRACE}"]
    # One of each: more processes only take more of the cores that the server may need.
    arguments += ["--workers-max", "1", "--record-processors", "1", "--random-seed", "1"]
    arguments += ["--no-gpu-telemetry", "--no-server-metrics"]
    if key := os.environ.get("OPENAI_API_KEY"):
        arguments += ["--api-key", key]
    if load.rate is None:
        return [*arguments, "--concurrency", f"{load.clients}"]
    return [*arguments, "--request-rate", f"{load.rate:.6g}", "--arrival-pattern", "poisson"]


def _bounded(command: Sequence[str | Path], folder: Path, seconds: float) -> str:
    """Run it, end all of it when the time is over or we are stopped, and return its last line."""
    # It finds its tokenizer folder only where it believes the hub can be reached.
    online = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "COLUMNS")}
    log = folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, cwd=folder, env=online, start_new_session=True
        )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            pass
        finally:
            if process.poll() is None:
                os.killpg(process.pid, 9)
                process.wait()
    return _last_line(log.read_text(errors="replace"))


def _records(folder: Path) -> list[str]:
    """The lines of the whole export or, where the run failed, of its parts."""
    whole = folder / "profile_export_raw.jsonl"
    files = [whole] if whole.exists() else sorted((folder / "raw_records").glob("*.jsonl"))
    return [line for file in files for line in file.read_text().splitlines() if line.strip()]


def _answer(record: dict[str, Any], open_loop: bool) -> Answer:
    about, responses = record["metadata"], record.get("responses") or []
    sent, ended = about["request_start_ns"] / 1e9, about["request_end_ns"] / 1e9
    error, found, partial = record.get("error"), None, None
    if responses and not error:
        found = picture(_content(responses[-1]).encode())
        if len(responses) > 1:
            partial = sent + (responses[0]["perf_ns"] - record["start_perf_ns"]) / 1e9
    return Answer(
        request=int(about["conversation_id"]),
        due=about["credit_issued_ns"] / 1e9 if open_loop else sent,
        sent=sent,
        ended=ended,
        status=record.get("status"),
        picture=found,
        partial=partial,
        error=str(error.get("message", error)) if error else "",
    )


def _content(response: dict[str, Any]) -> str:
    """The text of an answer, or the data of an event."""
    if "packets" not in response:
        return str(response.get("text", ""))
    return "".join(str(p["value"]) for p in response["packets"] if p["name"] == "data")


def _write_tokenizer(folder: Path) -> None:
    """AIPerf wants one, though nothing here is counted in tokens."""
    words = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    folder.mkdir()
    words.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def _run(command: Sequence[str | Path]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"AIPerf cannot be installed: {_last_line(done.stderr)}")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "ERROR" in line]
    return (errors or lines or ["nothing"])[-1][:300]


def _child_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
