"""What the gateway and a model's process say to each other through Triton.

Every request has the tensor ``message``, a JSON object; every response has ``message`` and, where
there is a picture, ``image``, uint8 (H, W, 3). The request's ``command`` is one of

``generate`` with the fields of a ``Job`` that are not the default; instead of the deadline it has
    ``seconds_left``, since the clocks of two machines differ. The request's id is its key and
    must be nobody else's. Of its tensors ``tensors`` has ``dtype`` and ``shape`` by name, and a
    second input, ``data``, has the bytes, one tensor after the other.
    Answered by any number of ``partial`` messages and then one ``picture`` or ``error``.
``cancel`` with the ``key`` of an earlier ``generate``: its remaining steps are not made and it is
    answered with an ``error`` of kind ``cancelled``, unless it was finished already. A message and
    not a gRPC cancel, since cancelling a stream crashes Triton. Answered by ``report``, empty.
    ``generate`` and ``describe`` may name a ``model``: a variant, which is served in the process of
    Triton's model and loads only what the others have not.
``describe``. Answered at once by an ``error`` when something will never be answered, as an
    execution hangs, else by ``report`` with

    ========== ==================================================================================
    card       a ``ModelCard``, its costs as measured at start and corrected by what executions
               have taken since: by size, ``step`` and ``decode``, and with an encoder ``picture``,
               in seconds by batch size (as text; of all lanes of the machine together), and
               ``alone``, what one takes with the machine for itself; also ``batch``, the size that
               makes most of this machine; beside the sizes ``text``, the same for prompts
    engine     the process and its machine
    variants   names of the other models in the process
    waiting    samples at hand, started or not, and ``steps_waiting``, the steps they still need
    counters   cumulative since the process started: executions, steps, pictures, partials,
               cancelled, expired, failed, not_finite, steps_saved (not made, of the cancelled and
               expired), cache_hits, cache_misses
    gauges     cache_entries, cache_bytes, and batches_exact, batches_dropped and
               batches_largest_difference as found at start
    histograms cumulative: by name (queue_seconds, text_seconds, picture_seconds, step_seconds,
               decode_seconds of one execution each, batch_size) the upper ``bounds``, the
               ``counts`` of each bucket alone with one more for what lies above, and the ``sum``
    ========== ==================================================================================

In a response's message ``kind`` is ``partial`` (with ``index`` and ``step``), ``picture`` (with
the ``report``), ``report`` or ``error`` (with ``error``, a kind of ``EngineError``, and ``text``).
"""

import json
import math
import time
from dataclasses import MISSING, fields
from typing import Any, get_type_hints

import numpy as np
from numpy.typing import NDArray

from cdm_serve.engine.job import EngineError, Job, Partial, Picture, Pixels

# A variable of Triton's environment: what holds for every model instead of its own parameter.
WARM_UP_SECONDS = "CDM_SERVE_WARM_UP_SECONDS"

Message = dict[str, Any]

# What a field of a job must be; JSON has all of these.
FIELDS = get_type_hints(Job)
# What travels in another form.
APART = ("tensors", "deadline")


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


def generate_message(job: Job) -> tuple[Message, bytes]:
    """Ask for a picture: the message, and the bytes of its tensors."""
    message: Message = {"command": "generate"}
    for each in fields(job):
        value = getattr(job, each.name)
        if each.name not in APART and value != each.default:
            message[each.name] = value
    if job.deadline is not None:
        message["seconds_left"] = job.deadline - time.time()
    if job.tensors:
        message["tensors"] = {
            name: {"dtype": tensor.dtype.name, "shape": tensor.shape}
            for name, tensor in job.tensors.items()
        }
    return message, b"".join(tensor.tobytes() for tensor in job.tensors.values())


def cancel_message(key: str) -> Message:
    """Stop what was asked for in the request of this id."""
    return {"command": "cancel", "key": key}


def job_of(message: Message, data: NDArray[np.uint8] | None) -> Job:
    """The job in a ``generate`` request; its tensors are copies.

    Raises:
        EngineError: a field is missing, unknown or of the wrong type.
    """
    values: dict[str, Any] = {}
    for each in fields(Job):
        if each.name not in APART and (each.name in message or each.default is MISSING):
            values[each.name] = _field(message, each.name, FIELDS[each.name])
    unknown = message.keys() - values.keys() - {"command", "model", "tensors", "seconds_left"}
    if unknown:
        raise EngineError(f"{', '.join(sorted(unknown))}: unknown to this engine", "invalid")
    if "seconds_left" in message:
        values["deadline"] = time.time() + _field(message, "seconds_left", float | int)
    return Job(**values, tensors=_tensors(message.get("tensors", {}), data))


def _tensors(described: dict[str, Any], data: NDArray[np.uint8] | None) -> dict[str, NDArray[Any]]:
    content = b"" if data is None else data.tobytes()
    tensors, begin = {}, 0
    for name, each in described.items():
        dtype, shape = np.dtype(each["dtype"]), each["shape"]
        end = begin + dtype.itemsize * math.prod(shape)
        # Copied anew, so that it begins where its type may.
        tensors[name] = np.frombuffer(content[begin:end], dtype).reshape(shape)
        begin = end
    if begin != len(content):
        raise EngineError(f"data has {len(content)} bytes, its tensors {begin}", "invalid")
    return tensors


def key_of(message: Message) -> str:
    """The key in a ``cancel`` message.

    Raises:
        EngineError: there is none.
    """
    key: str = _field(message, "key", str)
    return key


def _field(message: Message, name: str, kind: Any) -> Any:
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
