"""The engine without any server, in a process of its own: the measure of what a server costs.

``python -m benchmarks.bare REPOSITORY MODEL COSTS`` warms up as Triton's process does, then obeys
one JSON line after another: a ``load`` (see ``loops``) and ``seconds``. Each is answered by a line
with the tally. COSTS is what the server's engine measured of itself, as JSON, so that both
make batches of the same sizes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.exported import Exported, find_export
from benchmarks.loops import Load, run_load
from benchmarks.worker import Order, Worker, cpu_seconds, obey, worker
from cdm_serve.engine.costs import Costs, Seconds, measure
from cdm_serve.engine.scheduler import Scheduler


class BareEngine:
    """The other end of the process."""

    def __init__(self, process: Worker) -> None:
        self._process = process

    def run(self, load: Load, seconds: float) -> dict[str, Any]:
        """Put a load on it for a time."""
        return self._process.ask({"load": load, "seconds": seconds})


@contextmanager
def bare_engine(exported: Exported, costs: dict[str, Any]) -> Iterator[BareEngine]:
    """A ``BareEngine``, warmed up, and ended afterwards."""
    where = str(exported.folder.parent), exported.folder.name
    with worker("benchmarks.bare", *where, json.dumps(costs)) as process:
        yield BareEngine(process)


def main(repository: str, model: str, measured: str) -> None:
    """Obey the lines on standard input until it ends."""
    exported = find_export(Path(repository), model)
    pipeline = exported.pipeline()
    own = measure(pipeline, exported.max_batch, float(exported.parameters["warm_up_seconds"]))
    costs = costs_of(json.loads(measured), own.text)
    scheduler = Scheduler(pipeline, costs, exported.cache_bytes)
    size = pipeline.manifest.default_size

    def answer(order: Order) -> dict[str, Any]:
        begin = cpu_seconds()
        tally = run_load(scheduler, size, order["load"], order["seconds"])
        spent = 1e3 * (cpu_seconds() - begin) / tally.answered
        return {**tally.to_json(), "cpu_milliseconds": {"engine": round(spent, 3)}}

    obey({}, answer)
    scheduler.close()


def costs_of(described: dict[str, Any], text: Seconds) -> Costs:
    """An engine's description of its costs, which tells of ``text`` only what one prompt takes."""
    sizes = {size: each for size, each in described.items() if size != "text"}

    def by_batch(stage: str) -> dict[str, Seconds]:
        return {
            size: {int(batch): seconds for batch, seconds in each[stage].items()}
            for size, each in sizes.items()
        }

    return Costs(text, by_batch("step"), by_batch("decode"))


if __name__ == "__main__":
    main(*sys.argv[1:])
