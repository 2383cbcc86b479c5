"""What the gateway and a model's process say to each other through Triton.

Every request has one tensor, ``message``, a JSON object; every response has ``message`` and, where
there is a picture, ``image``, uint8 (H, W, 3). The request's ``command`` is one of

``generate`` with the fields of a ``Job``. The request's id is its key and must be nobody else's.
    Answered by any number of ``partial`` messages and then one ``picture`` or ``error``.
``cancel`` with the ``key`` of an earlier ``generate``: its remaining steps are not made and it is
    answered with an ``error`` of kind ``cancelled``, unless it was finished already. A message and
    not a gRPC cancel, since cancelling a stream crashes Triton. Answered by ``report``, empty.
``describe``. Answered at once by ``report`` with

    ========== ==================================================================================
    the card   name, architecture, fingerprint, sizes, default_size, default_steps, max_steps,
               downscale, ``pid`` of the process and ``engine``, that with its machine
    costs      measured at start: by size, ``step`` and ``decode`` in seconds by batch size (as
               text) and ``batch``, the size that makes most of this machine; beside the sizes
               ``text``, the seconds of one prompt
    waiting    samples at hand, started or not, and ``steps_waiting``, the steps they still need
    counters   cumulative since the process started: executions, steps, pictures, partials,
               cancelled, expired, failed, steps_saved (not made, of the cancelled and expired),
               cache_hits, cache_misses
    gauges     cache_entries, cache_bytes
    histograms cumulative: by name (queue_seconds, text_seconds, step_seconds, decode_seconds of
               one execution each, batch_size) the upper ``bounds``, the ``counts`` of each bucket
               alone with one more for what lies above, and the ``sum``
    ========== ==================================================================================

In a response's message ``kind`` is ``partial`` (with ``index`` and ``step``), ``picture`` (with
the ``report``), ``report`` or ``error`` (with ``error``, a kind of ``EngineError``, and ``text``).

The gateway does not see any of this but calls ``Supervisor.stream(model, job)``: an asynchronous
generator of ``Partial`` and one final ``Picture``. Leaving it early, by ``aclose`` (so use it with
``contextlib.aclosing``) or because the task is cancelled within it, sends the ``cancel``.
``TritonError.kind`` is the kind of ``EngineError``; ``TritonLost`` is raised once for a job that
was in flight when the process or Triton died.
"""

import json
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdm_serve.engine.job import EngineError, Job, Partial, Picture, Pixels

Message = dict[str, Any]


def pack(message: Message) -> NDArray[np.object_]:
    """The ``message`` tensor."""
    return np.array([encode(message)], dtype=np.object_)


def unpack(tensor: NDArray[Any]) -> Message:
    """The object in a ``message`` tensor.

    Raises:
        ValueError: it holds no JSON object.
    """
    message = json.loads(tensor.item())
    if not isinstance(message, dict):
        raise ValueError("it is no JSON object")
    return message


def encode(message: Message) -> bytes:
    """As JSON."""
    return json.dumps(message, separators=(",", ":")).encode()


def generate_message(job: Job) -> Message:
    """Ask for a picture."""
    return {"command": "generate", **asdict(job)}


def cancel_message(key: str) -> Message:
    """Stop what was asked for in the request of this id."""
    return {"command": "cancel", "key": key}


def job_of(message: Message) -> Job:
    """The job in a ``generate`` message.

    Raises:
        EngineError: a field is missing or of the wrong type.
    """
    deadline = message.get("deadline")
    return Job(
        prompt=_field(message, "prompt", str),
        seed=_field(message, "seed", int),
        steps=_field(message, "steps", int),
        size=_field(message, "size", str),
        partials=_field(message, "partials", int),
        deadline=None if deadline is None else float(_field(message, "deadline", (int, float))),
    )


def key_of(message: Message) -> str:
    """The key in a ``cancel`` message.

    Raises:
        EngineError: there is none.
    """
    key: str = _field(message, "key", str)
    return key


def _field(message: Message, name: str, kind: type | tuple[type, ...]) -> Any:
    value = message.get(name)
    if not isinstance(value, kind):
        state = "missing" if value is None else f"{value!r}, of the wrong type"
        raise EngineError(f"{name} is {state}", "invalid")
    return value


def answer_message(answer: Partial | Picture | EngineError) -> Message:
    """An engine's answer without its pixels."""
    if isinstance(answer, Partial):
        return {"kind": "partial", "index": answer.index, "step": answer.step}
    if isinstance(answer, Picture):
        return {"kind": "picture", "report": answer.report}
    return {"kind": "error", "error": answer.kind, "text": str(answer)}


def answer_of(message: Message, image: Pixels | None) -> Partial | Picture | EngineError:
    """The other way round."""
    if message["kind"] == "error":
        return EngineError(message["text"], message["error"])
    assert image is not None
    if message["kind"] == "partial":
        return Partial(image, message["index"], message["step"])
    return Picture(image, message["report"])
