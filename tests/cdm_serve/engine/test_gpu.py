"""A GPU's path from Triton's model to the picture, on packages that fail as the real ones do."""

import importlib
import json
import os
import shutil
import sys
import threading
import types
from concurrent.futures import Future
from pathlib import Path

import fake_gpu
import numpy as np
import pytest

from cdm_serve.engine.job import Job
from cdm_serve.engine.manifest import file_entry, read_manifest
from cdm_serve.engine.runtimes import open_runtime, runtime_for
from cdm_serve.engine.runtimes.tensorrt import TensorRt
from cdm_serve.errors import StartError
from cdm_serve.triton.protocol import generate_message, pack, unpack

MOST = 4
STAMP = {
    "version": "11.4.0.106",
    "gpu": "NVIDIA Fake",
    "compute_capability": "9.0",
    "options": {"refit": False, "version_compatible": False, "hardware_compatible": False},
}


@pytest.fixture
def machine(monkeypatch):
    return fake_gpu.install(monkeypatch, fake_gpu.Machine())


def up_to(most, *sample):
    return ((1, *sample), (most, *sample), (most, *sample))


def engines(machine, version, **changed):
    """Those of the tiny student in a folder: of the transformer and decoder one profile a size."""
    ids = {f"input_ids_{k}": up_to(MOST, 24) for k in range(2)}
    text = {"sigma": up_to(MOST), "prompt_embeds": up_to(MOST, 24, 72), "pooled": up_to(MOST, 64)}
    latents = [{"latents": up_to(MOST, 4, 16, width)} for width in (16, 24)]
    profiles = {
        "text_encoder": [ids],
        "transformer": [each | text for each in latents],
        "vae_decoder": latents,
        "tiny_decoder": latents,
        "vae_encoder": [{"image": up_to(1, 64, width, 3)} for width in (64, 96)],
    }
    return {
        name: file_entry(fake_gpu.write_engine(version / f"{name}.onnx", machine, each, **changed))
        for name, each in profiles.items()
    }


@pytest.fixture
def whole_model(repository, tmp_path, machine):
    """An export with engines, in a folder of its own."""
    shutil.copytree(repository / "tiny", tmp_path / "tiny")
    path = tmp_path / "tiny" / "1" / "export.json"
    contents = json.loads(path.read_text())
    contents["runtimes"].append("tensorrt")
    contents["tensorrt"] = STAMP | {"components": engines(machine, path.parent)}
    contents["max_batch"] = MOST
    path.write_text(json.dumps(contents))
    return tmp_path / "tiny"


@pytest.fixture
def model(whole_model):
    """In one size, without edits and tiny decoder: a third of the graphs to be warmed up."""
    path = whole_model / "1" / "export.json"
    contents = json.loads(path.read_text())
    contents["sizes"] = ["64x64"]
    for name in ("vae_encoder", "tiny_decoder"):
        del contents["components"][name], contents["tensorrt"]["components"][name]
    path.write_text(json.dumps(contents))
    return whole_model


class Backend(types.ModuleType):
    """Triton's module for its python models, as far as ours uses it."""

    TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1

    class Tensor:
        def __init__(self, name, array):
            self.name, self.array = name, array

    class InferenceResponse:
        def __init__(self, output_tensors):
            self.tensors = {each.name: each.array for each in output_tensors}

    @staticmethod
    def get_input_tensor_by_name(request, name):
        found = request.tensors.get(name)
        return None if found is None else types.SimpleNamespace(as_numpy=lambda: found)


class Request:
    def __init__(self, key, message, data=b""):
        self.tensors = {"message": pack(message)}
        if data:
            self.tensors["data"] = np.frombuffer(data, np.uint8)
        self.answer = Future()
        self.request_id = lambda: key
        self.get_response_sender = lambda: self

    def send(self, response, flags):
        self.answer.set_result((unpack(response.tensors["message"]), response.tensors.get("image")))


