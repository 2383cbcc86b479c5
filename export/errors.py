"""The exceptions a user of ``cdm-export`` is meant to read: one line each."""


class ExportError(Exception):
    """What was wrong, what was expected and what to do (exit code 2)."""


class VerificationError(Exception):
    """An exported component differs from torch beyond its tolerance (exit code 1)."""
