import numpy as np

from cdm_serve.engine.cache import Cache
from cdm_serve.engine.pipeline import Condition


def condition(size):
    return Condition({"prompt_embeds": np.zeros(size, np.uint8)}, tokens=1)


def test_forgets_what_was_not_used_for_longest():
    cache = Cache(capacity=100)
    first, second, third = (condition(40) for _ in range(3))
    cache.put("first", first)
    cache.put("second", second)
    assert cache.get("first") is first
    cache.put("third", third)
    assert cache.get("second") is None
    assert cache.get("first") is first
    assert cache.get("third") is third
    assert (cache.hits, cache.misses) == (3, 1)
    assert (len(cache), cache.size) == (2, 80)


def test_put_again_counts_its_bytes_once():
    cache = Cache(capacity=100)
    for _ in range(5):
        cache.put("same", condition(60))
    assert (len(cache), cache.size) == (1, 60)


def test_what_is_larger_than_the_cache_is_not_kept():
    cache = Cache(capacity=10)
    cache.put("small", condition(5))
    cache.put("large", condition(11))
    assert cache.size <= 10
    assert cache.get("large") is None
