"""Pictures in, over HTTP, as OpenAI's client and others send them."""

import base64
import io
import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import openai
import pytest
from PIL import Image, ImageCms

from cdm_serve.api.edits import check_model
from cdm_serve.api.errors import ApiError

PIXELS = np.random.default_rng(2).integers(0, 256, (64, 64, 3), np.uint8)


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


IMAGE = png(PIXELS)
# As OpenAI has it: what is transparent is painted.
ALPHA = np.full((64, 64, 4), 255, np.uint8)
ALPHA[:, 24:, 3] = 0
MASK = png(ALPHA)
URL = "data:image/png;base64," + base64.b64encode(IMAGE).decode()


def opened(item):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(item.b64_json))))


def test_the_openai_client_paints_what_the_mask_leaves_open(client, manifest):
    answer = client.images.edit(image=IMAGE, mask=MASK, prompt="a fox", n=2, extra_body={"seed": 7})
    assert [item.seed for item in answer.data] == [7, 8]
    for item in answer.data:
        assert np.array_equal(opened(item)[:, :24], PIXELS[:, :24])
        assert not np.array_equal(opened(item)[:, 24:], PIXELS[:, 24:])
    receipt = answer.data[0].receipt
    assert (receipt["strength"], receipt["fingerprint"]) == (1.0, manifest.fingerprint)
    assert len(receipt["batches"]) == 4 and "picture" in receipt["milliseconds"]
    assert answer.usage.input_tokens_details.image_tokens == 2 * 256
    assert answer.usage.total_tokens == answer.usage.input_tokens + 2 * 256
    assert answer.warnings == []


def test_strength_is_how_many_steps_are_made(client, server):
    made = {}
    for strength, steps in {0.1: 1, 0.5: 2, 0.75: 3, 0.8: 4, 1: 4}.items():
        extra = {"seed": 7, "strength": strength}
        (item,) = client.images.edit(image=IMAGE, prompt="a fox", extra_body=extra).data
        assert len(item.receipt["batches"]) == steps
        made[strength] = opened(item).astype(int)
    distances = [np.abs(made[each] - PIXELS).mean() for each in (0.1, 0.5, 0.75)]
    assert distances == sorted(distances)
    # All of them start from noise alone, and nothing is left of the picture.
    (text,) = client.images.generate(prompt="a fox", extra_body={"seed": 7}).data
    assert np.array_equal(made[1], opened(text))
    default, low, high = (
        server.edit(IMAGE, prompt="a fox", **fidelity).json()["data"][0]["receipt"]["strength"]
        for fidelity in ({}, {"input_fidelity": "low"}, {"input_fidelity": "high"})
    )
    assert (default, low, high) == (0.75, 0.75, 0.5)


def test_every_form_of_a_request_gives_the_same_bytes(client, server):
    fields = {"prompt": "a fox", "seed": 3, "strength": 0.5}
    (item,) = client.images.edit(
        image=("fox.png", IMAGE, "image/png"),
        prompt="a fox",
        extra_body={"seed": 3, "denoising_strength": 0.5},
    ).data
    route = "/v1/images/edits"
    for images in (
        {"image": URL, "mask": None},
        {"image": [URL], "mask": ""},
        {"images": [{"image_url": URL}]},
        {"image": {"image_url": {"url": URL}}},
        {"init_images": [base64.b64encode(IMAGE).decode()]},
    ):
        found = server.http.post(route, json=fields | images).json()["data"][0]
        assert found["b64_json"] == item.b64_json
    forms = [
        server.http.post(route, data=fields, files={"image[]": IMAGE}),
        server.http.post(route, data=fields | {"image": URL}, files={"user": (None, "me")}),
    ]
    for response in forms:
        assert response.json()["data"][0]["b64_json"] == item.b64_json
    raw = server.http.post(route, json=fields | {"image": URL}, headers={"accept": "image/png"})
    assert raw.content == base64.b64decode(item.b64_json)
    assert Image.open(io.BytesIO(raw.content)).text["strength"] == "0.5"
    linked = server.edit(IMAGE, response_format="url", **fields).json()["data"][0]["url"]
    assert server.http.get(linked).content == raw.content
    job = server.http.post(route, json=fields | {"image": URL}, headers={"prefer": "respond-async"})
    assert job.status_code == 202
    state = job.json()
    while state["status"] not in ("completed", "failed"):
        state = server.http.get(job.headers["location"]).json()
    assert state["answer"]["data"][0]["b64_json"] == item.b64_json
    assert state["answer"]["usage"]["input_tokens_details"]["image_tokens"] == 256


