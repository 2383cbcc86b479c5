import asyncio
import os
import resource
import time

import pytest

from cdm_serve.api.errors import ApiError
from cdm_serve.api.files import MemoryStore
from cdm_serve.api.folder import FolderStore, check_folder
from cdm_serve.errors import StartError

PICTURE = b"1234"


@pytest.fixture(params=["memory", "folder"])
def make(request, tmp_path):
    """Stores of either kind, of so many bytes."""

    def make(limit, seconds=60.0):
        if request.param == "memory":
            return MemoryStore(limit, seconds)
        return FolderStore(tmp_path, limit, seconds)

    return make


def put(store, content=PICTURE, output_format="png"):
    name = asyncio.run(store.put(content, output_format))
    time.sleep(0.01)  # in a folder it is the time that tells which is the oldest
    return name


def get(store, name):
    return asyncio.run(store.get(name))


def test_a_file_is_given_back_as_it_was(make):
    store = make(100)
    name = put(store, b"picture", "webp")
    file = get(store, name)
    assert (file.content, file.output_format) == (b"picture", "webp")
    assert 50 <= file.seconds_left <= 60
    assert name.endswith(".webp")
    assert get(store, "other.webp") is None


def test_the_oldest_makes_room(make):
    store = make(10)
    first, second, third = (put(store) for _ in range(3))
    assert get(store, first) is None
    assert get(store, second) is not None
    assert get(store, third) is not None
    assert store.size == 8


def test_a_file_expires(make):
    store = make(10, 2.0)
    name = put(store)
    assert get(store, name) is not None
    time.sleep(2.0)
    assert get(store, name) is None


def test_what_can_never_fit_is_refused_and_costs_nobody_his_place(make):
    store = make(10)
    name = put(store)
    with pytest.raises(ApiError) as caught:
        put(store, b"x" * 11)
    assert caught.value.param == "response_format"
    assert get(store, name) is not None


def test_names_cannot_be_guessed(make):
    store = make(10_000)

    async def many():
        return {await store.put(b"", "png") for _ in range(100)}

    names = asyncio.run(many())
    assert len(names) == 100
    assert all(len(name) >= 24 for name in names)


def test_only_links_are_read_from_a_folder_and_removed(tmp_path):
    links = tmp_path / "links"
    links.mkdir()
    store = FolderStore(links, 8, 60.0)
    old = [put(store), f".{put(store)}"]
    (links / old[1][1:]).rename(links / old[1])  # what a killed gateway leaves behind
    others = [links / "mine.png", tmp_path / ("a" * 24 + ".png")]
    for path in (*(links / name for name in old), *others):
        path.write_bytes(PICTURE)
        os.utime(path, (1, 1))
    name = put(store)
    assert {path.name for path in links.iterdir()} == {name, "mine.png"}
    for asked in (old[1], "mine.png", f"../{others[1].name}", "\0" * 24 + ".png"):
        assert get(store, asked) is None
    assert all(path.exists() for path in others)


def test_a_full_folder_keeps_no_half_of_a_picture(tmp_path, caplog):
    store = FolderStore(tmp_path, 10**6, 60.0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        for _ in range(2):
            with pytest.raises(ApiError, match="ask for b64_json") as caught:
                put(store, b"x" * 2000)
            assert (caught.value.status, caught.value.code) == (503, "links_unavailable")
        with pytest.raises(StartError, match="nothing can be written to --link-folder"):
            check_folder(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())
    assert len(caplog.records) == 1
    assert get(store, put(store)) is not None
