"""How much each key may ask for in a minute."""

import time
from typing import Protocol

from cdm_serve.api.errors import ApiError, too_many

RATED = ("requests", "images")
# By what is counted: how much a minute has, and how much is wanted.
Wanted = dict[str, tuple[int, int]]


class Buckets(Protocol):
    """Of each owner one for each thing counted; it fills evenly and holds no more than a minute."""

    async def take(self, owner: str, wanted: Wanted) -> dict[str, float]:
        """What was in them; all that is wanted is taken, or nothing where one has too little."""


class MemoryBuckets:
    """Those of one process."""

    def __init__(self) -> None:
        self._levels: dict[tuple[str, str], tuple[float, float]] = {}

    async def take(self, owner: str, wanted: Wanted) -> dict[str, float]:
        """See ``Buckets``."""
        now = time.monotonic()
        found = {}
        for what, (per_minute, _) in wanted.items():
            level, at = self._levels.get((owner, what), (per_minute, now))
            found[what] = min(per_minute, level + per_minute / 60 * (now - at))
        enough = all(found[what] >= amount for what, (_, amount) in wanted.items())
        for what, (_, amount) in wanted.items():
            self._levels[owner, what] = found[what] - enough * amount, now
        return found


class RateLimits:
    """Requests and images a minute, for each key by itself; None is no limit."""

    def __init__(
        self,
        requests_per_minute: int | None,
        images_per_minute: int | None,
        buckets: Buckets | None = None,
    ) -> None:
        """Counted in ``buckets``, else in those of this process."""
        limits = zip(RATED, (requests_per_minute, images_per_minute), strict=True)
        self._limits = {what: limit for what, limit in limits if limit is not None}
        self._buckets = buckets or MemoryBuckets()

    async def spend(self, owner: str, images: int) -> None:
        """Take one request with its images; nothing is taken when it is refused.

        Raises:
            ApiError: too much for this minute, or more images than any minute has.
        """
        if images > self._limits.get("images", images):
            raise ApiError(
                f"n: {images} images are more than this server makes a minute for one key",
                param="n",
            )
        amounts = {"requests": 1, "images": images}
        wanted = {what: (limit, amounts[what]) for what, limit in self._limits.items()}
        for what, level in (await self._take(owner, wanted)).items():
            limit, amount = wanted[what]
            if level < amount:
                seconds = 60 * (amount - level) / limit
                raise too_many(
                    f"more than {limit} {what} a minute: try again in {seconds:.1f} s",
                    seconds,
                    "rate_limit_exceeded",
                )

    async def headers(self, owner: str) -> dict[str, str]:
        """What is left of each limit, as clients of OpenAI read it."""
        headers = {}
        wanted = {what: (limit, 0) for what, limit in self._limits.items()}
        for what, left in (await self._take(owner, wanted)).items():
            limit = self._limits[what]
            headers[f"x-ratelimit-limit-{what}"] = str(limit)
            headers[f"x-ratelimit-remaining-{what}"] = str(int(left))
            headers[f"x-ratelimit-reset-{what}"] = f"{60 * (limit - left) / limit:.3f}s"
        return headers

    async def _take(self, owner: str, wanted: Wanted) -> dict[str, float]:
        return await self._buckets.take(owner, wanted) if wanted else {}
