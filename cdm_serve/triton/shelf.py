"""The models that a Triton serves, kept as the repository has them."""

import asyncio
import logging
from pathlib import Path

from cdm_serve.backend import BackendError, BackendLost
from cdm_serve.engine.card import ModelCard
from cdm_serve.triton.client import TritonClient
from cdm_serve.triton.inventory import Stamp, inventory
from cdm_serve.triton.protocol import Message

logger = logging.getLogger(__name__)

FOLLOW_SECONDS = 1.0


class Shelf:
    """Cards and reports of the loaded models by name.

    With a ``repository`` of its own it loads what is added there, loads again what is exported
    anew and unloads what is taken away; else it shows what its Triton has loaded. ``changing`` are
    the models of which that is just being done: their process may go.
    """

    def __init__(self, repository: Path | None) -> None:
        self.cards: dict[str, ModelCard] = {}
        self.reports: dict[str, Message] = {}
        self.changing: set[str] = set()
        self.missing: list[str] = []
        self._repository = repository
        self._stamps: dict[str, Stamp] = {}

    async def fill(self, client: TritonClient) -> None:
        """Look at a Triton that has just come up; ``missing`` is what it could not load.

        Raises:
            BackendError: a model failed.
            BackendLost: Triton went away.
        """
        self._stamps = {} if self._repository is None else inventory(self._repository)
        self.changing.clear()
        names = await client.models()
        self._keep(names)
        self.missing = [name for name in self._stamps if name not in names]
        for name in self.missing:
            logger.error("model %s cannot be loaded and is not served", name)
        for name in names:
            await self.refresh(client, name)

    async def refresh(self, client: TritonClient, name: str) -> None:
        """Ask a model what it is and does; raises what ``TritonClient.describe`` raises."""
        report = await client.describe(name)
        self.reports[name] = report
        card = ModelCard.from_json(report["card"])
        if self.cards.get(name) != card:
            self.cards[name] = card
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
                    await self._adopt(client, inventory(self._repository))
            except (BackendLost, BackendError) as error:
                logger.warning("cannot look for new models: %s", error)

    async def _show(self, client: TritonClient) -> None:
        names = await client.models()
        self._keep(names)
        for name in names:
            if name not in self.cards:
                await self.refresh(client, name)

    async def _adopt(self, client: TritonClient, found: dict[str, Stamp]) -> None:
        for name in [name for name in self._stamps if name not in found]:
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
            await client.load(name)
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
        self.reports.pop(name, None)
        try:
            await client.unload(name)
        except BackendError as error:
            logger.error("model %s cannot be unloaded: %s", name, error)
        else:
            logger.warning("model %s was unloaded", name)
        finally:
            self.changing.discard(name)

    def _keep(self, names: list[str]) -> None:
        for name in [name for name in self.cards if name not in names]:
            del self.cards[name]
            self.reports.pop(name, None)
