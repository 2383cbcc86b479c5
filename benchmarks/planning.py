"""How many machines a rate needs: the simulation asked, and the simulation checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.calibration import Calibration, calibrated, described
from benchmarks.errors import BenchError
from benchmarks.exported import Exported
from benchmarks.served import Served, served
from benchmarks.simulation import Arrival, poisson, simulate
from benchmarks.tally import RAMP, percentiles

REQUESTS = 20_000  # simulated; 200 of them lie beyond p99
LOADS = (0.3, 0.5, 0.7)
WITHIN = 0.1
MOST = 1000


@dataclass(frozen=True)
class Demand:
    """Requests a second, the steps they ask for (each as often), and the p99 they are owed."""

    rate: float
    slo_p99_ms: float
    steps: Sequence[int] = ()


def predicted(
    calibration: Calibration, arrivals: Sequence[Arrival], machines: int = 1, since: float = 0.0
) -> dict[str, float]:
    """Percentiles in milliseconds of the latency of what arrived ``since`` then."""
    finished = simulate(calibration.costs, arrivals, machines)
    latencies = [request.latency for request in finished if request.arrival.time >= since]
    return percentiles([1e3 * (latency + calibration.extra) for latency in latencies])


def plan_machines(calibration: Calibration, demand: Demand) -> dict[str, Any]:
    """The least number of machines that holds the SLO, and the percentiles at each one tried.

    Raises:
        BenchError: no number of machines can.
    """
    steps = list(demand.steps) or [calibration.steps]
    longest = max(steps) * calibration.step[1] * calibration.pace
    if demand.slo_p99_ms / 1e3 < longest:
        raise BenchError(
            f"a p99 of {demand.slo_p99_ms:g} ms is out of reach of any number of machines: the "
            f"{max(steps)} steps of one picture alone take {1e3 * longest:.0f} ms"
        )
    seconds = REQUESTS / demand.rate
    arrivals = list(poisson(demand.rate, seconds, steps, calibration.size, seed=0))
    tried: dict[int, dict[str, float]] = {}
    mean_steps = sum(steps) / len(steps)
    # Fewer would be overrun: their queue grows for as long as it is simulated.
    count = max(1, math.ceil(demand.rate * mean_steps / calibration.steps / calibration.capacity))
    while count <= MOST:
        tried[count] = predicted(calibration, arrivals, count)
        if tried[count]["p99"] <= demand.slo_p99_ms:
            return {"machines": count, "tried": tried}
        count += 1
    raise BenchError(f"{MOST} machines do not hold a p99 of {demand.slo_p99_ms:g} ms")


def check(
    exported: Exported, seconds: float, loads: Sequence[float], on_run: Callable[[], None]
) -> tuple[Calibration, list[dict[str, Any]]]:
    """A real server at shares of its capacity, and the same arrivals simulated.

    The server is calibrated before each load; the last calibration is returned. ``on_run`` is
    called after the first and after each load.

    Raises:
        BenchError: the server failed.
    """
    short = max(1.0, seconds / 10)
    with served(exported) as server:
        stages = described(exported, server)
        calibration = calibrated(stages, server, short)
        on_run()
        points: list[dict[str, Any]] = []
        for load in loads:
            if points:  # the pace of a machine changes within minutes
                calibration = calibrated(stages, server, short)
            points.append(_point(calibration, server, load, seconds))
            on_run()
    return calibration, points


def _point(calibration: Calibration, server: Served, load: float, seconds: float) -> dict[str, Any]:
    rate = load * calibration.capacity
    whole = (1 + RAMP) * seconds
    arrivals = list(poisson(rate, whole, [calibration.steps], calibration.size, seed=0))
    answer = server.run([(each.time, each.steps) for each in arrivals], seconds, fresh=True)
    counted = answer["by_steps"].get(str(calibration.steps), {}).get("count", 0)
    if not counted:
        raise BenchError(f"no request came in {seconds:g} s at {rate:.2f} a second; give more")
    found = answer["milliseconds"]
    foreseen = predicted(calibration, arrivals, since=RAMP * seconds)
    errors = {name: round(foreseen[name] / found[name] - 1, 4) for name in ("p50", "p99")}
    return {
        "load": load,
        "pace": round(calibration.pace, 4),
        "extra": round(calibration.extra, 6),
        "rate": round(rate, 3),
        "requests": counted,
        "measured": found,
        "simulated": foreseen,
        "error": errors,
        "holds": all(abs(error) <= WITHIN for error in errors.values()),
    }
