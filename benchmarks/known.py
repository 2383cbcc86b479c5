"""Requests whose right answer is known: drawn alone first, and the same bytes ever after."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import aiohttp

from benchmarks.errors import BenchError
from benchmarks.prompts import prompt

ROUTE = "/v1/images/generations"


class Known:
    """``count`` requests of 1 to 4 steps, by number."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._right: list[str] = []

    def body(self, number: int) -> bytes:
        """The JSON of a request; numbers beyond ``count`` come round again."""
        number %= self.count
        return json.dumps(
            {"prompt": prompt(number), "seed": number, "num_inference_steps": 1 + number % 4}
        ).encode()

    async def learn(self, session: aiohttp.ClientSession) -> None:
        """Draw each of them, one after the other.

        Raises:
            BenchError: an answer is no picture.
        """
        right = []
        for number in range(self.count):
            async with session.post(ROUTE, data=self.body(number)) as answer:
                content = await answer.read()
                if answer.status != 200:
                    raise BenchError(f"the server answered {answer.status}: {content[:300]!r}")
                right.append(_digest(content))
        self._right = right

    def is_right(self, number: int, content: bytes) -> bool:
        """Whether it is the picture that was drawn alone."""
        return _digest(content) == self._right[number % self.count]


def session(url: str) -> aiohttp.ClientSession:
    """Asks for the picture itself, on as many connections as it takes."""
    return aiohttp.ClientSession(
        url,
        headers={"content-type": "application/json", "accept": "image/png"},
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=120),
    )


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def growth(memory: Sequence[dict[str, float]]) -> dict[str, float]:
    """By how much each part of the last exceeds the first, as a fraction, once it has settled."""
    first, last = memory[len(memory) // 10], memory[-1]  # the first tenth fills caches and pools
    return {part: round(last[part] / first[part] - 1, 4) for part in first}
