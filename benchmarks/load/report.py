"""What ``cdm-bench load`` prints, draws and keeps."""

import argparse

from rich.console import Console
from rich.table import Table

from benchmarks.chart import Chart, save_charts
from benchmarks.errors import BenchError
from benchmarks.load.search import KNOWN, LoadTest, Plan
from benchmarks.load.summary import HELD, Point
from benchmarks.prompts import Requests
from benchmarks.record import Record


def load(arguments: argparse.Namespace, console: Console) -> int:
    """Measure, and keep after each point what there is."""
    record = Record(arguments.out, "load", ("aiohttp",))
    given = arguments.clients is not None or arguments.rates is not None
    steps = (arguments.steps,) if arguments.steps else ()
    plan = Plan(
        url=arguments.url.rstrip("/"),
        clients=tuple(arguments.clients or (() if given else Plan.clients)),
        rates=tuple(arguments.rates or ()),
        search=arguments.search or not given,
        slo_ms=arguments.slo,
        seconds=arguments.seconds,
        requests=Requests(arguments.model, steps, arguments.stream, KNOWN, arguments.edits),
    )
    with console.status("") as status:
        test = LoadTest(plan, status.update)
        try:
            for point in test.run():
                console.print(_line(point))
                record.write(test.result())
        except (BenchError, KeyboardInterrupt) as stop:
            if test.measured:
                _keep(record, test, console, str(stop) or "interrupted")
            if isinstance(stop, BenchError):
                raise
            return 130
    _keep(record, test, console, None)
    return 0


def _keep(record: Record, test: LoadTest, console: Console, stopped: str | None) -> None:
    record.write({**test.result(), "stopped": stopped})
    charts = _charts(test)
    if charts:
        save_charts(charts, record.chart)
    console.print(_table(test))
    console.print(f"kept in {record.path}")


def _line(point: Point) -> str:
    held = "within the SLO" if point.holds else "[yellow]outside the SLO[/]"
    p50, p99 = (f"{point.latency_ms.get(name, float('nan')):.0f}" for name in ("p50", "p99"))
    return (
        f"{_name(point)}: {point.throughput:.1f} images/s, p50 {p50} ms, p99 {p99} ms, "
        f"{point.shed + point.failed + point.wrong} refused, failed or wrong: {held}"
    )


def _name(point: Point) -> str:
    return f"{point.clients} cl." if point.rate is None else f"{point.rate:.4g}/s"


def _table(test: LoadTest) -> Table:
    table = Table(title=f"{test.plan.url}, {test.plan.seconds:g} s each", padding=(0, 0))
    streamed = test.plan.requests.stream
    columns = ["load", "images/s", "good/s", "p50", "p90", "p95", "p99", "refused", "failed"]
    columns += ["wrong", "batch", "queued", *(["preview"] if streamed else [])]
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for point in test.measured:
        work = point.server
        table.add_row(
            _name(point),
            f"{point.throughput:.1f}",
            f"{point.goodput:.1f}",
            *(_ms(point.latency_ms, name) for name in ("p50", "p90", "p95", "p99")),
            *(str(count) for count in (point.shed, point.failed, point.wrong)),
            f"{work['mean_batch']:.1f}" if work else "-",
            f"{work['queue_mean_ms']:.0f}" if work else "-",
            *([_ms(point.partial_ms, "p50")] if streamed else []),
        )
    best = test.best_rate
    compared = sum(m.compared for m in test.measured)
    share, slo = f"{HELD:.0%}", f"{test.plan.slo_ms:g} ms"
    table.caption = (
        f"Milliseconds. {'No rate' if best is None else f'Up to {best:.4g} requests/s'} "
        f"with {share} of the pictures right and within {slo}. {compared} pictures compared."
    )
    if test.unsteady:
        table.caption += (
            f" {len(test.unsteady)} of {KNOWN} requests give another picture when they "
            "are asked alone again: 'wrong' means nothing."
        )
    return table


def _ms(values: dict[str, float], name: str) -> str:
    return f"{values[name]:.0f}" if name in values else "-"


def _charts(test: LoadTest) -> list[Chart]:
    """Latency against rate and against clients, where there are two points."""
    charts = []
    for title, key in (("ms by requests/s", "rate"), ("ms by clients", "clients")):
        points = [p for p in test.measured if getattr(p, key) and p.latency_ms]
        points.sort(key=lambda point: getattr(point, key))
        if points:
            lines = {n: [p.latency_ms[n] for p in points] for n in ("p50", "p90", "p95", "p99")}
            lines["SLO"] = [test.plan.slo_ms] * len(points)
            high = min(max(max(line) for line in lines.values()), 4 * test.plan.slo_ms)
            places = [f"{getattr(p, key):.3g}" for p in points]
            charts.append(Chart(title, places, lines, 1.05 * high))
    return charts
