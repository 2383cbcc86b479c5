"""The configurations, read by Triton's own protobuf."""

from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

from export.triton_files import SOURCE, model_config, write_triton_files


def parsed(text: str) -> ModelConfig:
    config = ModelConfig()
    text_format.Parse(text, config)
    return config


def test_the_model_batches_by_itself_on_the_cpu() -> None:
    config = parsed(model_config(3, "openvino"))
    assert config.parameters["max_batch"].string_value == "3"
    assert [group.kind for group in config.instance_group] == [ModelInstanceGroup.KIND_CPU]
    assert config.max_batch_size == 0 and config.model_transaction_policy.decoupled


@pytest.mark.parametrize("runtime", ["onnxruntime", "tensorrt"])
def test_the_gpu_forms_differ_in_device_and_runtime_alone(runtime: str) -> None:
    """One instance on one GPU: without ``gpus`` there would be one on each."""
    config, expected = parsed(model_config(8, runtime)), parsed(model_config(8, "openvino"))
    expected.parameters["runtime"].string_value = runtime
    expected.instance_group[0].kind = ModelInstanceGroup.KIND_GPU
    expected.instance_group[0].gpus.append(0)
    assert config == expected


@pytest.mark.parametrize(
    ("engines", "chosen"),
    [
        (False, {"config": "openvino", "cpu": "openvino", "gpu": "onnxruntime"}),
        (True, {"config": "tensorrt", "cpu": "openvino", "gpu": "tensorrt"}),
    ],
)
def test_files_of_a_model_folder(tmp_path: Path, engines: bool, chosen: dict[str, str]) -> None:
    """Whatever was exported, ``--model-config-name=gpu`` is what a GPU serves it by."""
    (tmp_path / "1").mkdir()
    write_triton_files(tmp_path, 16, engines=engines)
    assert (tmp_path / "1" / "model.py").read_bytes() == (SOURCE / "model.py").read_bytes()
    paths = [tmp_path / "config.pbtxt", *(tmp_path / "configs").iterdir()]
    found = {path.stem: parsed(path.read_text()).parameters["runtime"] for path in paths}
    assert {name: each.string_value for name, each in found.items()} == chosen
