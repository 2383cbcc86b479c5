"""The python model that Triton loads: messages in, scheduler, messages out.

Importable only inside Triton's python backend, which provides ``triton_python_backend_utils``.
"""

import json
import os
import socket
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from cdm_serve.engine.job import EngineError, Partial, Picture, Pixels
from cdm_serve.engine.lifeline import hold_on
from cdm_serve.engine.manifest import read_manifest
from cdm_serve.engine.pipeline import Pipeline
from cdm_serve.engine.runtimes import runtime_for
from cdm_serve.engine.scheduler import Scheduler
from cdm_serve.engine.warmup import measure
from cdm_serve.triton.protocol import (
    WARM_UP_SECONDS,
    Message,
    answer_message,
    job_of,
    key_of,
    pack,
    unpack,
)


class TritonPythonModel:
    """Decoupled: a request is handed to the scheduler and answered from its threads."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load and warm up; Triton reports the model ready only after this returns."""
        hold_on()
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        folder = Path(args["model_repository"]) / args["model_version"]
        manifest = read_manifest(folder)
        device = int(args["model_instance_device_id"])
        runtime = runtime_for(manifest, parameters["runtime"], parameters["precision"], device)
        pipeline = Pipeline(manifest, runtime)
        most = min(int(parameters["max_batch"]), manifest.max_batch)
        seconds = float(os.environ.get(WARM_UP_SECONDS, parameters["warm_up_seconds"]))
        costs, self._batches = measure(pipeline, most, seconds, parameters.get("batches", "auto"))
        cache_bytes = int(float(parameters["prompt_cache_megabytes"]) * 2**20)
        self._card = replace(
            manifest.card(),
            id=args["model_name"],
            pid=os.getpid(),
            batches=asdict(self._batches),
        )
        self._scheduler = Scheduler(pipeline, costs, cache_bytes)

    def execute(self, requests: list[Any]) -> None:
        """Never raises: an error raised here carries no request id and would reach nobody."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                message = unpack(pb_utils.get_input_tensor_by_name(request, "message").as_numpy())
                data = pb_utils.get_input_tensor_by_name(request, "data")
                array = None if data is None else data.as_numpy()
                self._obey(request.request_id(), message, array, sender)
            except EngineError as error:
                _answer(sender, error)
            except Exception as error:
                _answer(
                    sender, EngineError(f"bad message: {type(error).__name__}: {error}", "invalid")
                )

    def finalize(self) -> None:
        """Finish what was accepted."""
        self._scheduler.close()

    def _obey(self, key: str, message: Message, data: Pixels | None, sender: Any) -> None:
        command = message.get("command")
        if command == "generate":
            self._scheduler.submit(key, job_of(message, data), partial(_answer, sender))
        elif command == "cancel":
            self._scheduler.cancel(key_of(message))
            _send(sender, {"kind": "report"})
        elif command == "describe":
            _send(sender, {"kind": "report", **self._describe()})
        else:
            raise EngineError(
                f"command {command!r} is unknown: generate, cancel or describe", "invalid"
            )

    def _describe(self) -> Message:
        if not self._scheduler.alive:
            raise EngineError("the scheduler has ended")
        engine = f"{socket.gethostname()}:{os.getpid()}"
        report = self._scheduler.describe()
        report["gauges"] |= self._batches.gauges()
        card = replace(self._card, costs=report.pop("costs"))
        return {"card": asdict(card), "engine": engine, **report}


def _answer(sender: Any, answer: Partial | Picture | EngineError) -> None:
    image = None if isinstance(answer, EngineError) else answer.image
    _send(sender, answer_message(answer), image, final=not isinstance(answer, Partial))


def _send(
    sender: Any, message: Message, image: Pixels | None = None, *, final: bool = True
) -> None:
    tensors = [pb_utils.Tensor("message", pack(message))]
    if image is not None:
        tensors.append(pb_utils.Tensor("image", np.ascontiguousarray(image)))
    flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if final else 0
    sender.send(pb_utils.InferenceResponse(output_tensors=tensors), flags=flags)
