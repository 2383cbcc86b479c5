"""Where limits are counted; what is needed for Redis is of an extra, and so imported only then."""

from cdm_serve.api.limits import Buckets
from cdm_serve.errors import StartError


def shared_buckets(url: str | None) -> Buckets | None:
    """Those in the Redis at ``url``; None without one."""
    if url is None:
        return None
    from cdm_serve.api.redis_buckets import RedisBuckets

    return RedisBuckets(url)


def check_redis(url: str) -> str:
    """That it answers; a word on it.

    Raises:
        StartError: it does not, or its client is not installed.
    """
    try:
        from cdm_serve.api.redis_buckets import version_of
    except ModuleNotFoundError as error:
        install = "run `pip install 'cdm-serve[redis]'`"
        raise StartError(f"Redis's client is not installed: {install}") from error
    return f"Redis {version_of(url)} counts requests and images"
