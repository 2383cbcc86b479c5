"""Pictures over HTTP, as clients ask for them."""

import base64
import io
import json
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openai
import pytest
from PIL import Image


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def opened(item):
    return Image.open(io.BytesIO(base64.b64decode(item.b64_json)))


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_the_openai_client_gets_a_picture(client, manifest):
    answer = client.images.generate(prompt="a fox in the snow", extra_body={"seed": 7})
    (item,) = answer.data
    image = opened(item)
    assert (image.format, image.size) == ("PNG", (64, 64))
    facts = {"seed": "7", "steps": "4", "model": "tiny", "fingerprint": manifest.fingerprint}
    assert image.text == facts
    assert item.seed == 7
    assert (answer.size, answer.quality, answer.output_format) == ("64x64", "high", "png")
    assert answer.usage.input_tokens == answer.usage.input_tokens_details.text_tokens > 2
    assert answer.usage.output_tokens == 16 * 16
    assert answer.usage.total_tokens == answer.usage.input_tokens + 256


def test_every_option_of_the_client_is_honoured(client):
    answer = client.images.generate(
        model="tiny",
        prompt="a fox",
        n=3,
        size="96x64",
        quality="low",
        output_format="webp",
        output_compression=80,
        response_format="b64_json",
        user="someone",
        extra_body={"seed": 40},
    )
    assert [item.seed for item in answer.data] == [40, 41, 42]
    assert [(opened(item).format, opened(item).size) for item in answer.data] == [
        ("WEBP", (96, 64))
    ] * 3
    assert len({item.b64_json for item in answer.data}) == 3


def test_image_i_of_n_is_the_picture_of_its_seed(client, server):
    answer = client.images.generate(prompt="a fox", n=2, extra_body={"seed": 11})
    assert base64.b64decode(answer.data[1].b64_json) == server.picture("a fox", 12, 4)


def test_a_drawn_seed_is_returned_and_repeats_the_picture(client, server):
    first = client.images.generate(prompt="a fox").data[0]
    other = client.images.generate(prompt="a fox").data[0]
    assert first.seed != other.seed
    assert base64.b64decode(first.b64_json) == server.picture("a fox", first.seed, 4)


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_accept_gives_the_picture_itself(server, kind):
    response = server.http.post(
        "/v1/images/generations",
        json={"prompt": "a fox", "seed": 5},
        headers={"accept": f"image/{kind}"},
    )
    assert response.headers["content-type"] == f"image/{kind}"
    assert (response.headers["x-seed"], response.headers["x-steps"]) == ("5", "4")
    assert json.loads(response.headers["x-receipt"])["seed"] == 5
    assert Image.open(io.BytesIO(response.content)).format == kind.upper()


def test_a_link_leads_to_the_same_file(client, server):
    answer = client.images.generate(
        prompt="a fox", n=2, response_format="url", output_format="jpeg", extra_body={"seed": 3}
    )
    inline = client.images.generate(
        prompt="a fox", n=2, output_format="jpeg", extra_body={"seed": 3}
    )
    for linked, item in zip(answer.data, inline.data, strict=True):
        assert linked.b64_json is None
        assert linked.url.startswith(f"{server.url}/v1/images/files/")
        response = server.http.get(linked.url)
        assert response.headers["content-type"] == "image/jpeg"
        assert response.content == base64.b64decode(item.b64_json)
        head = server.http.head(linked.url)
        assert int(head.headers["content-length"]) == len(response.content)
    gone = server.http.get("/v1/images/files/nothing.png")
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "not_found")


def test_every_picture_comes_with_its_receipt(server, manifest):
    answer = server.generate(prompt="a fox", seed=3, n=2, quality="medium", size="96x64").json()
    for index, item in enumerate(answer["data"]):
        receipt = item["receipt"]
        batches, milliseconds = receipt.pop("batches"), receipt.pop("milliseconds")
        spans = receipt.pop("spans")
        assert receipt == {
            "seed": 3 + index,
            "steps": 2,
            "size": "96x64",
            "model": "tiny",
            "fingerprint": manifest.fingerprint,
            "policy": "exact",
            "decoder": "full",
        }
        assert len(batches) == 2
        assert all(batch >= 1 for batch in batches)
        assert {"queue", "text", "steps", "decode", "encode"} <= set(milliseconds)
        assert all(value >= 0 for value in milliseconds.values())
        for stage, whole in milliseconds.items():
            parts = [spent for name, _, spent in spans if name == stage]
            assert sum(parts) == pytest.approx(whole, abs=0.01)
        steps = [(at, at + spent) for name, at, spent in spans if name == "steps"]
        assert len(steps) == 2
        assert steps[0][1] <= steps[1][0] + 0.01
        name, at, _ = spans[-1]
        assert name == "encode"
        assert all(at + 0.01 >= begin + spent for _, begin, spent in spans[:-1])


