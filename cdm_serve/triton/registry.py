"""The models that a Triton serves, kept as the repository has them."""

import asyncio
import logging
from pathlib import Path

from cdm_serve.backend import BackendError, BackendLost
from cdm_serve.engine.card import ModelCard
from cdm_serve.repository import model_folders
from cdm_serve.triton.client import TritonClient

logger = logging.getLogger(__name__)

FOLLOW_SECONDS = 1.0

Stamp = tuple[int, int]


def stamps_in(repository: Path) -> dict[str, Stamp]:
    """A stamp of each model, which changes when the model is exported again."""
    stamps = {}
    for folder in model_folders(repository):
        try:
            stat = (folder / "1" / "export.json").stat()
        except OSError:  # replaced at this moment, or not an export
            continue
        stamps[folder.name] = (stat.st_ino, stat.st_mtime_ns)
    return stamps


class Registry:
    """Cards of the loaded models by name, the default first.

    With a ``repository`` of its own it loads what is added there, loads again what is exported
    anew and unloads what is taken away; else it shows what its Triton has loaded. ``changing`` are
    the models of which that is just being done: their process may go. Each may take
    ``load_seconds``.
    """

    def __init__(self, repository: Path | None, load_seconds: float) -> None:
        self.cards: dict[str, ModelCard] = {}
        self.changing: set[str] = set()
        self.missing: dict[str, str] = {}
        self._repository = repository
        self._load_seconds = load_seconds
        self._stamps: dict[str, Stamp] = {}

    async def fill(self, client: TritonClient) -> None:
        """Look at a Triton that has just come up; ``missing`` says why it could not load some.

        Raises:
            BackendError: a model failed.
            BackendLost: Triton went away.
        """
        self._stamps = {} if self._repository is None else stamps_in(self._repository)
        self.changing.clear()
        names, reasons = await client.models()
        self._forget_all_but(names)
        self.missing = {
            name: reasons.get(name) or "Triton gives no reason"
            for name in self._stamps
            if name not in names
        }
        for name, reason in self.missing.items():
            logger.error("model %s cannot be loaded and is not served: %s", name, reason)
        for name in names:
            await self.refresh(client, name)

    async def refresh(self, client: TritonClient, name: str) -> None:
        """Ask a model what it is; raises what ``TritonClient.describe`` raises."""
        self.cards[name] = ModelCard.from_json((await client.describe(name))["card"])
        # In order, since the first is the default.
        ordered = sorted(self.cards.items())
        self.cards.clear()
        self.cards.update(ordered)

    async def follow(self, client: TritonClient) -> None:
        """Keep up with what changes, until cancelled."""
        while True:
            await asyncio.sleep(FOLLOW_SECONDS)
            try:
                if self._repository is None:
                    await self._show(client)
                else:
                    await self._adopt(client, stamps_in(self._repository))
            except (BackendLost, BackendError) as error:
                logger.warning("cannot look for new models: %s", error)

    async def _show(self, client: TritonClient) -> None:
        names, _ = await client.models()
        self._forget_all_but(names)
        for name in names:
            if name not in self.cards:
                await self.refresh(client, name)

    async def _adopt(self, client: TritonClient, found: dict[str, Stamp]) -> None:
        for name in self._stamps.keys() - found.keys():
            del self._stamps[name]
            if name in self.cards:
                await self._unload(client, name)
        for name, stamp in found.items():
            if self._stamps.get(name) != stamp:
                # Noted first: what cannot be loaded is not tried again until it changes.
                self._stamps[name] = stamp
                await self._load(client, name)

    async def _load(self, client: TritonClient, name: str) -> None:
        self.changing.add(name)
        try:
            await client.load(name, self._load_seconds)
            await self.refresh(client, name)
        except BackendError as error:
            kept = "the one before stays" if name in self.cards else "it is not served"
            logger.error("model %s cannot be loaded, %s: %s", name, kept, error)
        else:
            logger.warning("model %s was loaded: %s", name, self.cards[name].fingerprint[:12])
        finally:
            self.changing.discard(name)

    async def _unload(self, client: TritonClient, name: str) -> None:
        self.changing.add(name)
        del self.cards[name]  # first, so that no more requests come
        try:
            await client.unload(name, self._load_seconds)
        except BackendError as error:
            logger.error("model %s cannot be unloaded: %s", name, error)
        else:
            logger.warning("model %s was unloaded", name)
        finally:
            self.cards.pop(name, None)  # should it have been asked just before
            self.changing.discard(name)

    def _forget_all_but(self, names: list[str]) -> None:
        for name in self.cards.keys() - names:
            del self.cards[name]
