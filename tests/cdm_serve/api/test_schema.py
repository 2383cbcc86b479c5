import pytest
from pydantic import ValidationError

from cdm_serve.api.schema import ImageRequest


def refusal(**fields):
    with pytest.raises(ValidationError) as caught:
        ImageRequest.model_validate({"prompt": "a fox"} | fields)
    (error,) = caught.value.errors()
    return error["loc"][0], error["msg"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", ""),
        ("prompt", " \n\t"),
        ("prompt", "a\0fox"),
        ("prompt", "a \x1b[31mfox"),
        ("prompt", "a \ud800"),
        ("prompt", 3),
        ("prompt", None),
        ("prompt", ["a fox"]),
        ("model", 1),
        ("n", 0),
        ("n", 11),
        ("n", "1"),
        ("n", 1.0),
        ("n", True),
        ("size", 64),
        ("quality", "ultra"),
        ("response_format", "link"),
        ("output_format", "gif"),
        ("output_compression", -1),
        ("output_compression", 101),
        ("seed", -1),
        ("seed", 2**53),
        ("seed", "7"),
        ("num_inference_steps", 0),
        ("num_inference_steps", 17),
        ("stream", "false"),
        ("partial_images", 4),
        ("partial_images", -1),
        ("background", "transparent"),
        ("moderation", "low"),
        ("style", "vivid"),
        ("negative_prompt", "blurry"),
        ("guidance_scale", 7.5),
        ("user", 1),
        ("cfg", 1),
    ],
)
def test_refuses_by_name(field, value):
    name, message = refusal(**{field: value})
    assert name == field
    assert message


def test_says_why():
    assert "guidance is distilled" in refusal(guidance_scale=2.0)[1]
    assert "U+0000" in refusal(prompt="\0")[1]


NEUTRAL = {
    "prompt": "größer\n狐狸 🦊",
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


def test_what_changes_nothing_is_taken_as_it_is():
    assert ImageRequest.model_validate(NEUTRAL).model_dump(exclude_unset=True) == NEUTRAL
