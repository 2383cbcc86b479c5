"""What applications send when nothing but the address is set, byte for byte; one alias for all."""

import base64
import io
import json

import httpx
import openai
import pytest
from PIL import Image

ROUTE = "/v1/images/generations"
PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def gateway(start, server):
    gateway = start("--triton", server.triton_address(), "--alias", "*=tiny")
    gateway.wait_ready()
    yield gateway
    assert gateway.interrupt() == 0


# OpenAI's client for Node, which LibreChat and LobeChat use.
NODE = {
    "accept": "application/json",
    "content-type": "application/json",
    "user-agent": "OpenAI/JS 5.12.2",
    "x-stainless-retry-count": "0",
    "x-stainless-timeout": "600",
    "x-stainless-lang": "js",
    "x-stainless-package-version": "5.12.2",
    "x-stainless-os": "Linux",
    "x-stainless-arch": "x64",
    "x-stainless-runtime": "node",
    "x-stainless-runtime-version": "v20.19.0",
    "authorization": "Bearer none",
}
AIOHTTP = {
    "authorization": "Bearer none",
    "content-type": "application/json",
    "accept": "*/*",
    "accept-encoding": "gzip, deflate",
    "user-agent": "Python/3.11 aiohttp/3.12.15",
}
AXIOS = {
    "accept": "application/json,text/html,application/xhtml+xml,application/xml,text/*;q=0.9,"
    " image/*;q=0.8, */*;q=0.7",
    "authorization": "Bearer none",
    "content-type": "application/json",
    "user-agent": "axios/1.11.0",
}
PHP = {"user-agent": "Nextcloud OpenAI/LocalAI integration", "content-type": "application/json"}
FETCH = {
    "content-type": "application/json",
    "accept": "*/*",
    "user-agent": "node-fetch",
    "accept-encoding": "gzip, deflate, br",
}
REQUESTS = {
    "user-agent": "python-requests/2.32.5",
    "accept-encoding": "gzip, deflate",
    "accept": "*/*",
    "content-type": "application/json",
}
CURL = {"user-agent": "curl/8.5.0", "accept": "*/*", "content-type": "application/json"}

SENT = {
    "Open WebUI, as installed": (
        AIOHTTP,
        b'{"model": "dall-e-2", "prompt": "a fox", "n": 1, "size": "512x512",'
        b' "response_format": "b64_json"}',
        "b64_json",
        ["size"],
    ),
    "Open WebUI's tool, gpt-image-1": (
        AIOHTTP,
        b'{"model": "gpt-image-1", "prompt": "a fox", "n": 1, "size": "1024x1024"}',
        "b64_json",
        ["size"],
    ),
    "LibreChat, image_gen_oai": (
        NODE,
        b'{"model":"gpt-image-1","prompt":"a fox","n":1,"background":"auto",'
        b'"output_format":"png","quality":"auto","size":"auto"}',
        "b64_json",
        [],
    ),
    "LibreChat, dalle": (
        NODE,
        b'{"model":"dall-e-3","quality":"standard","style":"vivid","size":"1024x1024",'
        b'"prompt":"a fox","n":1}',
        "url",
        ["style", "size"],
    ),
    "LobeChat, dall-e-3": (
        NODE,
        b'{"model":"dall-e-3","n":1,"response_format":"b64_json","prompt":"a fox",'
        b'"quality":"hd","size":"1792x1024"}',
        "b64_json",
        ["size"],
    ),
    "LobeChat, another model": (
        NODE,
        b'{"model":"flux-dev","n":1,"cfg":3.5,"height":1024,"prompt":"a fox","seed":42,'
        b'"steps":25,"width":1024}',
        "b64_json",
        ["guidance_scale", "num_inference_steps", "size"],
    ),
    "n8n, dall-e-3 with every option": (
        AXIOS,
        b'{"prompt":"a fox","model":"dall-e-3","response_format":"b64_json","quality":"hd",'
        b'"size":"1024x1024","style":"natural"}',
        "b64_json",
        ["style", "size"],
    ),
    "Nextcloud's probe": (
        PHP,
        b'{"prompt":"a","model":"invalid-model"}',
        "b64_json",
        [],
    ),
    "Nextcloud": (
        PHP,
        b'{"prompt":"a fox","size":"1024x1024","n":1,"model":"tiny"}',
        "b64_json",
        ["size"],
    ),
    "SillyTavern, OpenAI": (
        FETCH | {"authorization": "Bearer none"},
        b'{"prompt":"a fox","model":"dall-e-3","size":"1792x1024","n":1,"quality":"standard",'
        b'"style":"vivid","response_format":"b64_json"}',
        "b64_json",
        ["style", "size"],
    ),
    "SillyTavern, OpenAI's gpt-image-1": (
        FETCH | {"authorization": "Bearer none"},
        b'{"prompt":"a fox","model":"gpt-image-1","size":"1024x1536","n":1,"quality":"auto",'
        b'"moderation":"low"}',
        "b64_json",
        ["size"],
    ),
    "vLLM-Omni's example": (
        REQUESTS,
        b'{"model": "Qwen/Qwen-Image", "prompt": "a fox", "n": 1, "size": "1024x1024",'
        b' "response_format": "b64_json", "seed": 42, "negative_prompt": "blurry",'
        b' "num_inference_steps": 50, "true_cfg_scale": 4.0}',
        "b64_json",
        ["negative_prompt", "guidance_scale", "num_inference_steps", "size"],
    ),
    "vLLM-Omni's line of curl": (
        CURL,
        b'{\n    "prompt": "a fox",\n    "size": "1024x1024",\n    "seed": 42\n  }',
        "b64_json",
        ["size"],
    ),
    "SGLang's line of curl": (
        CURL | {"authorization": "Bearer sk-proj-1234567890"},
        b'{\n        "prompt": "a fox",\n        "size": "1024x1024",\n        "n": 1,\n'
        b'        "response_format": "b64_json"\n      }',
        "b64_json",
        ["size"],
    ),
}


