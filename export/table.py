"""Show a verification as a table."""

from __future__ import annotations

from rich.table import Table

from export.compare import Verification


def verification_table(verification: Verification) -> Table:
    """One row a comparison; what is beyond its tolerance is red."""
    table = Table(title="ONNX Runtime against torch and diffusers", box=None, padding=(0, 2, 0, 0))
    for column in ("component", "output"):
        table.add_column(column, no_wrap=True)
    for column in ("batch", "size", "max abs", "rel. RMS", "limit", ""):
        table.add_column(column, justify="right", no_wrap=True)
    for row in verification.components:
        table.add_row(
            row.component,
            row.output,
            str(row.batch),
            row.size or "",
            f"{row.max_abs:.1e}",
            f"{row.relative_rms:.1e}",
            f"{row.tolerance:.0f} level" if row.measure == "max_abs" else f"{row.tolerance:.0e}",
            _mark(row.passed),
        )
    for picture in verification.pictures:
        tolerance = f"{picture.tolerance_db:.0f} dB"
        found = f"{picture.psnr_db:.1f} dB"
        mark = _mark(picture.passed)
        table.add_row("picture", "PSNR", "1", picture.size, "", found, tolerance, mark)
    return table


def _mark(passed: bool) -> str:
    return "[green]✓[/]" if passed else "[red]✗[/]"
