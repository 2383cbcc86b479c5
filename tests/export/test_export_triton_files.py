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
    config, expected = parsed(model_config(8, runtime)), parsed(model_config(8, "openvino"))
    expected.parameters["runtime"].string_value = runtime
    expected.instance_group[0].kind = ModelInstanceGroup.KIND_GPU
    assert config == expected


@pytest.mark.parametrize(
    "runtime, others", [("openvino", ["onnxruntime"]), ("tensorrt", ["onnxruntime", "openvino"])]
)
def test_files_of_a_model_folder(tmp_path: Path, runtime: str, others: list[str]) -> None:
    (tmp_path / "1").mkdir()
    write_triton_files(tmp_path, 16, runtime)
    assert (tmp_path / "1" / "model.py").read_bytes() == (SOURCE / "model.py").read_bytes()
    assert (tmp_path / "config.pbtxt").read_text() == model_config(16, runtime)
    forms = {path.stem: parsed(path.read_text()) for path in (tmp_path / "configs").iterdir()}
    assert sorted(forms) == others
    for name, config in forms.items():
        assert config.parameters["runtime"].string_value == name
