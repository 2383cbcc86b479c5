"""Sizes that no start-up measured, within ``--max-pixels``, on a running server."""

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import Server
from PIL import Image

MOST = 6400
# One of its own, and three that it never met; 80x80 has just as many pixels as are allowed.
SIZES = ("64x64", "80x80", "48x96", "40x40")


@pytest.fixture(scope="module")
def gateway(start: Callable[..., Server], server: Server) -> Server:
    gateway = start("--triton", server.triton_address(), "--max-pixels", str(MOST), "--strict")
    gateway.wait_ready()
    return gateway


def test_the_sizes_that_can_be_asked_for_are_told(gateway: Server) -> None:
    entry = gateway.http.get("/v1/models/tiny").json()
    assert entry["sizes"] == ["64x64", "96x64"]
    assert (entry["multiple"], entry["max_pixels"]) == (8, MOST)


def test_a_picture_of_any_size_is_the_same_in_any_company(gateway: Server) -> None:
    asked = [(f"a fox {i}", i, 2 + i % 3, size) for i, size in enumerate(2 * SIZES)]
    alone = [gateway.picture(*each) for each in asked]
    for picture, (*_, size) in zip(alone, asked, strict=True):
        with Image.open(io.BytesIO(picture)) as image:
            assert "{}x{}".format(*image.size) == size
    with ThreadPoolExecutor(len(asked)) as pool:
        together = list(pool.map(lambda each: gateway.picture(*each), asked))
    assert together == alone


@pytest.mark.parametrize("size", ["88x80", "80x84", "8x1600"])
def test_what_is_beyond_is_refused(gateway: Server, size: str) -> None:
    answer = gateway.generate(prompt="a fox", size=size)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == "size"
    assert f"multiples of 8 with up to {MOST} pixels" in error["message"]
