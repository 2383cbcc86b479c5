"""The one exception a user of the benchmarks is meant to read."""

from collections.abc import Iterable, Sequence


class BenchError(Exception):
    """What was wrong, what was expected and what to do, in one line."""


def picked(option: str, wanted: Sequence[str] | None, known: Iterable[str]) -> tuple[str, ...]:
    """Return what was asked for by an option, or all there is.

    Raises:
        BenchError: something unknown was asked for.
    """
    known = tuple(known)
    for name in wanted or ():
        if name not in known:
            raise BenchError(f"{option}: {name!r} is unknown; known: {', '.join(known)}")
    return tuple(wanted or known)