def test_a_stream_of_edits(client):
    extra = {"seed": 5, "num_inference_steps": 8, "strength": 0.5}
    stream = client.images.edit(
        image=IMAGE, mask=MASK, prompt="a fox", stream=True, partial_images=2, extra_body=extra
    )
    *partials, completed = list(stream)
    assert [event.type for event in partials] == ["image_edit.partial_image"] * 2
    assert [event.step for event in partials] == [1, 2]
    assert completed.type == "image_edit.completed"
    for event in (*partials, completed):
        assert np.array_equal(opened(event)[:, :24], PIXELS[:, :24])
    (item,) = client.images.edit(image=IMAGE, mask=MASK, prompt="a fox", extra_body=extra).data
    assert completed.b64_json == item.b64_json


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_nothing_but_pixels_of_a_picture_comes_back(server, kind):
    """Neither where it was taken nor its colour profile, which is not that of the answer."""
    exif = Image.Exif()
    exif[0x010E] = "a secret"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, kind, exif=exif, icc_profile=profile)
    fields = {"prompt": "a fox", "output_format": kind}
    answer = server.edit(buffer.getvalue(), MASK, **fields).json()["data"][0]["b64_json"]
    data = base64.b64decode(answer)
    assert b"a secret" not in data and "icc_profile" not in Image.open(io.BytesIO(data)).info


def test_variations_need_no_prompt(client, server):
    with pytest.deprecated_call():  # by OpenAI
        answer = client.images.create_variation(image=IMAGE, n=3, extra_body={"seed": 4})
    assert len({item.b64_json for item in answer.data}) == 3
    assert answer.data[0].receipt["strength"] == 0.5
    known = server.edit(IMAGE, route="variations", prompt="a fox", seed=4, strength=0.75)
    same = server.edit(IMAGE, prompt="a fox", seed=4)
    assert known.json()["data"][0]["b64_json"] == same.json()["data"][0]["b64_json"]


@pytest.mark.parametrize(
    ("shape", "asked", "made"),
    [((50, 80), None, "96x64"), ((80, 50), "auto", "64x64"), ((64, 64), "96x64", "96x64")],
)
def test_the_size_is_that_of_the_pictures_shape(server, shape, asked, made):
    pixels = np.zeros((*shape, 3), np.uint8)
    size = {} if asked is None else {"size": asked}
    answer = server.edit(png(pixels), prompt="a fox", **size).json()
    assert (answer["size"], answer["warnings"]) == (made, [])


@pytest.mark.parametrize(
    ("body", "param", "text"),
    [
        ({}, "image", "image is required"),
        ({"image": [URL, URL]}, "image", "2 were sent"),
        ({"image": URL, "mask": [URL, URL]}, "mask", "2 were sent"),
        ({"image": "https://example.org/fox.png"}, "image", "not fetched from elsewhere"),
        ({"image": "data:image/png;base64,A"}, "image", "no valid base64"),
        ({"image": {"file_id": "file-1"}}, "image", "expected a file, or a data URL"),
        ({"image": 7}, "image", "expected a file"),
        ({"image": "aGVsbG8="}, "image", "is no PNG, JPEG or WebP file"),
        ({"image": URL, "strength": 0}, "strength", "greater than 0"),
        ({"image": URL, "strength": 1.5}, "strength", "less than or equal to 1"),
        ({"image": URL, "strength": "NaN"}, "strength", "strength"),
        ({"image": URL, "prompt": ""}, "prompt", "must not be empty"),
        ({"image": URL, "model": "dall-e-2"}, "model", "is not served here"),
        ({"image": URL, "control_image": URL}, "control_image", "as image"),
    ],
)
def test_refusals_name_the_field(server, body, param, text):
    response = server.http.post("/v1/images/edits", json={"prompt": "a fox"} | body)
    error = response.json()["error"]
    assert response.status_code in (400, 404) and error["type"] == "invalid_request_error"
    assert error["param"] == param and text in error["message"] and "\n" not in error["message"]


def test_forms_that_are_none(server):
    def refused(status=400, **request):
        response = server.http.post("/v1/images/edits", **request)
        assert response.status_code == status
        return response.json()["error"]["message"]

    form = {"content-type": "multipart/form-data; boundary=x"}
    assert "form" in refused(content=b"--y\r\n", headers=form)
    assert "form" in refused(content=b"", headers={"content-type": "multipart/form-data"})
    assert "image is required" in refused(content=b"--x--\r\n", headers=form)
    assert "send multipart/form-data" in refused(
        content=IMAGE, headers={"content-type": "image/png"}
    )
    simple = {"content-type": "text/plain;json"}  # what pages of other origins may send unasked
    assert "send multipart/form-data" in refused(content=b"{}", headers=simple)
    assert "JSON" in refused(content=b"[", headers={"content-type": "application/json"})
    files = [("image", IMAGE), ("markup", IMAGE)]
    assert "markup: unknown file" in refused(data={"prompt": "a"}, files=files)
    many = [(f"file{number}", b"") for number in range(65)]
    assert "Too many files" in refused(data={"prompt": "a"}, files=many)
    parts = {f"field{number}": "x" for number in range(65)}
    assert "Too many fields" in refused(data=parts, files={"image": IMAGE})


