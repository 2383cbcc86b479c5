"""Keys by themselves, then with limits on a real server."""

import openai
import pytest

from cdm_serve.api.auth import ANYONE, Keys, read_keys
from cdm_serve.errors import StartError
from cdm_serve.settings import Settings

KEY, OTHER = "0123456789abcdef", "fedcba9876543210"


def test_the_bearer_of_a_key_has_a_name_that_does_not_give_it_away():
    keys = Keys([KEY, OTHER])
    names = [keys.owner(f"Bearer {key}") for key in (KEY, OTHER)]
    assert names[0] != names[1]
    assert all(name.startswith("key-") and KEY[:4] not in name for name in names)
    assert keys.owner(f"bearer  {KEY}") == names[0]


@pytest.mark.parametrize(
    "header", [None, "", KEY, "Bearer", "Bearer ", f"Basic {KEY}", f"Bearer {KEY}x", "Bearer \xff"]
)
def test_nobody_else_has(header):
    assert Keys([KEY]).owner(header) is None


def test_without_keys_everyone_is_let_in():
    assert Keys([]).owner(None) == ANYONE
    assert Keys([]).owner("Bearer anything") == ANYONE


def test_keys_come_from_the_environment_and_a_file(tmp_path):
    (tmp_path / "keys").write_text(f"# of the shop\n{OTHER}\n\n")
    keys = read_keys(Settings(api_keys=f"{KEY}, ", api_key_file=tmp_path / "keys"))
    assert keys.owner(f"Bearer {KEY}")
    assert keys.owner(f"Bearer {OTHER}")
    assert not keys.owner("Bearer # of the shop")


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"host": "0.0.0.0"}, "--without-keys"),
        ({"host": "::"}, "--without-keys"),
        ({"host": "example.org"}, "--without-keys"),
        ({"api_keys": "short"}, "at least 16"),
        ({"api_keys": ""}, "no API key"),
        ({"api_keys": "0123456789 abcdef"}, "without spaces"),
    ],
)
def test_a_server_does_not_open_by_mistake(settings, complaint):
    with pytest.raises(StartError, match=complaint):
        read_keys(Settings(**settings))


def test_a_missing_or_empty_file_is_said(tmp_path):
    with pytest.raises(StartError, match="cannot read the keys"):
        read_keys(Settings(api_key_file=tmp_path / "none"))
    (tmp_path / "empty").write_text("# nothing\n")
    with pytest.raises(StartError, match="no API key"):
        read_keys(Settings(api_key_file=tmp_path / "empty"))


@pytest.mark.parametrize(
    "settings",
    [
        {"host": "127.0.0.2"},
        {"host": "::1"},
        {"host": "localhost"},
        {"host": "0.0.0.0", "without_keys": True},
        {"host": "0.0.0.0", "api_keys": KEY},
    ],
)
def test_it_opens_on_purpose(settings):
    owner = read_keys(Settings(**settings)).owner(None)
    assert owner == (None if "api_keys" in settings else ANYONE)


@pytest.fixture(scope="module")
def guarded(start, server, tmp_path_factory):
    """A second gateway in front of the shared server's Triton, with keys and limits."""
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(f"{KEY}\n{OTHER}\n")
    gateway = start(
        *("--triton", server.triton_address(), "--api-key-file", str(file)),
        *("--requests-per-minute", "6", "--images-per-minute", "8"),
        *("--cors-origin", "http://page.example"),
    )
    gateway.wait_ready()
    yield gateway
    assert gateway.interrupt() == 0


def ask(gateway, key, **fields):
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0) as client:
        return client.images.generate(prompt="a fox", extra_body={"seed": 1}, **fields)


def test_a_page_of_another_origin_reads_answers_and_refusals(guarded):
    origin = {"origin": "http://page.example"}
    asked = {
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    preflight = guarded.http.options("/v1/images/generations", headers=origin | asked)
    assert preflight.status_code == 200
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    refused = guarded.http.get("/v1/models", headers=origin)
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "http://page.example"
    exposed = refused.headers["access-control-expose-headers"].split(", ")
    assert {"x-request-id", "retry-after", "x-receipt", "x-ratelimit-reset-images"} <= set(exposed)
    other = guarded.http.get("/v1/models", headers={"origin": "http://other.example"})
    assert "access-control-allow-origin" not in other.headers


def test_a_wrong_key_is_the_clients_own_exception(guarded):
    with pytest.raises(openai.AuthenticationError) as caught:
        ask(guarded, "0123456789abcdeX")
    assert caught.value.code == "invalid_api_key"
    assert caught.value.response.headers["www-authenticate"] == "Bearer"
    for path in ("/v1/models", "/v1/nothing", "/sdapi/v1/txt2img"):
        assert guarded.http.get(path).status_code == 401
    for path in ("/", "/readyz", "/healthz", "/openapi.json"):
        assert guarded.http.get(path).status_code == 200


def test_each_key_has_its_own_minute(guarded):
    link = ask(guarded, KEY, n=7, response_format="url").data[0].url
    assert guarded.http.get(link).status_code == 200
    with pytest.raises(openai.RateLimitError, match="more than 8 images a minute") as caught:
        ask(guarded, KEY, n=2)
    headers = caught.value.response.headers
    # One image is left and grows by 8 a minute: the second is there after 7.5 s, less what passed.
    assert 0 < int(headers["retry-after-ms"]) <= 7500
    assert int(headers["retry-after"]) in range(1, 9)
    assert caught.value.code == "rate_limit_exceeded"
    assert headers["x-ratelimit-remaining-images"] == "1"
    assert headers["x-ratelimit-limit-requests"] == "6"
    assert 40 < float(headers["x-ratelimit-reset-images"].removesuffix("s")) <= 52.5
    for _ in range(6):
        ask(guarded, OTHER)
    with pytest.raises(openai.RateLimitError, match="more than 6 requests a minute"):
        ask(guarded, OTHER)
    with pytest.raises(openai.BadRequestError, match="more than this server makes a minute"):
        ask(guarded, OTHER, n=9)
