"""The python model that Triton loads: requests in, scheduler, responses out.

Importable only inside Triton's python backend, which provides ``triton_python_backend_utils``.
"""

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from cdm_serve.engine.manifest import read_manifest
from cdm_serve.engine.pipeline import Pipeline
from cdm_serve.engine.scheduler import EngineError, Job, Picture, Scheduler


class TritonPythonModel:
    """Decoupled: a request is handed to the scheduler and answered from its thread."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load and warm up; Triton reports the model ready only after this returns."""
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        max_batch = int(parameters["max_batch"])
        folder = Path(args["model_repository"]) / args["model_version"]
        pipeline = Pipeline(read_manifest(folder), parameters["precision"])
        pipeline.warm_up(max_batch)
        self._card = pipeline.manifest.card()
        self._scheduler = Scheduler(pipeline, max_batch)

    def execute(self, requests: list[Any]) -> None:
        """Never raises: an error raised here carries no request id and would reach nobody."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                command = _text(request, "command")
                if command == "describe":
                    _send(sender, report=self._describe())
                elif command == "generate":
                    self._scheduler.submit(_job(request), partial(_answer, sender))
                else:
                    raise EngineError(f"command {command!r} is unknown: generate or describe")
            except EngineError as error:
                _send(sender, error=str(error))
            except Exception as error:
                _send(sender, error=f"bad request: {type(error).__name__}: {error}")

    def finalize(self) -> None:
        """Finish what was accepted."""
        self._scheduler.close()

    def _describe(self) -> dict[str, Any]:
        if not self._scheduler.alive:
            raise EngineError("the step scheduler has ended")
        return {**self._card, "pid": os.getpid(), "executions": self._scheduler.executions}


def _job(request: Any) -> Job:
    return Job(
        prompt=_text(request, "prompt"),
        seed=_number(request, "seed"),
        steps=_number(request, "steps"),
        size=f"{_number(request, 'width')}x{_number(request, 'height')}",
    )


def _input(request: Any, name: str) -> Any:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        raise EngineError(f"input {name} is missing")
    return tensor.as_numpy().item()


def _text(request: Any, name: str) -> str:
    value: bytes = _input(request, name)
    return value.decode("utf-8")


def _number(request: Any, name: str) -> int:
    return int(_input(request, name))


def _answer(sender: Any, done: Picture | EngineError) -> None:
    if isinstance(done, EngineError):
        _send(sender, error=str(done))
    else:
        _send(sender, report=done.report, image=done.image)


def _send(
    sender: Any, *, report: dict[str, Any] | None = None, error: str = "", image: Any = None
) -> None:
    """One final response; ``error`` is empty when all is well."""
    tensors = [
        pb_utils.Tensor("report", np.array([json.dumps(report or {}).encode()], dtype=np.object_)),
        pb_utils.Tensor("error", np.array([error.encode()], dtype=np.object_)),
    ]
    if image is not None:
        tensors.append(pb_utils.Tensor("image", np.ascontiguousarray(image)))
    sender.send(
        pb_utils.InferenceResponse(output_tensors=tensors),
        flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL,
    )
