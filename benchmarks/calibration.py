"""What the simulation is told of a real server: its costs, and two runs that they are held to."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bare import costs_of
from benchmarks.errors import BenchError
from benchmarks.exported import Exported
from benchmarks.served import Served
from benchmarks.simulation import Arrival, saturated, scaled, simulate
from cdm_serve.engine.costs import Costs, Seconds, measure

CLIENTS = 16
ROUNDS = 2
COUNT = 2000  # pictures in a saturated simulation


@dataclass(frozen=True)
class Calibration:
    """Seconds of the stages by batch, and what they leave out.

    ``pace`` is by how much everything is slower when the machine is full, with the gateway and the
    client on the same cores; ``extra`` is what a picture takes beyond its stages, in seconds.
    """

    model: str
    size: str
    steps: int
    text: Seconds
    step: Seconds
    decode: Seconds
    pace: float = 1.0
    extra: float = 0.0

    @property
    def costs(self) -> Costs:
        """For the simulation, ``pace`` applied."""
        return scaled(Costs(self.text, {self.size: self.step}, {self.size: self.decode}), self.pace)

    @property
    def capacity(self) -> float:
        """Pictures a second of a full machine."""
        return saturated(self.costs, CLIENTS, self.steps, self.size, COUNT)

    @property
    def alone(self) -> float:
        """Seconds of one picture on an idle machine."""
        (only,) = simulate(self.costs, [Arrival(0.0, self.steps, self.size)])
        return only.latency + self.extra

    def to_json(self) -> dict[str, Any]:
        """See ``read_calibration``."""
        return asdict(self)


def described(exported: Exported, server: Served) -> Calibration:
    """The engine's own measurement of itself at start."""
    manifest = exported.manifest
    size, steps = manifest.default_size, manifest.default_steps
    costs = costs_of(server.costs(exported.folder.name), text_seconds(exported))
    return Calibration(
        exported.folder.name, size, steps, costs.text, costs.step[size], costs.decode[size]
    )


def calibrated(stages: Calibration, server: Served, seconds: float) -> Calibration:
    """Held to one client's latency and sixteen clients' throughput, in ``ROUNDS`` of each.

    Raises:
        BenchError: the server failed, or ``seconds`` are too few for a picture.
    """
    alone, rates = [], []
    for _ in range(ROUNDS):
        single = server.run([stages.steps], seconds, fresh=True)
        busy = server.run([stages.steps] * CLIENTS, seconds, fresh=True)
        if not single["milliseconds"] or not busy["milliseconds"]:
            raise BenchError(f"no picture was finished in {seconds:g} s; give more --seconds")
        alone.append(single["milliseconds"]["p50"] / 1e3)
        rates.append(busy["images_per_second"])
    paced = replace(stages, pace=stages.capacity / float(np.mean(rates)))
    return replace(paced, extra=float(np.mean(alone)) - paced.alone)


def text_seconds(exported: Exported) -> Seconds:
    """Of the text encoder by batch, which a server does not tell."""
    pipeline = exported.pipeline()
    return measure(pipeline, exported.max_batch, float(exported.parameters["warm_up_seconds"])).text


def read_calibration(path: Path, runtime: str | None) -> Calibration:
    """From what ``cdm-bench plan --out`` wrote, or ``cdm-bench engine --out`` for one runtime.

    The latter knows nothing of a gateway: ``pace`` is 1 and ``extra`` is 0.

    Raises:
        BenchError: it is neither.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        if "calibration" in result:
            found = result["calibration"]
            by_batch = {
                stage: {int(batch): seconds for batch, seconds in found[stage].items()}
                for stage in ("text", "step", "decode")
            }
            return Calibration(**{**found, **by_batch})
        return _from_engine(result, runtime)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BenchError(
            f"{path} is no calibration ({type(error).__name__}: {error}): give what "
            "`cdm-bench plan --out` or `cdm-bench engine --out` wrote"
        ) from error


def _from_engine(result: dict[str, Any], runtime: str | None) -> Calibration:
    points = result["points"]
    runtimes = list(dict.fromkeys(point["runtime"] for point in points))
    if runtime not in runtimes:
        raise BenchError(f"--runtime: expected one of {', '.join(runtimes)}")
    size = points[0]["size"]

    def seconds(stage: str) -> Seconds:
        return {
            point["batch"]: point["milliseconds"]["median"] / 1e3
            for point in points
            if (point["runtime"], point["stage"], point["size"]) == (runtime, stage, size)
        }

    text, step, decode = (seconds(stage) for stage in ("text", "step", "decode"))
    return Calibration(result["model"], size, result["steps"], text, step, decode)
