"""Show a verification as a table."""

from __future__ import annotations

from rich.table import Table

from export.compare import Check, Comparison, Invariance, Picture
from export.verify import Verification


def verification_table(verification: Verification) -> Table:
    """The worst of every output in every runtime, and in red all that is beyond its tolerance."""
    table = Table(title="compared with torch and diffusers", box=None, padding=(0, 1, 0, 0))
    table.add_column("runtime", no_wrap=True)
    table.add_column("output", no_wrap=True)
    table.add_column("worst at", no_wrap=True)
    for column in ("max abs", "rel. RMS", "limit", ""):
        table.add_column(column, justify="right", no_wrap=True)
    for check in _worst(verification.checks):
        mark = "[green]✓[/]" if check.passed else "[red]✗[/]"
        table.add_row(check.runtime, *_cells(check), mark)
    return table


def _worst(checks: tuple[Check, ...]) -> list[Check]:
    """One check for each output and runtime, or all of them that failed."""
    rows: dict[tuple[str, ...], list[Check]] = {}
    for check in checks:
        output = check.output if isinstance(check, Comparison) else ""
        component = "" if isinstance(check, Picture) else check.component
        rows.setdefault((check.runtime, component, output), []).append(check)
    shown: list[Check] = []
    for row in rows.values():
        shown += [check for check in row if not check.passed] or [max(row, key=_badness)]
    return shown


def _badness(check: Check) -> float:
    if isinstance(check, Picture):
        return -check.psnr_db
    if isinstance(check, Invariance):
        return check.batch
    return check.max_abs if check.measure == "max_abs" else check.relative_rms


def _cells(check: Check) -> tuple[str, ...]:
    if isinstance(check, Picture):
        least = f"{check.tolerance_db:.0f} dB"
        return ("picture", f"1 x {check.size}", "", f"{check.psnr_db:.1f} dB", least)
    where = f"{check.batch} x {check.size}" if check.size else f"batch {check.batch}"
    if isinstance(check, Invariance):
        return (check.component, where, "", "", "as alone")
    pixels = check.measure == "max_abs"
    limit = f"{check.tolerance:.0f} of 255" if pixels else f"{check.tolerance:.0e}"
    return (check.output, where, f"{check.max_abs:.1e}", f"{check.relative_rms:.1e}", limit)
