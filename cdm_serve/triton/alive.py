"""Whether every model of a Triton answers: the health check of a container, run inside it.

Triton's own health stays good when the process of a python model dies or hangs, and it never starts
it again. So each model is asked for its description. Does one say that it is in trouble, or give
none while nothing is being computed, Triton is killed, which makes the container end and be started
again: with a hung model there is nothing to wait for. Where a model is only slow it is left alone.

Standard library only, since it runs in NVIDIA's image.

Usage: python3 -m cdm_serve.triton.alive URL [--end-children-of PID]
"""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from cdm_serve.triton.processes import AT_WORK, children, cpu_seconds

SECONDS = 10.0
DESCRIBE = {"message": json.dumps({"command": "describe"})}
SILENT = f"no answer in {SECONDS:g} s"


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when all models answer, 1 when Triton is not ready yet, is slow or has been killed."""
    parser = argparse.ArgumentParser(prog="alive", description="ask every model of a Triton")
    parser.add_argument("url", help="Triton's HTTP address")
    parser.add_argument("--end-children-of", type=int, metavar="PID")
    options = parser.parse_args(arguments)
    tritons = children(options.end_children_of) if options.end_children_of is not None else []
    begin, used = time.monotonic(), _used(tritons)
    try:
        models = _models(options.url)
    except (OSError, ValueError) as error:
        print(f"Triton is not ready: {error}")
        return 1
    faults = {model: fault for model in models if (fault := _fault(options.url, model))}
    slow = _used(tritons) - used > AT_WORK * (time.monotonic() - begin)
    if any(fault != SILENT or not slow for fault in faults.values()):
        for child in tritons:
            os.kill(child, signal.SIGKILL)
    for model, fault in faults.items():
        print(f"{model}: {fault}")
    return 1 if faults or not models else 0


def _used(tritons: list[int]) -> float:
    """Seconds of the processor, of the models' processes."""
    return sum(cpu_seconds(stub) for triton in tritons for stub in children(triton))


def _models(url: str) -> list[str]:
    return [
        entry["name"]
        for entry in _post(f"{url}/v2/repository/index", {})
        if entry.get("state") == "READY"
    ]


def _fault(url: str, model: str) -> str | None:
    """What is wrong with a model."""
    try:
        report = json.loads(_post(f"{url}/v2/models/{model}/generate", DESCRIBE)["message"])
    except HTTPError as error:
        # The model broke, or it was taken away at this moment.
        return None if model not in _models(url) else str(error)
    except TimeoutError:
        return SILENT
    except (OSError, ValueError, KeyError) as error:
        return str(error)
    return None if report["kind"] == "report" else str(report.get("text"))


def _post(url: str, body: object) -> Any:
    request = Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urlopen(request, timeout=SECONDS) as response:
        return json.load(response)


if __name__ == "__main__":
    sys.exit(main())
