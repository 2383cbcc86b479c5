"""What is to be seen of the gateway: metrics, spans and a line in the log for every request."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.types import Scope

from cdm_serve.api import tracing
from cdm_serve.api.errors import ApiError
from cdm_serve.api.plan import Plan
from cdm_serve.log import REQUEST_ID

access = logging.getLogger("cdm_serve.access")

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
ROUTES = ("/v1/images/generations", "/v1/images/files/", "/v1/models")
LEFT = 499  # nginx's number for a client that did not wait


@dataclass
class Seen:
    """One request; ``status`` stays None until an answer begins."""

    status: int | None = None


class Watch:
    """The gateway's own metrics; those of the engine are in ``metrics``."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "cdm_serve_requests",
            "HTTP requests answered, by route and status",
            ["route", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "cdm_serve_request_seconds",
            "From the request to the end of its answer",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._encode = Histogram(
            "cdm_serve_encode_seconds",
            "Writing one picture as a file, with the wait for a thread",
            ["format"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._shed = Counter(
            "cdm_serve_shed",
            "Requests refused because there was too much to do, by reason",
            ["reason"],
            registry=self.registry,
        )
        self.left = Counter(
            "cdm_serve_clients_left",
            "Clients that went before their answer began",
            registry=self.registry,
        )
        self.retried = Counter(
            "cdm_serve_retried",
            "Pictures asked for again because the model was lost",
            registry=self.registry,
        )

    @contextmanager
    def request(self, scope: Scope, request_id: str) -> Iterator[Seen]:
        """Everything that happens while one request is served."""
        seen = Seen()
        path = scope["path"]
        # Paths as clients make them up would be labels without end.
        route = next((known.rstrip("/") for known in ROUTES if path.startswith(known)), "other")
        begin = time.perf_counter()
        token = REQUEST_ID.set(request_id)
        try:
            yield seen
        finally:
            seconds = time.perf_counter() - begin
            status = seen.status or LEFT
            self._requests.labels(route, str(status)).inc()
            self._seconds.labels(route).observe(seconds)
            access.info(
                "%s %s %d",
                scope["method"],
                path,
                status,
                extra={
                    "method": scope["method"],
                    "path": path,
                    "status": status,
                    "milliseconds": round(1e3 * seconds, 3),
                    "owner": scope["state"]["owner"],
                    "client": (scope.get("client") or [None])[0],
                },
            )
            REQUEST_ID.reset(token)

    @contextmanager
    def shed(self) -> Iterator[None]:
        """Count what is refused with 429, by its code."""
        try:
            yield
        except ApiError as error:
            if error.status == 429:
                self._shed.labels(error.code).inc()
            raise

    def picture(
        self, plan: Plan, report: dict[str, Any], encode_begin: float, encode_ms: float
    ) -> None:
        """A picture was made: its encoding in the metrics, all its stages as spans."""
        self._encode.labels(plan.output_format).observe(encode_ms / 1e3)
        tracing.picture_spans(plan, report, encode_begin, encode_ms)
