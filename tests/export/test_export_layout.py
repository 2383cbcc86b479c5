"""Folders that people have: the right student, or one line that says what to do."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pipelines import tiny_longcat, tiny_qwen_image, tiny_sd3
from safetensors.torch import load_file, save_file

from export.cli import main
from export.errors import ExportError
from export.layout import check_student
from export.request import parse_lora
from export.student import load_student

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
KEY = "transformer_blocks.0.attn.to_q"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd3(tmp_path_factory.mktemp("layouts") / "plain", t5=True)


@pytest.fixture
def folder(plain: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain, tmp_path / "student"))


def edit(path: Path, drop: str = "", **changes: object) -> None:
    contents = json.loads(path.read_text()) | changes
    contents.pop(drop, None)
    path.write_text(json.dumps(contents))


def lora(path: Path, prefix: str = "transformer.", rank: int = 4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    weights = {
        f"{prefix}{KEY}.lora_A.weight": torch.randn(rank, 32, generator=generator),
        f"{prefix}{KEY}.lora_B.weight": torch.randn(32, rank, generator=generator),
    }
    save_file(weights, path, {"format": "pt"})
    return weights


def shards(folder: Path) -> Path:
    weights, place = load_file(folder / WEIGHTS), (folder / WEIGHTS).parent
    names = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    files = {key: names[i % 2] for i, key in enumerate(weights)}
    for name in names:
        part = {key: weights[key] for key, file in files.items() if file == name}
        save_file(part, place / name, {"format": "pt"})
    (folder / WEIGHTS).unlink()
    index = place / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return index


def root_lora(f: Path) -> None:
    lora(f / "pytorch_lora_weights.safetensors")


def peft_adapter(f: Path) -> None:
    (f / "transformer" / "adapter_config.json").write_text("{}")


def peft_wrapped(f: Path) -> None:
    weights = load_file(f / WEIGHTS)
    weights[f"{KEY}.base_layer.weight"] = weights.pop(f"{KEY}.weight")
    save_file(weights, f / WEIGHTS, {"format": "pt"})


def pickled(f: Path) -> None:
    torch.save(load_file(f / WEIGHTS), (f / WEIGHTS).with_suffix(".bin"))
    (f / WEIGHTS).unlink()


def pointer(f: Path) -> None:
    (f / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")


def missing_shard(f: Path) -> None:
    next(iter(sorted(shards(f).parent.glob("*-00002-of*")))).unlink()


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "a LoRA in the root": (root_lora, r"would be left out; merge it by --lora"),
    "a peft adapter": (peft_adapter, "holds a peft adapter"),
    "peft's wrapping": (peft_wrapped, "is wrapped by peft; merge and save again"),
    "qk_norm missing": (
        lambda f: edit(f / "transformer/config.json", "qk_norm"),
        r"norm_added_k.weight \(the first of 8\) has no place",
    ),
    "a pickle": (pickled, r"\.bin is a pickle, which is not loaded; convert it: python -c"),
    "a pointer": (pointer, "is a pointer of Git LFS"),
    "no index of shards": (lambda f: shards(f).unlink(), r"index\.json is missing"),
    "a shard is missing": (missing_shard, "00002-of-00002.safetensors is missing"),
    "quantized": (
        lambda f: edit(
            f / "transformer/config.json", quantization_config={"quant_method": "bitsandbytes"}
        ),
        "is quantized by bitsandbytes",
    ),
    "code of its own": (
        lambda f: edit(f / "model_index.json", _class_name=["pipeline_my", "MyPipeline"]),
        "_class_name is",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused(folder: Path, name: str) -> None:
    damage, message = BAD[name]
    damage(folder)
    with pytest.raises(ExportError, match=message) as caught:
        load_student(folder)
    assert "\n" not in str(caught.value)


def no_tokenizer_config(f: Path) -> None:
    vocab = json.loads((f / "tokenizer/tokenizer.json").read_text())["model"]["vocab"]
    shutil.rmtree(f / "tokenizer")
    (f / "tokenizer").mkdir()
    (f / "tokenizer/vocab.json").write_text(json.dumps(vocab))
    (f / "tokenizer/merges.txt").write_text("#version: 0.2\n")


def fp16(f: Path) -> None:
    for path in list(f.glob("*/*.safetensors")):
        path.rename(path.with_suffix(".fp16.safetensors"))


GOOD: dict[str, Callable[[Path], object]] = {
    "variants": fp16,
    "shards": shards,
    "no shift factor": lambda f: edit(f / "vae/config.json", shift_factor=None),
    "a CLIP without configuration": no_tokenizer_config,
}


@pytest.mark.parametrize("name", GOOD)
def test_what_is_read(folder: Path, plain: Path, name: str) -> None:
    GOOD[name](folder)
    student = load_student(folder)
    expected = load_file(plain / WEIGHTS)
    found = student.adapter.transformer.state_dict()
    assert all(torch.equal(found[key], weight) for key, weight in expected.items())
    assert [source.length for source in student.architecture.tokenizers()] == [24, 24, 256]
    assert student.adapter.pipeline.vae.config.shift_factor is not None  # diffusers adds it


SENTENCEPIECE = """
import json, sentencepiece
from sys import argv
sentencepiece.SentencePieceTrainer.train(
    input=argv[1] + ".txt", model_prefix=argv[1], vocab_size=29, pad_id=0, eos_id=1, unk_id=2,
    bos_id=-1, hard_vocab_limit=False, minloglevel=2,
)
print(json.dumps(sentencepiece.SentencePieceProcessor(argv[1] + ".model").encode(argv[2])))
"""


def test_a_sentencepiece_model_gives_its_own_ids(folder: Path) -> None:
    place = folder / "tokenizer_3"
    shutil.rmtree(place)
    place.mkdir()
    (place / "spiece.txt").write_text("a fox in the snow\ntwo owls\na sign that says open\n" * 20)
    # Alone: beside torch its own reader crashes; transformers reads the file without it.
    command = [sys.executable, "-c", SENTENCEPIECE, place / "spiece", "two owls in the snow"]
    expected = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    tokenizer = load_student(folder).architecture.tokenizers()[2]
    ids, mask = tokenizer.encode(["two owls in the snow"])
    assert ids[mask == 1].tolist() == [*expected, 1]


def test_longcats_first_index(tmp_path: Path) -> None:
    folder = tiny_longcat(tmp_path / "longcat")
    edit(folder / "model_index.json", "transformer")
    assert load_student(folder).adapter.name == "longcat"


def test_a_lora_is_merged(plain: Path, tmp_path: Path) -> None:
    file = tmp_path / "pytorch_lora_weights.safetensors"
    up_down = list(lora(file).values())
    expected = load_file(plain / WEIGHTS)[f"{KEY}.weight"]
    before = load_student(plain)
    merged = load_student(plain, loras=(parse_lora(f"{file}:0.5"),))
    found = merged.adapter.transformer.state_dict()[f"{KEY}.weight"]
    torch.testing.assert_close(found, expected + 0.5 * up_down[1] @ up_down[0])
    assert merged.sha256 != before.sha256
    # The folder of a LoRA alone.
    alone = load_student(tmp_path, base=plain)
    found = alone.adapter.transformer.state_dict()[f"{KEY}.weight"]
    torch.testing.assert_close(found, expected + up_down[1] @ up_down[0])
    lora(file, prefix="transformer.other_")
    with pytest.raises(ExportError, match=str(file)):
        load_student(plain, loras=((file, 1.0),))


def test_a_lightning_lora_is_merged(tmp_path: Path) -> None:
    """Qwen-Image's: keys as lightx2v writes them, with an alpha that is not the rank."""
    folder = tiny_qwen_image(tmp_path / "qwen-image")
    place = "transformer_blocks.1.attn.to_q"
    down, up = torch.randn(4, 32), torch.randn(32, 4)
    pair = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(8.0)}
    file = tmp_path / "lightning.safetensors"
    save_file({f"{place}.{name}": weight for name, weight in pair.items()}, file)
    expected = load_file(folder / WEIGHTS)[f"{place}.weight"] + 8 / 4 * up @ down
    found = load_student(folder, loras=((file, 1.0),)).adapter.transformer.state_dict()
    torch.testing.assert_close(found[f"{place}.weight"], expected)


