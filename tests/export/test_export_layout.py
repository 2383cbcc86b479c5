"""Folders that people have: the right student, or one line that says what to do."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Once
from diffusers import DiffusionPipeline
from pipelines import tiny_flux, tiny_longcat, tiny_qwen_image, tiny_sd3
from safetensors.torch import load_file, save_file
from students import FAMILIES, family

from export.cli import main
from export.errors import ExportError
from export.layout import check_student
from export.request import parse_lora, parse_path
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


def pair(name: str, down: str = "lora_A", up: str = "lora_B") -> dict[str, torch.Tensor]:
    """What ``DIFFERENCE`` is the product of."""
    generator = torch.Generator().manual_seed(1)
    return {
        f"{name}.{down}.weight": torch.randn(4, 32, generator=generator),
        f"{name}.{up}.weight": torch.randn(32, 4, generator=generator),
    }


def _difference() -> torch.Tensor:
    down, up = pair("").values()
    return up @ down


DIFFERENCE = _difference()


def lora(path: Path, prefix: str = "transformer.", **metadata: str) -> None:
    save_file(pair(f"{prefix}{KEY}"), path, {"format": "pt"} | metadata)


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


def fp16_shards(f: Path) -> None:
    """As SD3.5-Large has its T5."""
    index = shards(f)
    contents = json.loads(index.read_text())
    for name in set(contents["weight_map"].values()):
        (index.parent / name).rename(index.parent / name.replace("model-", "model.fp16-"))
    contents["weight_map"] = {
        key: name.replace("model-", "model.fp16-") for key, name in contents["weight_map"].items()
    }
    index.unlink()
    fp16_index = index.with_name("diffusion_pytorch_model.safetensors.index.fp16.json")
    fp16_index.write_text(json.dumps(contents))


def both(f: Path) -> None:
    """A plain file and a variant, of which the plain one is taken; and a download's rest."""
    shutil.copy(f / WEIGHTS, f / WEIGHTS.replace(".safetensors", ".fp16.safetensors"))
    fp16_shards(Path(shutil.copytree(f, f.with_name("other"))))
    for path in f.with_name("other").glob("transformer/*.fp16-*"):
        shutil.copy(path, f / "transformer")
    shutil.copy(f / WEIGHTS, f / "sd3.5_large_turbo.safetensors")
    (f / "text_encoders").mkdir()


