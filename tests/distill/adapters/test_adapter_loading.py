"""Pipelines that cannot be taken: one clear line each."""

import json
import shutil
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler
from pipelines import tiny_sd3
from safetensors.torch import load_file, save_file
from students import FAMILIES

from distill.adapters import load_adapter
from distill.adapters.registry import OTHER_STEPS
from distill.errors import DistillError


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teachers")
    tiny_sd3(folder / "sd3", t5=True)
    for name, (make, _) in FAMILIES.items():
        make(folder / name)
    return folder


@pytest.fixture(params=["sd3", "longcat", "flux", "klein", "qwen-image", "z-image"])
def folder(request: pytest.FixtureRequest, teachers: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(teachers / request.param, tmp_path / "pipeline"))


def refused(path: Path | str) -> str:
    with pytest.raises(DistillError) as caught:
        load_adapter(str(path))
    message = str(caught.value)
    assert "\n" not in message
    return message


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def weights(folder: Path, component: str) -> Path:
    (path,) = (folder / component).glob("*.safetensors")
    return path


def test_nothing_there(tmp_path: Path) -> None:
    assert "holds no readable model_index.json" in refused(tmp_path)
    message = refused(tmp_path / "none")
    assert "is no folder here, and is no model the hub gives" in message


def test_an_index_that_is_none(tmp_path: Path) -> None:
    index = tmp_path / "model_index.json"
    index.write_text("[]")
    assert "must hold a JSON object" in refused(tmp_path)
    index.write_text("{")
    assert "no readable model_index.json" in refused(tmp_path)
    index.write_text('{"_class_name": "StableDiffusion3Pipeline"}')
    assert "lists no scheduler and no text_encoder and" in refused(tmp_path)


@pytest.mark.parametrize("name", ["PixArtAlphaPipeline", "NoSuchPipeline", None])
def test_another_pipeline(folder: Path, name: str | None) -> None:
    edit(folder / "model_index.json", _class_name=name)
    message = refused(folder)
    assert f"is a {name}, not a flow-matching pipeline" in message
    assert "known pipelines: StableDiffusion3Pipeline, LongCatImagePipeline" in message


@pytest.mark.parametrize("name", sorted(OTHER_STEPS))
def test_a_few_step_pipeline_of_other_steps(folder: Path, name: str) -> None:
    edit(folder / "model_index.json", _class_name=name)
    assert issubclass(getattr(diffusers, name), diffusers.DiffusionPipeline)
    message = refused(folder)
    assert f"is a {name}, which {OTHER_STEPS[name]}; this package takes flow matching" in message


def test_a_scheduler_that_is_not_flow_matching(folder: Path) -> None:
    DDIMScheduler().save_pretrained(folder / "scheduler")
    edit(folder / "model_index.json", scheduler=["diffusers", "DDIMScheduler"])
    assert "the scheduler DDIMScheduler is not flow matching by plain Euler" in refused(folder)


@pytest.mark.parametrize("name", ["LCMScheduler", "TCDScheduler", "FlashFlowMatchEuler"])
def test_a_scheduler_that_adds_noise(folder: Path, name: str) -> None:
    """Also one that this diffusers has not; said before any weight is read."""
    edit(folder / "model_index.json", scheduler=["diffusers", name])
    shutil.rmtree(folder / "transformer")
    message = refused(folder)
    assert f"the scheduler {name} is not flow matching by plain Euler steps, which" in message


@pytest.mark.parametrize("option", ["use_karras_sigmas", "invert_sigmas", "stochastic_sampling"])
def test_a_scheduler_that_samples_otherwise(folder: Path, option: str) -> None:
    edit(folder / "scheduler" / "scheduler_config.json", **{option: True})
    shutil.rmtree(folder / "transformer")
    message = refused(folder)
    assert f"FlowMatchEulerDiscreteScheduler with {option} is not flow matching" in message
    assert ("adds noise after each" in message) == (option == "stochastic_sampling")


