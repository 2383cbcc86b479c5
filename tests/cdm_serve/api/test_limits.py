"""Limits counted in the process and in a real Redis; then two gateways that share one."""

import asyncio
import shutil
import subprocess
import time

import pytest
from conftest import free_port

from cdm_serve.api import redis_buckets
from cdm_serve.api.errors import ApiError
from cdm_serve.api.limits import MemoryBuckets, RateLimits
from cdm_serve.api.redis_buckets import RedisBuckets
from cdm_serve.api.shared_limits import check_redis
from cdm_serve.errors import StartError

REDIS = shutil.which("redis-server")


@pytest.fixture(scope="module")
def redis(tmp_path_factory):
    """The address of a Redis, and its process."""
    if REDIS is None:
        pytest.skip("needs Redis: apt install redis-server")
    folder, port = tmp_path_factory.mktemp("redis"), str(free_port())
    command = [REDIS, "--port", port, "--bind", "127.0.0.1", "--dir", folder, "--save", ""]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL)
    url = f"redis://127.0.0.1:{port}"
    deadline = time.monotonic() + 30
    while True:
        try:
            assert check_redis(url).startswith("Redis ")
            break
        except StartError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    yield url, process
    process.terminate()
    process.wait()


@pytest.fixture(params=["memory", "redis"])
def limited(request):
    """Runs ``test(spend, refusal)`` with so many requests and images a minute, counted in either.

    Keys that one test used are not those of another.
    """

    def run(test, *per_minute):
        async def inside():
            url = request.getfixturevalue("redis")[0] if request.param == "redis" else None
            buckets = MemoryBuckets() if url is None else RedisBuckets(url)
            limits = RateLimits(*per_minute, buckets)

            async def spend(owner, images):
                await limits.spend(f"{request.node.name} {owner}", images)

            async def refusal(owner, images):
                with pytest.raises(ApiError) as caught:
                    await spend(owner, images)
                return caught.value

            await test(spend, refusal)
            if url is not None:
                assert not buckets._failing
                await buckets.close()

        asyncio.run(inside())

    return run


def test_the_wait_is_as_long_as_it_says(limited):
    async def test(spend, refusal):  # one a second
        await spend("a", 60)
        error = await refusal("a", 1)
        assert error.status == 429
        milliseconds = int(error.headers["retry-after-ms"])
        assert 0 < milliseconds <= 1000
        assert error.headers["retry-after"] == "1"
        await asyncio.sleep(milliseconds / 1e3)
        await spend("a", 1)

    limited(test, None, 60)


def test_owners_do_not_pay_for_each_other(limited):
    async def test(spend, refusal):
        await spend("a", 1)
        await refusal("a", 1)
        await spend("b", 1)

    limited(test, 1, None)


def test_a_refused_request_costs_nothing(limited):
    """Of 3 requests and 10 images a minute: what is refused for one is not taken from the other."""

    async def test(spend, refusal):
        await spend("a", 8)
        for _ in range(5):
            assert "images" in str(await refusal("a", 3))
        await spend("a", 1)
        await spend("a", 1)
        assert "requests" in str(await refusal("a", 1))

    limited(test, 3, 10)


def test_what_has_no_limit_is_not_counted(limited):
    async def images(spend, refusal):
        for _ in range(10):
            await spend("a", 1)
        assert "images" in str(await refusal("a", 1))

    async def requests(spend, refusal):
        await spend("b", 1000)
        await spend("b", 1000)
        assert "requests" in str(await refusal("b", 1))

    limited(images, None, 10)
    limited(requests, 2, None)


def test_what_never_fits_is_a_mistake_of_the_request(limited):
    async def test(_, refusal):
        error = await refusal("a", 5)
        assert (error.status, error.param) == (400, "n")

    limited(test, None, 4)


def test_no_two_take_the_last_one(redis):
    """Many connections at once, as many gateways have them."""

    async def run():
        gateways = [RedisBuckets(redis[0]) for _ in range(8)]
        limits = [RateLimits(20, None, each) for each in gateways]
        asked = [each.spend("crowd", 1) for each in limits for _ in range(5)]
        refused = [e for e in await asyncio.gather(*asked, return_exceptions=True) if e is not None]
        assert {str(type(each)) for each in refused} == {str(ApiError)}
        assert len(refused) in (19, 20)  # one may have grown back meanwhile
        for each in gateways:
            await each.close()

    asyncio.run(run())


def test_without_an_answer_each_counts_for_itself(caplog, monkeypatch):
    monkeypatch.setattr(redis_buckets, "PAUSE_SECONDS", 0.05)
    with pytest.raises(StartError, match="does not answer"):
        check_redis("redis://127.0.0.1:1")
    with pytest.raises(StartError, match="redis://HOST:6379"):
        check_redis("localhost")

    async def run():
        buckets = RedisBuckets("redis://127.0.0.1:1")
        limits = RateLimits(2, None, buckets)
        await limits.spend("a", 1)
        await asyncio.sleep(0.1)
        await limits.spend("a", 1)
        with pytest.raises(ApiError, match="more than 2 requests"):
            await limits.spend("a", 1)
        await buckets.close()

    asyncio.run(run())
    assert len(caplog.records) == 1


def test_two_gateways_have_one_limit(redis, start, server):
    url, process = redis
    options = ("--triton", server.triton_address(), "--requests-per-minute", "3", "--redis", url)
    both = [start(*options) for _ in range(2)]
    for gateway in both:
        gateway.wait_ready()
    statuses = [both[k % 2].generate(prompt="a fox").status_code for k in range(4)]
    assert statuses == [200, 200, 200, 429]
    left = both[1].http.get("/v1/models").headers["x-ratelimit-remaining-requests"]
    assert left == "0"
    process.terminate()
    process.wait()
    assert [gateway.generate(prompt="a fox").status_code for gateway in both] == [200, 200]
    for gateway in both:
        assert "each gateway counts for itself" in gateway.printed
        assert gateway.interrupt() == 0
