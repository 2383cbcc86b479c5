"""OpenTelemetry spans: one a picture, one a stage that the engine reports.

They lie below FastAPI's own span of the request, which takes up the caller's ``traceparent``.
Without a configured SDK all of it does nothing.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry import trace

from cdm_serve.errors import StartError
from cdm_serve.log import REQUEST_ID

tracer = trace.get_tracer("cdm_serve")


def picture_spans(arrived: float, receipt: dict[str, Any]) -> None:
    """From the receipt of a picture that arrived then (unix seconds), after the fact."""
    picture = tracer.start_span(
        "picture",
        start_time=_nanoseconds(arrived),
        attributes={
            "request.id": REQUEST_ID.get() or "",
            **{name: receipt[name] for name in ("model", "size", "steps", "batches")},
        },
    )
    if not picture.is_recording():
        return
    context = trace.set_span_in_context(picture)
    for stage, after, milliseconds in receipt["spans"]:
        begin = arrived + after / 1e3
        span = tracer.start_span(stage, context=context, start_time=_nanoseconds(begin))
        span.end(_nanoseconds(begin + milliseconds / 1e3))
    picture.end(_nanoseconds(time.time()))


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)


@contextmanager
def exporting(wanted: bool) -> Iterator[None]:
    """Send spans where the OTEL_* variables of the environment say, and the last ones at the end.

    Raises:
        StartError: the SDK is not installed.
    """
    if not wanted:
        yield
        return
    provider = trace_provider()
    trace.set_tracer_provider(provider)
    try:
        yield
    finally:
        provider.shutdown()


def trace_provider() -> Any:
    """OpenTelemetry's own, with an exporter over HTTP.

    Raises:
        StartError: the SDK is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise StartError(
            f"{error.name} is not installed; traces need: pip install 'cdm-serve[telemetry]'"
        ) from error
    # The environment's OTEL_SERVICE_NAME, where given, wins.
    resource = Resource({"service.name": "cdm-serve"}).merge(Resource.create())
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