def test_forms_of_other_sites_pages_are_refused(server):
    """Browsers send them without asking first; the server of the tests has no keys."""
    form = {"data": {"prompt": "an owl", "n": "1"}, "files": {"image": IMAGE}}
    for origin, status in ((server.url, 200), ("https://elsewhere.example", 403), ("null", 403)):
        response = server.http.post("/v1/images/edits", **form, headers={"origin": origin})
        assert response.status_code == status, response.text
    assert response.json()["error"]["code"] == "origin_not_allowed"


def test_a_large_upload_is_refused_and_its_client_can_read_it(server):
    """Whole before the answer is looked at, as ordinary clients do; declared, and not."""
    large = bytes(40_000_000)

    def parts():
        yield b'--x\r\ncontent-disposition: form-data; name="image"; filename="x"\r\n\r\n'
        for _ in range(40):
            yield large[:1_000_000]

    headers = {"content-type": "multipart/form-data; boundary=x"}
    for response in (
        server.edit(large, prompt="a fox"),
        server.http.post("/v1/images/edits", content=parts(), headers=headers),
    ):
        assert response.status_code == 413
        assert "larger than 33554432 bytes" in response.json()["error"]["message"]
    # Generations have no use for as much.
    assert server.generate(prompt="a" * 70_000).status_code == 413
    assert server.edit(IMAGE, prompt="a fox").status_code == 200


@pytest.mark.parametrize("count", [40, pytest.param(2000, marks=pytest.mark.slow)])
def test_damaged_uploads_never_break_the_server(server, count):
    draw = random.Random(6)
    statm = Path(f"/proc/{server.process.pid}/statm")
    before = int(statm.read_text().split()[1])
    for number in range(count):
        parts = [bytearray(draw.choice([IMAGE, MASK])) for _ in range(2)]
        for data in parts:
            for _ in range(draw.choice([0, 3, 30])):
                data[draw.randrange(len(data))] = draw.randrange(256)
            if draw.random() < 0.3:
                del data[draw.randrange(len(data)) :]
        mask = None if draw.random() < 0.5 else bytes(parts[1])
        response = server.edit(bytes(parts[0]), mask, prompt="a fox", num_inference_steps=1)
        assert response.status_code in (200, 400), (number, response.text)
    assert server.http.get("/readyz").status_code == 200
    grown = 4096 * (int(statm.read_text().split()[1]) - before)
    assert grown < 64e6


@pytest.mark.slow
def test_two_hundred_mixed_with_generations_give_the_bytes_that_each_gives_alone(server):
    draw = random.Random(8)
    files = [png(np.roll(PIXELS, 7 * k, axis=1)) for k in range(5)]
    wanted = []
    for seed in range(200):
        fields = {"prompt": draw.choice(["a fox", "an owl"]), "seed": seed}
        fields["num_inference_steps"] = draw.choice([1, 2, 4])
        upload = None
        if seed % 2:
            upload = draw.choice(files), draw.choice([None, MASK])
            fields["strength"] = draw.choice([0.5, 1])
        wanted.append((upload, fields))

    def made(work):
        upload, fields = work
        while True:
            response = server.edit(*upload, **fields) if upload else server.generate(**fields)
            if response.status_code != 429:
                assert response.status_code == 200, response.text
                return response.json()["data"][0]
            time.sleep(float(response.headers["retry-after"]))

    alone = [made(work)["b64_json"] for work in wanted]
    with ThreadPoolExecutor(200) as pool:
        together = list(pool.map(made, wanted))
    assert [item["b64_json"] for item in together] == alone
    assert max(max(item["receipt"]["batches"]) for item in together) > 2


def test_a_model_without_an_encoder_is_refused_by_name(manifest):
    check_model(manifest.card())
    with pytest.raises(ApiError, match="tiny takes no pictures, it was exported without") as error:
        check_model(replace(manifest.card(), edits=False))
    assert error.value.param == "model"


def test_edits_are_counted_and_listed(server, client):
    def counted():
        return server.metric(
            "cdm_serve_requests_total", route="/v1/images/edits", status="200"
        ), server.metric("cdm_engine_picture_seconds_count", model="tiny")

    before = counted()
    fresh = np.random.default_rng(99).integers(0, 256, (64, 64, 3), np.uint8)
    for seed in (1, 2):
        assert server.edit(png(fresh), prompt="a fox", seed=seed).status_code == 200
    # Of one picture that is encoded once.
    assert tuple(np.subtract(counted(), before)) == (2, 1)
    assert client.models.retrieve("tiny").edits is True
    document = server.http.get("/openapi.json").json()["paths"]["/v1/images/edits"]["post"]
    contents = document["requestBody"]["content"]
    assert set(contents) == {"multipart/form-data", "application/json"}
    assert {"image", "mask", "strength", "prompt"} <= set(
        contents["multipart/form-data"]["schema"]["properties"]
    )
