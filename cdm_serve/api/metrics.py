"""The gateway's own numbers, for Prometheus; those of the engines are in ``operations``."""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Histogram

from cdm_serve.api.errors import ApiError

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """What is counted as it happens."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "cdm_serve_requests",
            "HTTP requests answered, by route and status",
            ["route", "status"],
            registry=self.registry,
        )
        self.request_seconds = Histogram(
            "cdm_serve_request_seconds",
            "From the request to the end of its answer",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.encode_seconds = Histogram(
            "cdm_serve_encode_seconds",
            "Writing one picture as a file, with the wait for a thread",
            ["format"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.shed = Counter(
            "cdm_serve_shed",
            "Requests refused because there was too much to do, by reason",
            ["reason"],
            registry=self.registry,
        )
        self.clients_left = Counter(
            "cdm_serve_clients_left",
            "Clients that went before their answer began",
            registry=self.registry,
        )
        self.retried = Counter(
            "cdm_serve_retried",
            "Pictures asked for again because the model was lost",
            registry=self.registry,
        )
        self.moderated = Counter(
            "cdm_serve_moderated",
            "Prompts that --moderation was asked about, by outcome",
            ["outcome"],
            registry=self.registry,
        )

    @contextmanager
    def counting_shed(self) -> Iterator[None]:
        """Count what is refused with 429, by its code."""
        try:
            yield
        except ApiError as error:
            if error.status == 429:
                self.shed.labels(error.code).inc()
            raise
