"""The one exception a user of the benchmarks is meant to read."""


class BenchError(Exception):
    """What was wrong, what was expected and what to do, in one line."""
