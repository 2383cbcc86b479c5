"""Limits that several gateways have in common, counted in Redis."""

import asyncio
import logging
import time

import redis
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from cdm_serve.api.limits import MemoryBuckets, Wanted
from cdm_serve.errors import StartError

logger = logging.getLogger(__name__)

# A Redis that does not answer is not asked again for so long.
PAUSE_SECONDS = 1.0
TIMEOUT_SECONDS = 0.5
START_SECONDS = 5.0
# As ``MemoryBuckets`` has it, in one step, with the clock of Redis. Numbers come back as texts,
# since Redis would cut them to whole ones.
TAKE = """
local time = redis.call("TIME")
local now = time[1] + time[2] / 1e6
local levels, enough = {}, true
for i, key in ipairs(KEYS) do
  local per_minute, amount = tonumber(ARGV[2 * i - 1]), tonumber(ARGV[2 * i])
  local level, at = unpack(redis.call("HMGET", key, "level", "at"))
  if level then
    levels[i] = math.min(per_minute, level + per_minute / 60 * (now - at))
  else
    levels[i] = per_minute
  end
  enough = enough and levels[i] >= amount
end
for i, key in ipairs(KEYS) do
  local left = levels[i] - (enough and ARGV[2 * i] or 0)
  redis.call("HSET", key, "level", string.format("%.17g", left), "at", string.format("%.17g", now))
  redis.call("EXPIRE", key, 60)
  levels[i] = string.format("%.17g", levels[i])
end
return levels
"""


class RedisBuckets:
    """While Redis does not answer, those of this process alone. For one event loop."""

    def __init__(self, url: str) -> None:
        retry = Retry(NoBackoff(), 1)  # a connection that was idle may have been closed
        self._client = Redis.from_url(url, decode_responses=True, retry=retry)
        self._script = self._client.register_script(TAKE)
        self._own = MemoryBuckets()
        self._failing = False
        self._again = 0.0

    async def take(self, owner: str, wanted: Wanted) -> dict[str, float]:
        """See ``Buckets``."""
        if time.monotonic() >= self._again:
            # In braces what decides where a cluster keeps a key: both are in one place.
            keys = [f"cdm-serve:{{{owner}}}:{what}" for what in wanted]
            arguments = [number for pair in wanted.values() for number in pair]
            try:
                async with asyncio.timeout(TIMEOUT_SECONDS):
                    levels = await self._script(keys=keys, args=arguments)
                self._failing = False
                return dict(zip(wanted, map(float, levels), strict=True))
            except (redis.RedisError, OSError) as error:  # a timeout is one of the latter
                if not self._failing:
                    logger.error("Redis fails, each gateway counts for itself: %r", error)
                self._failing = True
                self._again = time.monotonic() + PAUSE_SECONDS
        return await self._own.take(owner, wanted)

    async def close(self) -> None:
        """End the connections."""
        await self._client.aclose()


def version_of(url: str) -> str:
    """Of the Redis there.

    Raises:
        StartError: it does not answer.
    """
    try:
        with redis.Redis.from_url(url, socket_timeout=START_SECONDS) as client:
            version: str = client.info("server")["redis_version"]
            return version
    except (redis.RedisError, OSError, ValueError) as error:
        raise StartError(
            f"the Redis that --redis names does not answer ({error}): name one that does, as "
            "redis://HOST:6379 or redis://:PASSWORD@HOST:6379"
        ) from error
