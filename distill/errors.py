"""The one exception a user of the distiller is meant to read."""


class DistillError(Exception):
    """What was wrong, what was expected and what to do, in one line."""