@pytest.mark.parametrize("component", ["transformer", "text_encoder", "vae"])
def test_a_missing_weight_is_not_made_up(
    folder: Path, component: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = weights(folder, component)
    tensors = load_file(path)
    lost = sorted(key for key in tensors if "norm" not in key)[-1]
    del tensors[lost]
    save_file(tensors, path, {"format": "pt"})
    message = refused(folder)
    assert f"{component}: weight " in message
    # transformers names it as the network does, not as the file.
    assert lost.rsplit(".", 2)[-2:][0] in message
    assert "(the first of 1) is missing from its files" in message
    printed = capfd.readouterr().err
    assert "MISSING" not in printed
    assert "not initialized" not in printed


@pytest.mark.parametrize("component", ["transformer", "text_encoder", "vae"])
@pytest.mark.parametrize("damage", ["cut", "junk", "shape", "gone"])
def test_damaged_weights(folder: Path, component: str, damage: str) -> None:
    path = weights(folder, component)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "junk":
        path.write_bytes(b"version https://git-lfs.github.com/spec/v1")
    elif damage == "shape":
        tensors = load_file(path)
        tensors[max(tensors)] = torch.zeros(3, 5)
        save_file(tensors, path, {"format": "pt"})
    else:
        path.unlink()
    message = refused(folder)
    assert message.startswith(str(folder / component))
    if damage == "shape":
        assert max(tensors).rsplit(".", 2)[-2:][0] in message


@pytest.mark.parametrize("component", ["transformer", "text_encoder", "vae"])
@pytest.mark.parametrize("text", [None, "{", "[]", "{}"])
def test_a_network_without_its_configuration(
    folder: Path, component: str, text: str | None
) -> None:
    path = folder / component / "config.json"
    path.unlink()
    if text is not None:
        path.write_text(text)
    assert str(path) in refused(folder)


def test_a_tokenizer_without_its_vocabulary(folder: Path) -> None:
    for place in folder.glob("tokenizer*"):
        whole = (place / "tokenizer.json").read_text()
        (place / "tokenizer.json").unlink()
        assert f"{place} has no vocabulary" in refused(folder)
        (place / "tokenizer.json").write_text("{")
        assert f"{place} cannot be loaded: " in refused(folder)
        (place / "tokenizer.json").write_text(whole)


@pytest.mark.parametrize("name", ["klein", "z-image"])
def test_a_tokenizer_without_its_chat(name: str, teachers: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(teachers / name, tmp_path / "pipeline")
    (folder / "tokenizer" / "chat_template.jinja").unlink()
    assert f"{folder / 'tokenizer'} has no chat template" in refused(folder)


@pytest.mark.parametrize("component", ["transformer", "text_encoder", "tokenizer", "scheduler"])
def test_absent_components(folder: Path, component: str) -> None:
    shutil.rmtree(folder / component)
    message = refused(folder)
    assert f"{folder} is incomplete: model_index.json lists {component}" in message
    edit(folder / "model_index.json", **{component: [None, None]})
    assert f"model_index.json lists no {component}, which" in refused(folder)


def test_a_text_encoder_needs_its_tokenizer(teachers: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(teachers / "sd3", tmp_path / "pipeline")
    edit(folder / "model_index.json", tokenizer_3=[None, None])
    assert "lists no tokenizer_3" in refused(folder)


def test_an_unknown_class(folder: Path) -> None:
    edit(folder / "model_index.json", vae=["diffusers", "AutoencoderOfTomorrow"])
    assert "class diffusers.AutoencoderOfTomorrow, which is not known here" in refused(folder)


@pytest.mark.parametrize(
    "component, others",
    [
        ("transformer", ["sd3", "flux"]),
        ("text_encoder", ["longcat", "klein"]),
        ("vae", ["sd3", "qwen-image"]),
    ],
)
def test_another_networks_whole_folder(
    folder: Path, teachers: Path, component: str, others: list[str]
) -> None:
    own = json.loads((folder / "model_index.json").read_text())[component]
    for other in (teachers / each for each in others):
        entry = json.loads((other / "model_index.json").read_text())[component]
        if entry != own:
            break
    edit(folder / "model_index.json", **{component: entry})
    shutil.rmtree(folder / component)
    shutil.copytree(other / component, folder / component)
    message = refused(folder)
    assert f" {entry[1]}" in message and (f"takes {own[1]}" in message or own[1] in message)


def test_longcats_text_processor_is_left_alone(teachers: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(teachers / "longcat", tmp_path / "pipeline")
    edit(folder / "model_index.json", text_processor=["transformers", "Qwen2_5_VLProcessor"])
    adapter = load_adapter(str(folder))
    assert adapter.name == "longcat"
    assert adapter.pipeline.text_processor is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_all_networks_load_in_the_type_asked_for(folder: Path, dtype: torch.dtype) -> None:
    pipeline = load_adapter(str(folder), dtype).pipeline
    for name in ("transformer", "vae", "text_encoder"):
        network = pipeline.components[name]
        assert {p.dtype for p in network.parameters()} == {dtype}
        assert not network.training
