"""Who may ask, and how much in a minute.

API keys are compared in constant time and never kept in the clear.
"""

import hashlib
import hmac
import time

from cdm_serve.api.errors import ApiError, too_many
from cdm_serve.api.proxies import is_loopback
from cdm_serve.errors import StartError
from cdm_serve.settings import Settings

ANYONE = "anyone"
SHORTEST = 16
RATED = ("requests", "images")


class Keys:
    """The accepted keys; without any everyone is let in."""

    def __init__(self, keys: list[str]) -> None:
        self._digests = [_digest(key) for key in dict.fromkeys(keys)]

    @property
    def needed(self) -> bool:
        """Whether any is asked for."""
        return bool(self._digests)

    def owner(self, authorization: str | None) -> str | None:
        """A name for the bearer of an Authorization header, None for one without a valid key.

        The name is the beginning of the key's SHA-256: good for logs, useless to a thief.
        """
        if not self._digests:
            return ANYONE
        scheme, _, presented = (authorization or "").partition(" ")
        digest = _digest(presented.strip())
        # Every key is compared, so that the time tells nothing of which one came close.
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if scheme.lower() != "bearer" or not any(matches):
            return None
        return "key-" + digest.hex()[:8]


def read_keys(settings: Settings) -> Keys:
    """The keys of the settings and of their file.

    Raises:
        StartError: the file cannot be read, a key is too short, or there is none although the
            server listens beyond this machine.
    """
    keys = [key.strip() for key in (settings.api_keys or "").split(",")]
    if settings.api_key_file is not None:
        try:
            lines = settings.api_key_file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise StartError(f"cannot read the keys {settings.api_key_file}: {error}") from error
        keys += [line.strip() for line in lines if not line.lstrip().startswith("#")]
    keys = [key for key in keys if key]
    if any(len(key) < SHORTEST or not key.isascii() or " " in key for key in keys):
        raise StartError(
            f"an API key must have at least {SHORTEST} ASCII characters without spaces: make one "
            "with `openssl rand -hex 24`"
        )
    if not keys and (settings.api_key_file or settings.api_keys is not None):
        raise StartError("no API key was found where keys should be: write one a line")
    if not keys and not settings.without_keys and not is_loopback(settings.host):
        raise StartError(
            f"listening on {settings.host} without API keys would let in everyone who reaches it: "
            "set CDM_SERVE_API_KEYS or --api-key-file, or say --without-keys"
        )
    return Keys(keys)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


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

    @property
    def level(self) -> float:
        """How much is there."""
        self.wait(0)
        return self._level

    def take(self, amount: int) -> None:
        """Take what ``wait`` said is there."""
        self._level -= amount


class RateLimits:
    """Requests and images a minute, for each key by itself; None is no limit."""

    def __init__(self, requests_per_minute: int | None, images_per_minute: int | None) -> None:
        self._per_minute = dict(zip(RATED, (requests_per_minute, images_per_minute), strict=True))
        self._buckets: dict[tuple[str, str], Bucket] = {}

    def spend(self, owner: str, images: int) -> None:
        """Take one request with its images; nothing is taken when it is refused.

        Raises:
            ApiError: too much for this minute, or more images than any minute has.
        """
        limit = self._per_minute["images"]
        if limit is not None and images > limit:
            raise ApiError(
                f"n: {images} images are more than this server makes a minute for one key",
                param="n",
            )
        taken: list[tuple[Bucket, int]] = []
        for what, amount in (("requests", 1), ("images", images)):
            limit = self._per_minute[what]
            if limit is None:
                continue
            bucket = self._buckets.setdefault((owner, what), Bucket(limit))
            seconds = bucket.wait(amount)
            if seconds > 0:
                raise too_many(
                    f"more than {limit} {what} a minute: try again in {seconds:.1f} s",
                    seconds,
                    "rate_limit_exceeded",
                )
            taken.append((bucket, amount))
        for bucket, amount in taken:
            bucket.take(amount)

    def headers(self, owner: str) -> dict[str, str]:
        """What is left of each limit, as clients of OpenAI read it."""
        headers = {}
        for what, limit in self._per_minute.items():
            if limit is None:
                continue
            bucket = self._buckets.get((owner, what))
            left = limit if bucket is None else bucket.level
            headers[f"x-ratelimit-limit-{what}"] = str(limit)
            headers[f"x-ratelimit-remaining-{what}"] = str(int(left))
            headers[f"x-ratelimit-reset-{what}"] = f"{60 * (limit - left) / limit:.3f}s"
        return headers
