import time

import pytest
from starlette.datastructures import Headers

from cdm_serve.api.errors import ApiError
from cdm_serve.api.reading import Notes
from cdm_serve.api.resolve import make_plan, seconds_allowed
from cdm_serve.api.schema import ImageRequest
from cdm_serve.backend import BackendLost
from cdm_serve.engine.card import ModelCard
from cdm_serve.settings import Settings

SIZE_COSTS = {
    "step": {"alone": 0.2, "1": 0.2, "4": 0.4},
    "decode": {"alone": 0.1, "1": 0.1, "2": 0.2},
    "batch": 4,
}
COSTS = {"text": {"alone": 0.05, "1": 0.05}, "64x64": SIZE_COSTS, "96x64": SIZE_COSTS}


def card(name, **changes):
    fields = {
        "architecture": "sd3",
        "fingerprint": "f00d",
        "sizes": ("64x64", "96x64"),
        "default_size": "64x64",
        "default_steps": 4,
        "max_steps": 8,
        "downscale": 4,
        "pid": 1,
        "costs": COSTS,
    }
    return ModelCard(id=name, **(fields | changes))


MODELS = {"emoji": card("emoji"), "other": card("other", default_steps=2)}


def plan(accept="*/*", strict=True, settings=None, **fields):
    request = ImageRequest(**{"prompt": "a fox"} | fields)
    return make_plan(request, Notes(strict), accept, MODELS, Settings(**settings or {}))


def test_the_decoder_is_the_requests_or_the_servers_where_there_is_one():
    models = {"emoji": card("emoji", decoders=("full", "tiny")), "other": card("other")}

    def decided(notes=None, server="full", **fields):
        request = ImageRequest(prompt="a fox", **fields)
        settings = Settings(decoder=server)
        return make_plan(request, notes or Notes(False), "*/*", models, settings).decoder

    assert decided() == "full" and decided(decoder="tiny") == "tiny"
    assert decided(server="tiny") == "tiny" and decided(server="tiny", decoder="full") == "full"
    assert decided(server="tiny", model="other") == "full"
    assert decided(notes := Notes(False), model="other", decoder="tiny") == "full"
    assert notes.warnings == [
        "decoder: other has no tiny one: export it with cdm-export --decoder; the full one is used"
    ]
    with pytest.raises(ApiError, match="other has no tiny one"):
        decided(Notes(True), model="other", decoder="tiny")


def test_defaults_are_the_models():
    made = plan()
    assert (made.model.id, made.size, made.steps, made.quality) == ("emoji", "64x64", 4, "high")
    assert (made.output_format, made.compression, made.raw) == ("png", 100, False)
    assert plan(model="other").steps == 2
    assert plan(size="96x64").positions == 24 * 16


def test_image_i_of_n_has_the_next_seed():
    assert plan(seed=7, n=3).seeds == (7, 8, 9)
    drawn = plan(n=2).seeds
    assert drawn[1] == drawn[0] + 1
    assert len({plan().seeds for _ in range(20)}) == 20


@pytest.mark.parametrize(
    ("quality", "steps"),
    [
        ("low", 1),
        ("medium", 2),
        ("high", 4),
        ("standard", 4),
        ("hd", 4),
        ("xhigh", 8),
        ("auto", 4),
        (None, 4),
    ],
)
def test_quality_is_a_number_of_steps(quality, steps):
    assert plan(quality=quality).steps == steps
    assert plan(quality=quality, num_inference_steps=steps).steps == steps


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"size": "65x64"}, "size"),
        ({"size": "64"}, "size"),
        ({"model": "dall-e-3"}, "model"),
        ({"num_inference_steps": 9}, "num_inference_steps"),
        ({"num_inference_steps": 8, "quality": "low"}, "num_inference_steps"),
        ({"output_format": "webp", "accept": "image/png"}, "output_format"),
        ({"n": 2, "accept": "image/png"}, "n"),
        ({"quality": "max"}, "quality"),
        ({"response_format": "url", "accept": "image/png"}, "response_format"),
        ({"response_format": "url", "stream": True}, "response_format"),
        ({"stream": True, "accept": "image/png"}, "stream"),
        ({"partial_images": 1}, "partial_images"),
        ({"output_compression": 50}, "output_compression"),
        ({"output_compression": 50, "accept": "image/png"}, "output_compression"),
    ],
)
def test_refuses_by_name(fields, param):
    with pytest.raises(ApiError) as caught:
        plan(**fields)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("fields", "done"),
    [
        ({"size": "1024x1024"}, {"size": "64x64"}),
        ({"size": "1792x1024"}, {"size": "96x64"}),
        ({"num_inference_steps": 50}, {"steps": 8}),
        ({"quality": "max"}, {"steps": 8}),
        ({"quality": "high", "num_inference_steps": 2}, {"steps": 2}),
        ({"partial_images": 1}, {"partials": 0}),
        ({"output_compression": 50}, {"compression": 100}),
        ({"output_format": "webp", "accept": "image/png"}, {"output_format": "png"}),
        ({"response_format": "url", "stream": True}, {"link": False}),
        ({"response_format": "url", "accept": "image/png"}, {"link": False}),
    ],
)
def test_a_friendly_server_does_what_is_nearest_and_says_so(fields, done):
    made = plan(strict=False, **fields)
    assert {name: getattr(made, name) for name in done} == done
    (warning,) = made.warnings
    assert warning.partition(":")[0] in fields


def test_what_differs_in_form_is_refused_by_a_friendly_server_too():
    for fields in ({"size": "big"}, {"size": "0x0"}, {"model": "dall-e-3"}):
        with pytest.raises(ApiError):
            plan(strict=False, **fields)
    with pytest.raises(ApiError, match="size: '1024x1024' is not served"):
        plan(strict=False, size="1024x1024", settings={"size": "refuse"})