def test_a_transformer_in_a_base(plain: Path, tmp_path: Path) -> None:
    other = tiny_sd3(tmp_path / "checkpoint-1000", seed=5, t5=True)
    student = load_student(other / "transformer", base=plain)
    expected = load_file(other / WEIGHTS)
    found = student.adapter.transformer.state_dict()
    assert all(torch.equal(found[key], weight) for key, weight in expected.items())
    assert student.name == "checkpoint-1000"


def test_what_is_no_pipeline_is_said_without_torch(plain: Path, tmp_path: Path) -> None:
    lora(tmp_path / "my.safetensors")
    for student, based, message in [
        (tmp_path / "none", False, "does not exist"),
        (plain / "transformer", False, "give the pipeline it belongs to by --base"),
        (tmp_path / "my.safetensors", False, "is a LoRA without a pipeline"),
        (plain / WEIGHTS, False, "from_single_file"),
        (plain, True, "leave --base out"),
    ]:
        with pytest.raises(ExportError, match=message):
            check_student(student, based)
    code = "import sys, export.cli as c; c.main(sys.argv[1:]); assert 'torch' not in sys.modules"
    command = [sys.executable, "-c", code, str(tmp_path / "none"), "--to", "onnx", "--out", "x"]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0 and "does not exist" in found.stderr
    assert main([str(plain), "--to", "onnx", "--out", "x", "--lora", "none"]) == 2
