import pytest

from cdm_serve.api.errors import ApiError
from cdm_serve.api.reading import Notes, read_request
from cdm_serve.api.schema import ImageRequest


def read(strict=False, **fields):
    notes = Notes(strict)
    request = read_request({"prompt": "a fox"} | fields, ImageRequest, notes)
    return request.model_dump(exclude_unset=True, exclude={"prompt"}), notes


def refusal(**fields):
    _, notes = read(**fields)
    with pytest.raises(ApiError) as caught:
        notes.settle()
    return caught.value


@pytest.mark.parametrize(
    ("sent", "meant"),
    [
        ({"n": "4", "seed": 7.0, "stream": "true"}, {"n": 4, "seed": 7, "stream": True}),
        ({"n": None, "complexity": None, "style": "", "images": []}, {}),
        ({"seed": -1}, {}),
        ({"seed": "-1"}, {}),
        ({"guidance_scale": 0.0}, {}),
        ({"true_cfg_scale": "1.0"}, {}),
        ({"moderation": "low", "generator_device": "cuda"}, {}),
        ({"user": "me", "safety_identifier": "x"}, {"user": "me", "safety_identifier": "x"}),
        ({"steps": 2, "num_images": 3}, {"num_inference_steps": 2, "n": 3}),
        ({"batch_size": 2}, {"n": 2}),
        ({"width": 96, "height": 64.0}, {"size": "96x64"}),
        ({"width": "512"}, {"size": "512x512"}),
        ({"size": 512}, {"size": "512x512"}),
        ({"size": "96 X 64"}, {"size": "96x64"}),
        ({"size": "96*64"}, {"size": "96x64"}),
        ({"aspectRatio": "3:2"}, {"size": "3x2"}),
        ({"size": "AUTO", "quality": "HD"}, {"size": "AUTO", "quality": "hd"}),
        ({"output_format": "JPG"}, {"output_format": "jpeg"}),
        ({"format": "image/webp"}, {"output_format": "webp"}),
        ({"background": "Opaque"}, {"background": "opaque"}),
    ],
)
def test_what_is_meant_is_taken_without_a_word(sent, meant):
    fields, notes = read(**sent)
    assert fields == meant
    assert (notes.warnings, notes.faults) == ([], [])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("negative_prompt", "blurry"),
        ("guidance_scale", 7.5),
        ("cfg_scale", "7"),
        ("style", "vivid"),
        ("style", ["vivid"]),
        ("background", "transparent"),
        ("unheard_of", 1),
    ],
)
def test_what_cannot_be_done_is_warned_of_and_refused_by_a_strict_server(field, value):
    fields, notes = read(**{field: value})
    assert fields == {}
    (warning,) = notes.warnings
    assert warning.endswith("; ignored")
    strict = refusal(strict=True, **{field: value})
    assert (strict.status, strict.param) == (400, field)


@pytest.mark.parametrize("field", ["image", "input_references", "image_url", "mask", "lora"])
def test_a_picture_without_what_it_was_to_be_made_of_is_refused(field):
    assert refusal(**{field: "data:"}).code == "unknown_parameter"


def test_all_faults_are_told_at_once():
    fault = refusal(prompt="", n=11, seed=1.5, quality="ultra", size=[1])
    assert (fault.status, fault.param, fault.code) == (400, "prompt", "invalid_value")
    parts = str(fault).split("; ")
    assert [part.partition(":")[0] for part in parts] == ["prompt", "n", "size", "quality", "seed"]


def test_thousands_of_faults_are_not():
    fault = refusal(strict=True, **{f"field{number}" + "x" * 99: 0 for number in range(1000)})
    assert str(fault).endswith("; and 990 more")
    assert len(str(fault)) < 1000


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", " \n\t"),
        ("prompt", "a\0fox"),
        ("prompt", "a \x1b[31mfox"),
        ("prompt", "a \ud800"),
        ("prompt", 3),
        ("prompt", None),
        ("prompt", ["a fox"]),
        ("model", 1),
        ("n", 0),
        ("n", "many"),
        ("size", [64]),
        ("response_format", "link"),
        ("output_format", "gif"),
        ("output_compression", -1),
        ("output_compression", 101),
        ("seed", -2),
        ("seed", 2**53),
        ("num_inference_steps", 0),
        ("stream", "perhaps"),
        ("partial_images", 4),
        ("partial_images", -1),
        ("user", 1),
    ],
)
def test_what_has_no_meaning_is_refused_by_name(field, value):
    for strict in (False, True):
        assert refusal(strict=strict, **{field: value}).param == field


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", "1"),
        ("n", 1.0),
        ("n", True),
        ("size", 64),
        ("seed", "7"),
        ("seed", -1),
        ("stream", "false"),
        ("moderation", "low"),
        ("steps", 2),
        ("complexity", None),
    ],
)
def test_a_strict_server_takes_nothing_loosely(field, value):
    assert refusal(strict=True, **{field: value}).param == field


def test_a_missing_prompt_is_named_and_says_why():
    notes = Notes(strict=False)
    read_request({}, ImageRequest, notes)
    assert [fault.code for fault in notes.faults] == ["missing_required_parameter"]
    assert "guidance is distilled" in str(refusal(strict=True, guidance_scale=2.0))
    assert "U+0000" in str(refusal(prompt="\0"))


NEUTRAL = {
    "n": None,
    "response_format": "b64_json",
    "stream": False,
    "partial_images": 0,
    "background": "opaque",
    "moderation": "auto",
    "style": None,
    "negative_prompt": "",
    "guidance_scale": 1,
    "user": "u-1",
    "safety_identifier": "s-1",
}


def test_what_changes_nothing_is_taken_by_a_strict_server_too():
    fields, notes = read(strict=True, **NEUTRAL)
    assert fields == NEUTRAL
    assert (notes.warnings, notes.faults) == ([], [])
