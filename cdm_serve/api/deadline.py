"""How long a client will wait, as it or a proxy on the way says."""

import math

from starlette.datastructures import Headers

from cdm_serve.api.errors import ApiError

OWN = "x-request-timeout-ms"
ENVOY = "x-envoy-expected-rq-timeout-ms"
OPENAI = "x-stainless-read-timeout"


def seconds_allowed(headers: Headers, *, stream: bool) -> float | None:
    """The least of what is said; None when nothing is.

    ``x-request-timeout-ms`` is this server's own header; Envoy and Istio send theirs, and OpenAI's
    clients theirs, in seconds. The latter is for the silence between two reads, which is the whole
    answer unless that is streamed.

    Raises:
        ApiError: this server's own header is no positive number.
    """
    allowed: list[float] = []
    own = headers.get(OWN)
    if own is not None:
        milliseconds = _number(own)
        if milliseconds is None:
            raise ApiError(f"{OWN}: {own[:40]!r} is no positive number of milliseconds", param=OWN)
        allowed.append(milliseconds / 1e3)
    envoy = _number(headers.get(ENVOY, ""))
    if envoy is not None:
        allowed.append(envoy / 1e3)
    openai = _number(headers.get(OPENAI, ""))
    if openai is not None and not stream:
        allowed.append(openai)
    return min(allowed, default=None)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 < value < math.inf else None
