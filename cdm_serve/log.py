"""The log: a few readable lines, or one JSON object a line with everything."""

import json
import logging
from contextvars import ContextVar
from datetime import UTC, datetime

from rich.console import Console
from rich.logging import RichHandler

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)

# What every record has; the rest came as ``extra`` and belongs to the line.
PLAIN = set(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


class JsonFormatter(logging.Formatter):
    """Time, level, logger, message, the request's id, and whatever else the record carries."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        request_id = REQUEST_ID.get()
        if request_id is not None:
            line["request_id"] = request_id
        line |= {name: value for name, value in vars(record).items() if name not in PLAIN}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure_logging(form: str) -> Console:
    """Where the server speaks to whoever started it; a quiet place when the log is for programs.

    ``text``: what needs attention goes to the console; ``json``: every request too, to stderr.
    """
    console = Console(stderr=True, highlight=False, quiet=form == "json")
    handler: logging.Handler
    if form == "json":
        handler = logging.StreamHandler()
        handler.setFormatter(JsonFormatter())
        logging.getLogger("cdm_serve").setLevel(logging.INFO)
    else:
        handler = RichHandler(console=console, show_path=False)
        handler.setFormatter(logging.Formatter("%(message)s", datefmt="%X"))
    root = logging.getLogger()
    root.setLevel(logging.WARNING)
    root.handlers = [handler]
    return console
