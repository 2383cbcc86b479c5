"""The python model that Triton loads: messages in, scheduler, messages out.

Importable only inside Triton's python backend, which provides ``triton_python_backend_utils``.
"""

import json
import os
import socket
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from cdm_serve.engine.card import ModelCard
from cdm_serve.engine.costs import Curve
from cdm_serve.engine.job import EngineError, Partial, Picture, Pixels
from cdm_serve.engine.lifeline import hold_on
from cdm_serve.engine.manifest import read_manifest
from cdm_serve.engine.pipeline import Pipeline
from cdm_serve.engine.runtimes import check_alike, runtime_for
from cdm_serve.engine.runtimes.runtime import Graph
from cdm_serve.engine.scheduler import Scheduler
from cdm_serve.engine.warmup import Batches, measure
from cdm_serve.repository import variants_of
from cdm_serve.triton.protocol import (
    WARM_UP_SECONDS,
    Message,
    answer_message,
    job_of,
    key_of,
    pack,
    unpack,
)


@dataclass(frozen=True)
class Served:
    """A model of the process: the one of Triton's name, or a variant of it."""

    card: ModelCard
    batches: Batches
    scheduler: Scheduler


class TritonPythonModel:
    """Decoupled: a request is handed to the scheduler and answered from its threads."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load and warm up; Triton reports the model ready only after this returns."""
        hold_on()
        self._name = args["model_name"]
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        folder = Path(args["model_repository"])
        manifests = {self._name: read_manifest(folder / args["model_version"])}
        for variant in variants_of(folder):
            manifests[variant.name] = read_manifest(variant / args["model_version"])
        device = int(args["model_instance_device_id"])
        first, *others = manifests.values()
        chosen = parameters["runtime"], parameters["precision"]
        self._runtime = runtime_for(first, *chosen, device)
        for other in others:
            check_alike(first, other, *chosen)
        most = int(parameters["max_batch"])
        seconds = float(os.environ.get(WARM_UP_SECONDS, parameters["warm_up_seconds"]))
        cache_bytes = int(float(parameters["prompt_cache_megabytes"]) * 2**20)
        # What several have in common is loaded once, measured once, and run for all at once.
        loaded: dict[str, Graph] = {}
        measured: dict[tuple[str, str], tuple[Curve, Batches]] = {}
        self._served: dict[str, Served] = {}
        scheduler: Scheduler | None = None
        for name, manifest in manifests.items():
            pipeline = Pipeline(manifest, self._runtime, loaded)
            costs, batches = measure(
                pipeline,
                min(most, manifest.max_batch),
                seconds,
                parameters.get("batches", "auto"),
                measured,
            )
            card = replace(
                manifest.card(),
                id=name,
                host=self._name,
                pid=os.getpid(),
                batches=asdict(batches),
            )
            scheduler = Scheduler(pipeline, costs, cache_bytes, scheduler)
            self._served[name] = Served(card, batches, scheduler)

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
        for served in self._served.values():
            served.scheduler.close()

    def _obey(self, key: str, message: Message, data: Pixels | None, sender: Any) -> None:
        command = message.get("command")
        name = message.get("model", self._name)
        if name not in self._served:
            raise EngineError(f"{name} is not served here", "invalid")
        if command == "generate":
            self._served[name].scheduler.submit(
                key, job_of(message, data), partial(self._answer, sender)
            )
        elif command == "cancel":
            for served in self._served.values():
                served.scheduler.cancel(key_of(message))
            _send(sender, {"kind": "report"})
        elif command == "describe":
            _send(sender, {"kind": "report", **self._describe(name)})
        else:
            raise EngineError(
                f"command {command!r} is unknown: generate, cancel or describe", "invalid"
            )

    def _answer(self, sender: Any, answer: Partial | Picture | EngineError) -> None:
        """From the scheduler's threads."""
        if isinstance(answer, EngineError) and answer.kind == "failed" and self._runtime.lost():
            # Whoever waits is answered by the process that comes after this one.
            print(f"the GPU does nothing more for this process, which ends: {answer}", flush=True)
            os._exit(1)
        _answer(sender, answer)

    def _describe(self, name: str) -> Message:
        served = self._served[name]
        if (trouble := served.scheduler.trouble()) is not None:
            raise EngineError(trouble)
        engine = f"{socket.gethostname()}:{os.getpid()}"
        report = served.scheduler.describe()
        report["gauges"] |= served.batches.gauges()
        card = asdict(replace(served.card, costs=report.pop("costs")))
        variants = [each for each in self._served if each != self._name]
        return {"card": card, "engine": engine, "variants": variants, **report}


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