def test_all_faults_are_told_at_once():
    with pytest.raises(ApiError) as caught:
        plan(model="dall-e-3", size="1024x1024", partial_images=1)
    assert (caught.value.status, caught.value.param) == (404, "model")
    for part in ("model: 'dall-e-3' is", "; size: '1024x1024' is", "; partial_images: only"):
        assert part in f"; {caught.value}"


def test_a_model_has_further_names():
    settings = {"alias": "gpt-image-1=other,lost=gone"}
    assert plan(model="gpt-image-1", settings=settings).model.id == "other"
    assert plan(model="any", settings={"alias": {"*": "other", "x": "emoji"}}).model.id == "other"
    with pytest.raises(ApiError, match="'lost', which stands for 'gone', is not served"):
        plan(model="lost", settings=settings)


def test_the_server_says_how_pictures_come_if_the_client_does_not():
    assert not plan().link
    assert plan(model="dall-e-3", settings={"alias": "dall-e-3=emoji"}).link
    settings = {"response_format": "url"}
    assert plan(settings=settings).link
    assert not plan(settings=settings, response_format="b64_json").link
    assert not plan(settings=settings, stream=True).link
    assert not plan(settings=settings, accept="image/png").link


def test_refuses_a_long_prompt():
    with pytest.raises(ApiError, match="11 characters, at most 10") as caught:
        plan(prompt="x" * 11, settings={"prompt_limit": 10})
    assert caught.value.param == "prompt"


def test_nothing_loaded_yet_is_not_the_clients_fault():
    with pytest.raises(BackendLost):
        make_plan(ImageRequest(prompt="x"), Notes(strict=False), "", {}, Settings())


@pytest.mark.parametrize(
    ("accept", "raw", "output_format"),
    [
        ("*/*", False, "png"),
        ("application/json", False, "png"),
        ("application/json, image/png", False, "png"),
        ("text/html", False, "png"),
        ("image/png", True, "png"),
        ("image/webp, */*;q=0.1", True, "webp"),
        ("Image/JPEG;q=0.9", True, "jpeg"),
    ],
)
def test_the_accept_header_chooses_the_answer(accept, raw, output_format):
    made = plan(accept=accept)
    assert (made.raw, made.output_format) == (raw, output_format)


def test_a_stream_has_the_previews_it_is_asked_for():
    made = plan(stream=True, partial_images=2)
    assert (made.stream, made.partials) == (True, 2)
    assert (plan(stream=True).partials, plan().stream) == (0, False)


def test_the_time_allowed_becomes_a_deadline():
    before = time.time()
    made = make_plan(ImageRequest(prompt="x"), Notes(False), "", MODELS, Settings(), allowed=5.0)
    assert before + 5 <= made.deadline <= time.time() + 5
    assert plan().deadline is None


@pytest.mark.parametrize(
    ("headers", "stream", "seconds"),
    [
        ({}, False, None),
        ({"X-Request-Timeout-Ms": "1500"}, False, 1.5),
        ({"x-request-timeout-ms": "1500"}, True, 1.5),
        ({"x-envoy-expected-rq-timeout-ms": "15000"}, False, 15.0),
        ({"x-stainless-read-timeout": "600"}, False, 600.0),
        ({"x-stainless-read-timeout": "2.5"}, False, 2.5),
        ({"x-stainless-read-timeout": "2.5"}, True, None),
        ({"X-Stainless-Timeout": "90"}, False, 90.0),
        ({"X-Stainless-Timeout": "90"}, True, None),
        ({"x-stainless-read-timeout": "600", "x-request-timeout-ms": "10"}, False, 0.01),
        ({"x-stainless-read-timeout": "1", "x-request-timeout-ms": "5000"}, False, 1.0),
        ({"x-stainless-read-timeout": "NOT_GIVEN"}, False, None),
        ({"x-envoy-expected-rq-timeout-ms": "0"}, False, None),
    ],
)
def test_the_least_of_what_is_said(headers, stream, seconds):
    assert seconds_allowed(Headers(headers), stream=stream) == seconds


def test_what_is_fetched_later_has_only_the_time_that_is_meant_for_it():
    waits = {"x-envoy-expected-rq-timeout-ms": "1", "x-stainless-timeout": "1"}
    assert seconds_allowed(Headers(waits), stream=False, later=True) is None
    meant = waits | {"x-request-timeout-ms": "5000"}
    assert seconds_allowed(Headers(meant), stream=False, later=True) == 5.0


@pytest.mark.parametrize("value", ["", "soon", "0", "-5", "nan", "inf"])
def test_a_wrong_deadline_is_refused_by_name(value):
    with pytest.raises(ApiError) as caught:
        seconds_allowed(Headers({"x-request-timeout-ms": value}), stream=False)
    assert caught.value.param == "x-request-timeout-ms"


def test_any_size_that_the_model_divides_up_to_a_limit(monkeypatch):
    monkeypatch.setitem(MODELS, "emoji", card("emoji", multiple=8, longest_side=128))
    most = {"max_pixels": 8192}
    assert plan(size="128x64", settings=most).size == "128x64"
    assert plan(size="96x64", settings={"max_pixels": 1}).size == "96x64"  # its own
    for size in ("128x72", "100x64", "136x8"):
        with pytest.raises(ApiError, match="multiples of 8 with up to 8192 pixels"):
            plan(size=size, settings=most)
    with pytest.raises(ApiError, match=r"only 64x64, 96x64$"):
        plan(size="128x64")
    with pytest.raises(ApiError, match=r"only 64x64, 96x64$"):
        plan(size="128x64", model="other", settings=most)
