"""A job's tensors through a real Triton, to a model that gives them back."""

import asyncio
import hashlib

import numpy as np
import pytest

from cdm_serve.engine.job import Job, Picture
from cdm_serve.triton.client import TritonClient
from cdm_serve.triton.launcher import TritonProcess
from cdm_serve.triton.wheel import find_wheel
from export.triton_files import model_config

# The model of the package, with a scheduler that answers with what the job brought.
MODEL = """
import hashlib
import numpy as np
from cdm_serve.engine import triton_model
from cdm_serve.engine.job import Picture

class Echo:
    def submit(self, key, job, answer):
        facts = {
            name: [tensor.dtype.name, tensor.shape, hashlib.sha256(tensor.tobytes()).hexdigest()]
            for name, tensor in job.tensors.items()
        }
        picture = job.tensors.get("picture", np.zeros((1, 1, 3), np.uint8))
        answer(Picture(picture, {"prompt": job.prompt, "tensors": facts}))

    def close(self):
        pass

class TritonPythonModel(triton_model.TritonPythonModel):
    def initialize(self, args):
        self._name = args["model_name"]
        self._served = {self._name: triton_model.Served(card=None, batches=None, scheduler=Echo())}
"""


@pytest.fixture(scope="module")
def triton(tmp_path_factory):
    model = tmp_path_factory.mktemp("echo") / "models" / "echo"
    (model / "1").mkdir(parents=True)
    (model / "1" / "model.py").write_text(MODEL)
    (model / "config.pbtxt").write_text(model_config(max_batch=1, runtime="openvino"))
    process = TritonProcess(find_wheel(), model.parent)
    yield process
    process.close()


def sha256(tensor):
    return hashlib.sha256(tensor.tobytes()).hexdigest()


def test_every_tensor_arrives_as_it_was_sent(triton):
    rng = np.random.default_rng(1)
    jobs = [
        Job(
            f"number {number}",
            seed=number,
            steps=1,
            size="64x64",
            tensors={
                "one_byte": rng.integers(0, 2, (3,), np.uint8).astype(bool),
                "picture": rng.integers(0, 256, (8, 2 + number, 3), np.uint8),
                "mask": rng.random((3, 5)).astype(np.float32).T,  # not in C order
                "latents": rng.standard_normal((2, 4, 4)),
                "nothing": np.zeros((0, 3), np.int64),
                "one": np.array(number, np.int32),
            },
        )
        for number in range(4)
    ] + [Job("without", 1, 1, "64x64")]

    async def ask():
        client = TritonClient(triton.address)
        try:
            while not await client.ready() or not (await client.models())[0]:
                assert triton.running, triton.log()
                await asyncio.sleep(0.05)
            return await asyncio.gather(*(anext(client.stream("echo", job)) for job in jobs))
        finally:
            await client.close()

    for job, picture in zip(jobs, asyncio.run(asyncio.wait_for(ask(), 60)), strict=True):
        assert isinstance(picture, Picture)
        assert picture.report["prompt"] == job.prompt
        assert picture.report["tensors"] == {
            name: [tensor.dtype.name, list(tensor.shape), sha256(tensor)]
            for name, tensor in job.tensors.items()
        }
        if "picture" in job.tensors:
            assert np.array_equal(picture.image, job.tensors["picture"])