@pytest.fixture
def initialized(monkeypatch):
    """Triton's model, initialized as Triton does for an instance on a GPU."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", Backend("pb_utils"))
    monkeypatch.delitem(sys.modules, "cdm_serve.engine.triton_model", raising=False)
    started = []

    def initialize(folder, runtime, device=0, **parameters):
        values = {"runtime": runtime, "precision": "auto", "max_batch": "16", "batches": "auto"}
        values |= {"warm_up_seconds": "0.05", "prompt_cache_megabytes": "1"} | parameters
        config = {"parameters": {key: {"string_value": each} for key, each in values.items()}}
        made = importlib.import_module("cdm_serve.engine.triton_model").TritonPythonModel()
        made.initialize(
            {
                "model_config": json.dumps(config),
                "model_repository": str(folder),
                "model_version": "1",
                "model_name": folder.name,
                "model_instance_kind": "GPU",
                "model_instance_device_id": str(device),
            }
        )
        started.append(made)
        return made

    yield initialize
    for made in started:
        made.finalize()


def drawn(made, jobs):
    """The answers to jobs that are asked for at once."""
    requests = [Request(str(k), *generate_message(job)) for k, job in enumerate(jobs)]
    made.execute(requests)
    return [request.answer.result(60) for request in requests]


@pytest.mark.parametrize("runtime", ["onnxruntime", "tensorrt"])
def test_pictures_are_made_on_the_instances_gpu(
    whole_model, initialized, machine, pipeline, runtime
):
    device = 1
    made = initialized(whole_model, runtime, device)
    jobs = [Job("a fox", seed, 4, size) for size in ("64x64", "96x64") for seed in range(6)]
    answers = drawn(made, jobs)
    assert machine.used == {("cupy", device), (runtime, device)}
    for job, (message, image) in zip(jobs, answers, strict=True):
        assert message["kind"] == "picture", message
        (condition,) = pipeline.encode([job.prompt])
        sigmas = np.array(pipeline.manifest.sigmas[job.size][4], np.float32)
        latents = pipeline.denoise(pipeline.noise(job.seed, job.size)[None], sigmas, [condition])
        difference = image.astype(int) - pipeline.decode(latents)[0]
        assert np.abs(difference).mean() < 2
    # Rows differ by a thousandth here, which close allows.
    assert max(max(message["report"]["batches"]) for message, _ in answers) > 1
    describe = Request("describe", {"command": "describe"})
    made.execute([describe])
    report, _ = describe.answer.result(60)
    assert report["card"]["batches"]["policy"] == "close"
    assert report["card"]["batches"]["largest_difference"] == pytest.approx(1e-3, rel=0.1)


@pytest.mark.parametrize("captures", [True, False])
def test_an_engines_kernels_start_as_one_cuda_graph_a_shape(
    model, initialized, machine, captures, capfd
):
    machine.captures = captures
    made = initialized(model, "tensorrt")
    jobs = [Job("a fox", seed, 4, "64x64") for seed in range(6)]
    together = [image for _, image in drawn(made, jobs)]
    alone = [drawn(made, [job])[0][1] for job in jobs]
    for one, other in zip(together, alone, strict=True):
        assert np.abs(one.astype(int) - other).mean() < 2
    assert ((1, 4, 16, 16) in machine.launched) == captures
    assert ("no CUDA graph" in capfd.readouterr().out) == (not captures)


@pytest.mark.parametrize("runtime", ["onnxruntime", "tensorrt"])
def test_an_edit_stays_on_the_gpu_until_its_pixels(whole_model, initialized, runtime):
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    mask = np.arange(64) < np.full((64, 1), 32)
    made = initialized(whole_model, runtime, 1)
    tensors = [{"picture": picture}, {"picture": picture, "mask": mask}]
    jobs = [Job("a fox", 1, 4, "64x64", start=1, tensors=each) for each in tensors]
    whole, half = (image for _, image in drawn(made, jobs))
    assert (whole != picture).any(axis=2).mean() > 0.9
    assert np.array_equal(half[:, 32:], picture[:, 32:])
    assert (half[:, :32] != picture[:, :32]).any(axis=2).mean() > 0.9


def test_where_pictures_must_be_exact_a_gpu_draws_them_alone(model, initialized):
    made = initialized(model, "tensorrt", batches="exact")
    answers = drawn(made, [Job("a fox", seed, 2, "64x64") for seed in range(4)])
    assert {size for message, _ in answers for size in message["report"]["batches"]} == {1}


def refused(model, stamp=STAMP, device=0):
    with pytest.raises(StartError) as error:
        TensorRt(device, stamp).load(model / "1" / "transformer.onnx")
    return str(error.value)


def test_engines_of_another_version(model, machine, monkeypatch):
    """By their stamp; without one by TensorRT, whose reason is told."""
    machine.version = "11.5.0.1"
    fake_gpu.install(monkeypatch, machine)
    line = refused(model)
    assert "built by TensorRT 11.4.0.106, here is 11.5.0.1: build them here" in line
    assert "or install tensorrt==11.4.0.106" in line
    line = refused(model, stamp=None)
    assert "does not take" in line and "expecting library version 11.4.0.106 got 11.5" in line


def test_engines_for_several_versions_contain_code_for_the_cpu(model, machine, monkeypatch):
    engines(machine, model / "1", host_code=True)
    machine.version = "11.5.0.1"
    fake_gpu.install(monkeypatch, machine)
    stamp = STAMP | {"options": STAMP["options"] | {"version_compatible": True}}
    assert TensorRt(0, stamp).load(model / "1" / "transformer.onnx").inputs
    machine.version = "11.3.0.1"
    fake_gpu.install(monkeypatch, machine)
    assert "here is 11.3.0.1" in refused(model, stamp)


def test_engines_for_another_gpu(model, machine):
    machine.capability = (8, 6)
    line = refused(model)
    assert "for NVIDIA Fake (compute capability 9.0), here is NVIDIA Fake (8.6)" in line
    any_ampere = STAMP | {"options": STAMP["options"] | {"hardware_compatible": True}}
    assert "Target GPU SM is not compatible" in refused(model, any_ampere)
    machine.capability = (7, 5)
    assert "compute capability 9.0" in refused(model, any_ampere)


def test_no_memory_for_an_engine(model, machine):
    machine.memory = 1 << 30
    line = refused(model)
    assert "no memory on the GPU to run" in line and "allocating 9,663,676,416 bytes" in line


def test_no_memory_for_another_batch(model, machine):
    """Which the sweep of batches takes for what it is, by the word."""
    graph = TensorRt(0, STAMP).load(model / "1" / "vae_decoder.onnx")
    machine.contexts = 1
    one, two = (fake_gpu.on_device(np.zeros((batch, 4, 16, 16), np.float32)) for batch in (1, 2))
    graph.run({"latents": one})
    with pytest.raises(RuntimeError, match=r"no memory for .*\(2, 4, 16, 16\).*out of memory"):
        graph.run({"latents": two})
    assert graph.run({"latents": one})["image"].shape == (1, 64, 64, 3)


def test_engines_that_were_not_built(model):
    (model / "1" / "transformer.plan").unlink()
    assert "transformer.plan is missing, the engines were not built" in refused(model)


@pytest.mark.parametrize("runtime", ["onnxruntime", "tensorrt"])
def test_a_gpu_that_is_not_there(machine, runtime):
    with pytest.raises(StartError, match="there is no GPU 2 here, they end at 1: change gpus"):
        open_runtime(runtime, "auto", 2)
    machine.gpus = 0
    why = r"there is no GPU here \(cudaErrorNoDevice: no CUDA-capable device is detected\)"
    with pytest.raises(StartError, match=why):
        open_runtime(runtime, "auto")


@pytest.mark.parametrize("name", ["cupy", "tensorrt"])
def test_a_package_whose_libraries_are_missing(machine, monkeypatch, tmp_path, name):
    """It is there, which ``pip install`` alone would not mend; each says it in its own way."""
    cause = "OSError('libcublas.so.13: cannot open shared object file')"
    text = "raise " + (f"ImportError('=====\\nFailed') from {cause}" if name == "cupy" else cause)
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, name)
    line = rf"the package {name} cannot be loaded \(libcublas\.so\.13: cannot open"
    with pytest.raises(StartError, match=line):
        open_runtime("tensorrt", "auto")
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(StartError, match=f"the package {name} is missing: pip install"):
        open_runtime("tensorrt", "auto")


def test_cudas_libraries_are_found_where_pip_puts_them(machine, tmp_path, monkeypatch):
    folder = tmp_path / "nvidia" / "cu13" / "lib"
    folder.mkdir(parents=True)
    shutil.copy(importlib.import_module("_ctypes").__file__, folder / "libnvrtc.so.13")
    (tmp_path / "nvidia" / "nothing.txt").write_text("a namespace, as all of NVIDIA's packages")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "nvidia", raising=False)
    open_runtime("onnxruntime", "auto")
    assert str(folder / "libnvrtc.so.13") in Path("/proc/self/maps").read_text()


def test_onnxruntime_that_falls_back_to_the_cpu(model, machine):
    machine.cudnn = False
    with pytest.raises(StartError, match=r"could not start CUDAExec.*pip install 'cdm-serve.cuda"):
        open_runtime("onnxruntime", "auto").load(model / "1" / "transformer.onnx")


def test_a_graph_keeps_the_memory_of_one_batch_and_not_of_all_that_were_tried(
    whole_model, initialized, machine
):
    initialized(whole_model, "onnxruntime", batches="close")
    assert [len(regions) for regions in machine.arenas] == [1] * 5
    # Of what was asked for, not of the next power of two.
    assert all(size & (size - 1) for (size,) in machine.arenas)


def test_a_graph_gives_back_what_a_batch_took_that_did_not_fit(model, machine):
    graph = open_runtime("onnxruntime", "auto").load(model / "1" / "vae_decoder.onnx")
    latents = [fake_gpu.on_device(np.zeros((batch, 4, 16, 16), np.float32)) for batch in (1, 64)]
    for _ in range(2):
        graph.run({"latents": latents[0]})
    machine.memory = sum(map(sum, machine.arenas)) + 1000
    with pytest.raises(RuntimeError, match="Failed to allocate memory"):
        graph.run({"latents": latents[1]})
    assert sum(map(sum, machine.arenas)) == machine.memory
    graph.run({"latents": latents[0]})
    assert not sum(map(sum, machine.arenas))


@pytest.mark.parametrize("runtime", ["onnxruntime", "tensorrt"])
@pytest.mark.parametrize("broken", [True, False])
def test_a_process_whose_gpu_is_lost_ends_and_answers_nobody(
    model, initialized, machine, monkeypatch, runtime, broken
):
    """Its successor does; after other errors the next picture may be fine."""
    ended = Future()

    def end(code):
        ended.set_result(code)
        threading.Event().wait()

    monkeypatch.setattr(os, "_exit", end)
    made = initialized(model, runtime)
    machine.broken = broken
    monkeypatch.setattr(made._served["tiny"].scheduler._pipeline, "decode", None)
    request = Request("0", *generate_message(Job("a fox", 1, 1, "64x64")))
    made.execute([request])
    if broken:
        assert ended.result(60) == 1 and not request.answer.done()
        made.finalize = lambda: None
    else:
        assert request.answer.result(60)[0]["error"] == "failed" and not ended.done()


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_what_onnxruntime_is_not_given_on_a_gpu(model, precision):
    path = model / "1" / "export.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"precision": precision}))
    with pytest.raises(StartError, match=f"the export is in {precision}.*--precision fp16"):
        runtime_for(read_manifest(model / "1"), "onnxruntime", "auto")
    assert runtime_for(read_manifest(model / "1"), "tensorrt", "auto").batches == "close"
