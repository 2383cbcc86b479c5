import time

import pytest

from cdm_serve.api.errors import ApiError
from cdm_serve.api.files import FileStore


def test_a_file_is_given_back_as_it_was():
    store = FileStore(100, 60.0)
    name = store.put(b"picture", "webp")
    file = store.get(name)
    assert (file.content, file.output_format) == (b"picture", "webp")
    assert name.endswith(".webp")
    assert store.get("other.webp") is None


def test_the_oldest_makes_room():
    store = FileStore(10, 60.0)
    first, second, third = (store.put(b"1234", "png") for _ in range(3))
    assert store.get(first) is None
    assert store.get(second) is not None
    assert store.get(third) is not None
    assert store.size == 8


def test_a_file_expires():
    store = FileStore(10, 0.05)
    name = store.put(b"1234", "png")
    assert store.get(name) is not None
    time.sleep(0.06)
    assert store.get(name) is None
    assert store.size == 0


def test_what_can_never_fit_is_refused_and_costs_nobody_his_place():
    store = FileStore(10, 60.0)
    name = store.put(b"1234", "png")
    with pytest.raises(ApiError) as caught:
        store.put(b"x" * 11, "png")
    assert caught.value.param == "response_format"
    assert store.get(name) is not None


def test_names_cannot_be_guessed():
    store = FileStore(10_000, 60.0)
    names = {store.put(b"", "png") for _ in range(100)}
    assert len(names) == 100
    assert all(len(name) >= 24 for name in names)