def test_quality_is_a_number_of_steps(server):
    for quality, steps in {"low": 1, "medium": 2, "high": 4}.items():
        response = server.generate(prompt="a fox", seed=3, quality=quality)
        file = base64.b64decode(response.json()["data"][0]["b64_json"])
        assert file == server.picture("a fox", 3, steps)


def test_seeds_prompts_and_steps_make_different_pictures(server):
    pictures = [
        np.asarray(Image.open(io.BytesIO(server.picture(*job)))).tobytes()
        for job in [("a fox", 1, 4), ("a fox", 2, 4), ("an owl", 1, 4), ("a fox", 1, 8)]
    ]
    assert len(set(pictures)) == 4


def test_a_crowd_gets_the_bytes_that_each_gets_alone(server):
    draw = random.Random(0)
    prompts = ["a fox", "an owl", *(f"{number} boats" for number in range(20))]
    half = Image.new("L", (64, 64))
    half.paste(255, (0, 0, 32, 64))
    files = [server.picture("a pig", 1, 1)], [server.picture("a pig", 2, 1), png(half)], []
    jobs = [
        (draw.choice(files), draw.choice(prompts), draw.randrange(2**40), draw.randint(1, 16), size)
        for size in ("64x64", "96x64") * 100
    ]

    def made(job):
        sent, prompt, seed, steps, size = job
        if not sent:
            return server.picture(prompt, seed, steps, size)
        facts = {"seed": seed, "num_inference_steps": steps, "size": size}
        response = server.edit(*sent, prompt=prompt, strength=0.6, **facts)
        return base64.b64decode(response.json()["data"][0]["b64_json"])

    alone = [made(job) for job in jobs]
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(made, jobs)) == alone


@pytest.mark.parametrize(
    ("fields", "error", "param"),
    [
        ({"model": "dall-e-3"}, openai.NotFoundError, "model"),
        ({"size": "large"}, openai.BadRequestError, "size"),
        ({"response_format": "link"}, openai.BadRequestError, "response_format"),
        ({"extra_body": {"mask": "x"}}, openai.BadRequestError, "mask"),
    ],
)
def test_refusals_are_the_clients_own_exceptions(client, fields, error, param):
    with pytest.raises(error) as caught:
        client.images.generate(prompt="a fox", **fields)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"
    assert caught.value.request_id.startswith("req_")


def test_what_is_not_done_is_told(client, server):
    asked = {"size": "1024x1024", "style": "vivid", "extra_body": {"lr": 3}}
    answer = client.images.generate(prompt="a fox", **asked)
    told = answer.warnings
    assert [warning.partition(":")[0] for warning in told] == ["lr", "style", "size"]
    assert (answer.size, opened(answer.data[0]).size) == ("64x64", (64, 64))
    *_, completed = client.images.generate(prompt="a fox", stream=True, **asked)
    assert completed.warnings == told
    raw = server.http.post(
        "/v1/images/generations",
        json={"prompt": "a fox", "größe": 1},
        headers={"accept": "image/png"},
    )
    assert json.loads(raw.headers["x-warnings"]) == ["größe: unknown parameter; ignored"]
    assert client.images.generate(prompt="a fox").warnings == []


def test_the_models_are_listed(client, manifest):
    (model,) = client.models.list().data
    assert (model.id, model.owned_by, model.object) == ("tiny", "cdm-serve", "model")
    assert model.sizes == ["64x64", "96x64"]
    assert client.models.retrieve("tiny").fingerprint == manifest.fingerprint
    assert model.batches == {
        "policy": "exact",
        "largest_difference": 0.0,
        "psnr": None,
        "dropped": [],
    }
    with pytest.raises(openai.NotFoundError, match="only tiny"):
        client.models.retrieve("other")