def is_picture(item):
    """As applications read it: the file, or where it is."""
    if item.get("url"):
        return httpx.get(item["url"]).content.startswith(PNG)
    return base64.b64decode(item["b64_json"]).startswith(PNG)


@pytest.mark.parametrize("name", SENT)
def test_it_gets_a_picture_and_is_told_what_was_not_done(gateway, name):
    headers, body, form, told = SENT[name]
    response = gateway.http.post(ROUTE, content=body, headers=headers)
    assert response.status_code == 200, response.text
    answer = response.json()
    (item,) = answer["data"]
    assert form in item
    assert is_picture(item)
    assert [warning.partition(":")[0] for warning in answer["warnings"]] == told


def test_sillytavern_takes_it_for_a_server_of_stable_diffusion_cpp(gateway):
    """The only one of its sources whose address can be set and that needs no more than this."""
    ping = gateway.http.options(ROUTE, headers=FETCH)
    assert ping.is_success
    assert gateway.http.get("/v1/models", headers=FETCH).json()["data"]
    body = (
        b'{"prompt":"best quality, absurdres, aesthetic, a fox","negative_prompt":"lowres, blurry",'
        b'"width":512,"height":512,"steps":20,"cfg_scale":7,"batch_size":1,"sampler_name":"DDIM",'
        b'"scheduler":"normal","clip_skip":1}'
    )
    response = gateway.http.post("/sdapi/v1/txt2img", content=body, headers=FETCH)
    assert response.status_code == 200, response.text
    (image,) = response.json()["images"]
    assert base64.b64decode(image).startswith(PNG)
    warnings = json.loads(response.headers["x-warnings"])
    assert [warning.partition(":")[0] for warning in warnings] == [
        *("sampler_name", "scheduler", "clip_skip"),
        *("negative_prompt", "guidance_scale", "num_inference_steps", "size"),
    ]
    refused = gateway.http.post("/sdapi/v1/txt2img", json={"prompt": "a fox", "batch_size": 2})
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "n"


# Of those in Python, what they give to OpenAI's client.
PYTHON = {
    "LangChain": {
        "n": 1,
        "size": "1024x1024",
        "model": "dall-e-2",
        "quality": "standard",
    },
    "LlamaIndex": {
        "n": 1,
        "model": "dall-e-3",
        "quality": "standard",
        "size": "1024x1024",
        "response_format": "url",
        "style": "vivid",
        "timeout": None,
    },
    "SGLang's example": {"size": "1024x1024", "n": 1, "response_format": "b64_json"},
}


@pytest.mark.parametrize("name", PYTHON)
def test_so_do_those_that_use_the_client_for_python(gateway, name):
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none") as client:
        (item,) = client.images.generate(prompt="a fox", **PYTHON[name]).data
    assert is_picture(item.model_dump())
    assert (item.url is None) == (name == "SGLang's example")


def in_parts(boundary, head, texts, file_head):
    """A form as a client writes it; the file comes last."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "orange").save(buffer, "PNG")
    parts = [head % name + value for name, value in texts] + [file_head + buffer.getvalue()]
    # As those that stream it: without its length.
    yield from (b"--%s\r\n%s\r\n" % (boundary, part) for part in parts)
    yield b"--%s--\r\n" % boundary


AXIOS_BOUNDARY = b"--------------------------714859236012345678901234"
AIOHTTP_BOUNDARY = b"0f1e2d3c4b5a69788796a5b4c3d2e1f0"
EDITS = {
    "LibreChat, image_edit_oai": (
        AXIOS_BOUNDARY,
        b'Content-Disposition: form-data; name="%s"\r\n\r\n',
        [
            (b"model", b"gpt-image-1"),
            (b"prompt", b"a panda"),
            (b"quality", b"auto"),
            (b"size", b"auto"),
        ],
        b'Content-Disposition: form-data; name="image[]"; filename="fox.png"\r\n'
        b"Content-Type: image/png\r\n\r\n",
    ),
    "Open WebUI": (
        AIOHTTP_BOUNDARY,
        b"Content-Type: text/plain; charset=utf-8\r\n"
        b'Content-Disposition: form-data; name="%s"\r\n\r\n',
        [
            (b"model", b"gpt-image-1.5"),
            (b"prompt", b"a panda"),
            (b"size", b"1024x1024"),
            (b"background", b"transparent"),
        ],
        b"Content-Type: image/png\r\n"
        b'Content-Disposition: form-data; name="image"; filename="image.png"\r\n\r\n',
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_does(gateway, name):
    boundary, *_ = EDITS[name]
    content_type = f"multipart/form-data; boundary={boundary.decode()}"
    response = gateway.http.post(
        "/v1/images/edits",
        content=in_parts(*EDITS[name]),
        headers={"content-type": content_type, "authorization": "Bearer none"},
    )
    assert response.status_code == 200, response.text
    answer = response.json()
    assert is_picture(answer["data"][0])
    told = [warning.partition(":")[0] for warning in answer["warnings"]]
    assert told == (["background", "size"] if name == "Open WebUI" else [])


def test_without_an_alias_there_is_one_refusal(server):
    headers, body, *_ = SENT["LibreChat, dalle"]
    response = server.http.post(ROUTE, content=body, headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")
    assert "--alias" in response.json()["error"]["message"]
