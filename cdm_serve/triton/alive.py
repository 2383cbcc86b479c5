"""Whether every model of a Triton answers: the health check of a container, run inside it.

Triton's own health stays good when the process of a python model dies or hangs, and it never starts
it again. So each model is asked for its description. Does one not give it, Triton is killed, which
makes the container end and be started again: with a hung model there is nothing to wait for.

Standard library only, since it runs in NVIDIA's image.

Usage: python3 -m cdm_serve.triton.alive URL [--end-children-of PID]
"""

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

SECONDS = 10.0
DESCRIBE = {"message": json.dumps({"command": "describe"})}


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when all models answer, 1 when Triton is not ready yet or has been killed."""
    parser = argparse.ArgumentParser(prog="alive", description="ask every model of a Triton")
    parser.add_argument("url", help="Triton's HTTP address")
    parser.add_argument("--end-children-of", type=int, metavar="PID")
    options = parser.parse_args(arguments)
    try:
        models = _models(options.url)
    except (OSError, ValueError) as error:
        print(f"Triton is not ready: {error}")
        return 1
    silent = [model for model in models if not _answers(options.url, model)]
    if silent and options.end_children_of is not None:
        for child in _children(options.end_children_of):
            os.kill(child, signal.SIGKILL)
    if silent:
        print(f"no answer from {', '.join(silent)}")
    return 1 if silent or not models else 0


def _models(url: str) -> list[str]:
    return [
        entry["name"]
        for entry in _post(f"{url}/v2/repository/index", {})
        if entry.get("state") == "READY"
    ]


def _answers(url: str, model: str) -> bool:
    try:
        return "message" in _post(f"{url}/v2/models/{model}/generate", DESCRIBE)
    except HTTPError:
        # The model broke, or it was taken away at this moment.
        return model not in _models(url)
    except (OSError, ValueError):
        return False


def _post(url: str, body: object) -> Any:
    request = Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urlopen(request, timeout=SECONDS) as response:
        return json.load(response)


def _children(parent: int) -> list[int]:
    """Processes whose parent this is."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            found.append(int(stat.parent.name))
    return found


if __name__ == "__main__":
    sys.exit(main())
