"""What ``--dry-run`` shows: the engines that would be built, and how trtexec would build them."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from export.exporter import load_plan
from export.profiles import Profile, profiles, trtexec
from export.request import Request
from export.tensorrt import Options


def show(request: Request, options: Options, console: Console) -> None:
    """Print the profile table and the ``trtexec`` lines; nothing is written.

    Raises:
        ExportError: the student, a size or the name is not usable.
    """
    student, plan = load_plan(request, console)
    shapes = profiles(student, plan)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("engine", "profile", "input", "least", "most frequent", "largest"):
        table.add_column(column, no_wrap=True)
    for component, each in shapes.items():
        for i, profile in enumerate(each):
            _rows(table, component, i, profile)
    console.print(table)
    console.print(f"\nBuilt from the {plan.precision.name} graphs by these commands:")
    for component, each in shapes.items():
        # Not through the console, which would break the lines.
        print(trtexec(component, each, options.trtexec()), file=console.file)


def _rows(table: Table, component: str, index: int, profile: Profile) -> None:
    label = f"{index}: {profile.size}" if profile.size else str(index)
    for name, shapes in profile.shapes.items():
        table.add_row(component, label, name, *("x".join(map(str, each)) for each in shapes))
