"""How much one key may ask for in a minute."""

import math
import time

from cdm_serve.api.errors import ApiError


def too_much(message: str, seconds: float, code: str) -> ApiError:
    """A 429 that says when to come back, as OpenAI's clients read it."""
    milliseconds = max(1, math.ceil(1e3 * seconds))
    headers = {
        "retry-after": str(math.ceil(milliseconds / 1e3)),
        "retry-after-ms": str(milliseconds),
    }
    return ApiError(message, status=429, code=code, headers=headers)


class Bucket:
    """Fills evenly with ``per_minute`` a minute and holds no more than that."""

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._level = float(per_minute)
        self._at = time.monotonic()

    def wait(self, amount: int) -> float:
        """Seconds until ``amount`` is there; 0.0 when it is."""
        now = time.monotonic()
        rate = self.per_minute / 60.0
        self._level = min(self.per_minute, self._level + rate * (now - self._at))
        self._at = now
        return max(0.0, (amount - self._level) / rate)

    def take(self, amount: int) -> None:
        """Take what ``wait`` said is there."""
        self._level -= amount


class Limits:
    """Requests and images a minute, for each key by itself; None is no limit."""

    def __init__(self, requests_per_minute: int | None, images_per_minute: int | None) -> None:
        self._per_minute = {"requests": requests_per_minute, "images": images_per_minute}
        self._buckets: dict[tuple[str, str], Bucket] = {}

    def spend(self, owner: str, images: int) -> None:
        """Take one request with its images; nothing is taken when it is refused.

        Raises:
            ApiError: too much for this minute, or more images than any minute has.
        """
        limited = [
            (what, amount, limit)
            for what, amount in (("requests", 1), ("images", images))
            if (limit := self._per_minute[what]) is not None
        ]
        if any(amount > limit for _, amount, limit in limited):
            raise ApiError(
                f"n: {images} images are more than this server makes a minute for one key",
                param="n",
            )
        taken: list[tuple[Bucket, int]] = []
        for what, amount, limit in limited:
            bucket = self._buckets.setdefault((owner, what), Bucket(limit))
            seconds = bucket.wait(amount)
            if seconds > 0:
                raise too_much(
                    f"more than {limit} {what} a minute: try again in {seconds:.1f} s",
                    seconds,
                    "rate_limit_exceeded",
                )
            taken.append((bucket, amount))
        for bucket, amount in taken:
            bucket.take(amount)
