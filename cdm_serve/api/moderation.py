"""Asks a service of the operator's, shaped as OpenAI's moderation, whether to serve a prompt."""

import asyncio
import json
import logging
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from urllib.error import HTTPError

from cdm_serve.api.errors import ApiError
from cdm_serve.api.metrics import Metrics
from cdm_serve.settings import Settings

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 5.0
AT_ONCE = 32
LARGEST_ANSWER = 2**20


class Moderation:
    """Without ``--moderation`` every prompt passes."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._url = settings.moderation
        self._headers = {"content-type": "application/json", "user-agent": "cdm-serve"}
        if settings.moderation_key:
            self._headers["authorization"] = f"Bearer {settings.moderation_key}"
        self._moderated = metrics.moderated
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="moderation")
        self._failing = False

    async def check(self, prompt: str) -> None:
        """Go on only with a prompt that the service does not flag.

        Raises:
            ApiError: it does, or cannot be asked: what nobody looked at is not made.
        """
        if self._url is None or not prompt:
            return
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                loop = asyncio.get_running_loop()
                flagged = await loop.run_in_executor(self._threads, self._ask, self._url, prompt)
        except (OSError, HTTPException, ValueError, LookupError, TypeError) as error:
            self._moderated.labels("unavailable").inc()
            if not self._failing:
                logger.error("moderation at %s fails: %s", self._url, error or "no answer in time")
            self._failing = True
            raise ApiError(
                "the service that checks prompts gives no answer, and without one nothing is made; "
                "try again in a moment",
                status=503,
                code="moderation_unavailable",
                headers={"retry-after": "1"},
            ) from None
        self._failing = False
        self._moderated.labels("flagged" if flagged else "passed").inc()
        if flagged:
            raise ApiError(
                "the prompt was rejected by the moderation of this server",
                param="prompt",
                code="moderation_blocked",
            )

    def _ask(self, url: str, prompt: str) -> bool:
        body = json.dumps({"input": prompt}).encode()
        request = urllib.request.Request(url, body, self._headers)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
                flagged = json.loads(answer.read(LARGEST_ANSWER))["results"][0]["flagged"]
        except HTTPError as error:
            error.close()  # it has the connection
            raise
        if not isinstance(flagged, bool):
            raise TypeError("its answer has no results[0].flagged")
        return flagged