GOOD: dict[str, Callable[[Path], object]] = {
    "variants": fp16,
    "shards": shards,
    "shards of a variant": fp16_shards,
    "variants beside": both,
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


def test_what_a_configuration_says_in_vain_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As Qwen-Image's transformer has it; diffusers leaves such keys out."""
    folder = tiny_qwen_image(tmp_path / "student")
    assert load_student(folder).unread == {}
    edit(folder / "transformer/config.json", pooled_projection_dim=768)
    dry_run = ["--to", "tensorrt", "--dry-run", "--out", "x"]
    assert main([str(folder), *dry_run]) == 0
    told = "transformer: its configuration has pooled_projection_dim: unknown to diffusers"
    assert told in capsys.readouterr().out


def test_of_a_hub_name_that_is_refused_only_the_index_is_fetched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    index = {"_class_name": "StableDiffusionXLPipeline"}
    monkeypatch.setattr(DiffusionPipeline, "load_config", lambda name: index)
    monkeypatch.setattr(DiffusionPipeline, "download", pytest.fail)
    with pytest.raises(ExportError, match=r"sdxl-turbo is a StableDiffusionXLPipeline, which pred"):
        load_student(Path("stabilityai/sdxl-turbo"))


def half(f: Path) -> None:
    """The second of two shards is cut."""
    shards(f)
    (path,) = f.glob("transformer/*-00002-of*")
    path.write_bytes(path.read_bytes()[:-100])


HALF: dict[str, tuple[Callable[[Path], object], str]] = {
    "a cut shard": (half, r"00002-of-00002\.safetensors is a part of a safetensors file"),
    "no shard": (missing_shard, r"00002-of-00002\.safetensors is missing"),
    "no text encoder": (lambda f: shutil.rmtree(f / "text_encoder"), "lists text_encoder"),
    "another text encoder": (
        lambda f: edit(f / "model_index.json", text_encoder=["transformers", "MT5EncoderModel"]),
        "MT5EncoderModel|text_encoder: weight .* is missing",
    ),
    "no vocabulary": (lambda f: (f / "tokenizer/tokenizer.json").unlink(), "has no vocabulary"),
    "no scheduler": (lambda f: shutil.rmtree(f / "scheduler"), "lists scheduler"),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_half_a_checkpoint_of_each_family_is_one_line(
    name: str, once: Once, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = once(f"student-{name}", lambda folder: family(name, folder))
    for what, (damage, message) in HALF.items():
        damage(folder := Path(shutil.copytree(whole, tmp_path / what)))
        assert main([str(folder), "--to", "onnx", "--out", str(tmp_path / "out")]) == 2
        output = capsys.readouterr()
        (line,) = output.err.splitlines()
        assert line.startswith("cdm-export: ") and re.search(message, line), line
    assert not (tmp_path / "out").exists()


def test_longcats_first_index(tmp_path: Path) -> None:
    folder = tiny_longcat(tmp_path / "longcat")
    edit(folder / "model_index.json", "transformer")
    assert load_student(folder).adapter.name == "longcat"


def test_a_lora_is_merged(plain: Path, tmp_path: Path) -> None:
    file = tmp_path / "pytorch_lora_weights.safetensors"
    lora(file)
    expected = load_file(plain / WEIGHTS)[f"{KEY}.weight"]
    before = load_student(plain)
    merged = load_student(plain, loras=(parse_lora(f"{file}:0.5"),))
    found = merged.adapter.transformer.state_dict()[f"{KEY}.weight"]
    torch.testing.assert_close(found, expected + 0.5 * DIFFERENCE)
    assert merged.sha256 != before.sha256
    # The folder of a LoRA alone.
    alone = load_student(tmp_path, base=plain)
    found = alone.adapter.transformer.state_dict()[f"{KEY}.weight"]
    torch.testing.assert_close(found, expected + DIFFERENCE)
    lora(file, prefix="transformer.other_")
    with pytest.raises(ExportError, match=str(file)):
        load_student(plain, loras=((file, 1.0),))


PEFT = {"r": 4, "lora_alpha": 8, "use_dora": False, "rank_pattern": {}, "target_modules": ["to_q"]}
METADATA = {"transformer.r": 4, "transformer.lora_alpha": 8, "transformer.target_modules": [KEY]}


def merged(folder: Path, file: Path) -> torch.Tensor:
    """What a LoRA adds to the weight of ``KEY``."""
    found = load_student(folder, loras=(parse_lora(str(file)),)).adapter.transformer.state_dict()
    return found[f"{KEY}.weight"] - load_file(folder / WEIGHTS)[f"{KEY}.weight"]


def test_a_lora_has_the_scale_that_its_maker_says(plain: Path, tmp_path: Path) -> None:
    """diffusers in the file's header, peft in a file beside it."""
    file = tmp_path / "my.safetensors"
    lora(file, lora_adapter_metadata=json.dumps(METADATA))
    torch.testing.assert_close(merged(plain, file), 2 * DIFFERENCE)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    lora(adapter / "adapter_model.safetensors", prefix="base_model.model.")
    with pytest.raises(ExportError, match=r"adapter_config\.json, which says its scale, cannot"):
        merged(plain, adapter)
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps(PEFT))
    torch.testing.assert_close(merged(plain, adapter), 2 * DIFFERENCE)
    edit(config, use_rslora=True)
    torch.testing.assert_close(merged(plain, adapter), 4 * DIFFERENCE)
    edit(config, alpha_pattern={"to_q": 2})
    with pytest.raises(ExportError, match="alpha_pattern is not read; merge it where"):
        merged(plain, adapter)


def kohya(name: str) -> dict[str, torch.Tensor]:
    return pair(name, "lora_down", "lora_up") | {f"{name}.alpha": torch.tensor(8.0)}


def test_a_lora_of_kohyas_is_merged_or_nothing_of_it(plain: Path, tmp_path: Path) -> None:
    """A fused projection becomes three, so that what got lost is not seen by counting."""
    folder, file = tiny_flux(tmp_path / "flux", guidance=True), tmp_path / "kohya.safetensors"
    blocks = "lora_unet_double_blocks_0_img_attn_qkv"
    weights = kohya(blocks)
    up = weights[f"{blocks}.lora_up.weight"]
    weights[f"{blocks}.lora_up.weight"] = torch.cat([up, up, up])
    clip = {}
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        clip |= kohya(f"lora_te1_text_model_encoder_layers_0_self_attn_{name}")
    save_file(weights | clip, file)
    torch.testing.assert_close(merged(folder, file), 2 * DIFFERENCE)
    other_block = {
        key.replace("blocks_0", "blocks_7"): each.clone() for key, each in weights.items()
    }
    for more, message in (
        (kohya("lora_te3_encoder_block_0_layer_0_SelfAttention_q"), "2 of its weights have no"),
        (other_block, "6 of its weights have no place"),
        ({f"{blocks}.dora_scale": torch.ones(96)}, r"more than a plain LoRA \(weight .*dora_scale"),
    ):
        save_file(weights | more, file)
        with pytest.raises(ExportError, match=message):
            merged(folder, file)
    save_file(
        {f"transformer.{key}": each[..., :16].contiguous() for key, each in pair(KEY).items()}, file
    )
    with pytest.raises(ExportError, match="size mismatch") as caught:
        merged(plain, file)
    assert "\n" not in str(caught.value)


def test_a_flux_lora_of_fewer_inputs_is_padded_and_one_of_more_refused(tmp_path: Path) -> None:
    """As diffusers pads it; of more it would widen the network, for a picture beside the noise."""
    folder, file = tiny_flux(tmp_path / "flux"), tmp_path / "lora.safetensors"
    place = "x_embedder"
    expected = load_file(folder / WEIGHTS)[f"{place}.weight"]
    for inputs in (48, 128):
        down, up = torch.randn(4, inputs), torch.randn(32, 4)
        pair = {"lora_A.weight": down, "lora_B.weight": up}
        save_file({f"transformer.{place}.{name}": each for name, each in pair.items()}, file)
        if inputs == 128:
            with pytest.raises(ExportError, match=r"wider network: x_embedder.weight is \[32, 128"):
                load_student(folder, loras=((file, 1.0),))
            return
        found = load_student(folder, loras=((file, 1.0),)).adapter.transformer.state_dict()
        expected[:, :inputs] += up @ down
        torch.testing.assert_close(found[f"{place}.weight"], expected)


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


ODD = 'it\'s a "répo" $HOME #1 狐'


def test_odd_paths(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spaces, quotes, other letters; relative, with a slash at the end, below ``~``, by a link."""
    student = Path(shutil.copytree(plain, tmp_path / ODD / "student"))
    file = tmp_path / ODD / "a:b.safetensors"
    lora(file)
    monkeypatch.chdir(tmp_path / ODD)
    monkeypatch.setenv("HOME", str(tmp_path / ODD))
    (tmp_path / "link").symlink_to(student)
    expected = load_student(plain).sha256
    for path, name in (("student/", "student"), ("~/student", "student"), ("../link", "link")):
        found = load_student(parse_path(path))
        assert (found.name, found.sha256) == (name, expected)
    torch.testing.assert_close(merged(student, Path("a:b.safetensors")), DIFFERENCE)
    assert parse_lora("~/a:b.safetensors:0.5") == (file, 0.5)
    with pytest.raises(ExportError, match="the scale is nan"):
        parse_lora("a:b.safetensors:nan")


def cached(folder: Path, cache: Path, name: str) -> Path:
    """A folder as the hub's client keeps it: every file a link to a blob."""
    place = cache / f"models--{name.replace('/', '--')}"
    for path in (path for path in folder.rglob("*") if path.is_file()):
        blob = place / "blobs" / hashlib.sha256(str(path.relative_to(folder)).encode()).hexdigest()
        link = place / "snapshots" / "0123abc" / path.relative_to(folder)
        for each in (blob, link):
            each.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, blob)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0123abc")
    return place / "snapshots" / "0123abc"


@pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks`:UserWarning")  # diffusers
def test_a_hubs_cache(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the name, without a network, and by its folder; also a file that is a link in there."""
    name = "byliutao/stable-diffusion-3-medium-turbo"
    snapshot = cached(plain, tmp_path, name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for source in (Path(name), snapshot):
        student = load_student(source)
        assert student.name == "stable-diffusion-3-medium-turbo"
        assert student.sha256 == load_student(plain).sha256
        assert str(student.contract) == f"4 steps without guidance, even sigmas: {name} is known"
    file = tmp_path / "blob"
    lora(file)
    (snapshot / "my.safetensors").symlink_to(file)
    torch.testing.assert_close(merged(plain, snapshot / "my.safetensors"), DIFFERENCE)
    with pytest.raises(ExportError, match="other/name is no folder here, and is no model"):
        load_student(Path("other/name"))


def test_what_is_no_pipeline_is_said_without_torch(plain: Path, tmp_path: Path) -> None:
    lora(tmp_path / "my.safetensors")
    checkpoint = tmp_path / "checkpoint-1000"
    shutil.copytree(plain / "transformer", checkpoint / "transformer")
    for student, based, message in [
        (tmp_path / "none", False, "does not exist"),
        (plain / "transformer", False, "give the pipeline it belongs to by --base"),
        (checkpoint, True, "no pipeline but a transformer; give .*/transformer and --base"),
        (checkpoint, False, "no pipeline but a transformer"),
        (tmp_path / "my.safetensors", False, "is a LoRA without a pipeline"),
        (plain / WEIGHTS, False, "is a single-file checkpoint without a pipeline"),
        (plain, True, "leave --base out"),
    ]:
        with pytest.raises(ExportError, match=message):
            check_student(student, based)
    code = "import sys, export.cli as c; c.main(sys.argv[1:]); assert 'torch' not in sys.modules"
    command = [sys.executable, "-c", code, str(tmp_path / "none"), "--to", "onnx", "--out", "x"]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0 and "does not exist" in found.stderr
    assert main([str(plain), "--to", "onnx", "--out", "x", "--lora", "none"]) == 2
