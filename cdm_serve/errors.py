"""What a user is told in one line."""


class StartError(Exception):
    """The server cannot start; the text says what was wrong, what was expected and what to do."""
