"""An OpenAI-compatible image server, asked with as little work as can be."""

from __future__ import annotations

import http.client
import json
import os
import select
from dataclasses import dataclass
from urllib.parse import urlsplit

from benchmarks.errors import BenchError

EXPECTED = "expected the root of an image server such as http://127.0.0.1:8000"
_TIMEOUT = 60.0


@dataclass(frozen=True)
class Endpoint:
    """A server's root; the key, if it wants one, is in ``OPENAI_API_KEY``."""

    url: str

    def connect(self) -> http.client.HTTPConnection:
        """Return a connection that is opened with its first request.

        Raises:
            BenchError: the URL is none.
        """
        parts = urlsplit(self.url)
        try:
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError("no address")
            secure = parts.scheme == "https"
            kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
            return kind(parts.hostname, parts.port, timeout=_TIMEOUT)
        except (ValueError, http.client.InvalidURL):
            raise BenchError(f"{self.url!r} is not a URL; {EXPECTED}") from None

    def generate(
        self, connection: http.client.HTTPConnection, body: bytes
    ) -> http.client.HTTPResponse:
        """Send one request for a picture; the answer is still to be read.

        A kept connection that the server has ended meanwhile is opened again.

        Raises:
            OSError, http.client.HTTPException: there is no answer.
        """
        headers = {"content-type": "application/json", **self._key()}
        path = urlsplit(self.url).path.rstrip("/") + "/v1/images/generations"
        # Nothing is due on an idle connection but its end.
        if connection.sock is not None and select.select([connection.sock], [], [], 0)[0]:
            connection.close()
        connection.request("POST", path, body, headers)
        return connection.getresponse()

    def get(self, path: str) -> bytes | None:
        """Return what is at a path, or None if that is not to be had.

        Raises:
            BenchError: nobody answers.
        """
        connection = self.connect()
        try:
            connection.request(
                "GET", urlsplit(self.url).path.rstrip("/") + path, headers=self._key()
            )
            answer = connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
            raise BenchError(f"{self.url} does not answer ({reason}); {EXPECTED}") from None
        finally:
            connection.close()
        return content if answer.status == 200 else None

    def model(self) -> str | None:
        """Return the first model's name, or None if the server does not list them."""
        try:
            return str(json.loads(self.get("/v1/models") or b"")["data"][0]["id"])
        except (ValueError, LookupError, TypeError):
            return None

    @staticmethod
    def _key() -> dict[str, str]:
        key = os.environ.get("OPENAI_API_KEY")
        return {"authorization": f"Bearer {key}"} if key else {}


def picture(content: bytes) -> str | None:
    """Return the base64 of the first picture in an answer's JSON, or of the last event's."""
    if content.startswith((b"event:", b"data:")):
        content = content.rpartition(b"data:")[2]
    try:
        answer = json.loads(content)
        if answer.get("type") == "image_generation.completed":
            answer = {"data": [answer]}
        found = answer["data"][0]["b64_json"]
    except (ValueError, LookupError, TypeError, AttributeError):
        return None
    return found if isinstance(found, str) and found else None
