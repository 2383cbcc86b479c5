"""Who may ask.

API keys are compared in constant time and never kept in the clear.
"""

import hashlib
import hmac

from cdm_serve.api.proxies import is_loopback
from cdm_serve.errors import StartError
from cdm_serve.settings import Settings

ANYONE = "anyone"
SHORTEST = 16


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
