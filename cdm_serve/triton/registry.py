"""The models that a Triton serves, kept as the repository has them."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from cdm_serve.backend import BackendError, BackendLost
from cdm_serve.engine.card import ModelCard
from cdm_serve.errors import StartError
from cdm_serve.repository import model_folders, variants_of
from cdm_serve.triton.client import TritonClient

logger = logging.getLogger(__name__)

FOLLOW_SECONDS = 1.0
# Triton waits for ever for a model's process that dies before its first word; it collects others.
LOST_SECONDS = 3.0

Stamp = tuple[tuple[int, int], ...]


def stamps_in(repository: Path) -> dict[str, Stamp]:
    """A stamp of each model, which changes when it or a variant of it is exported again."""
    stamps = {}
    for folder in model_folders(repository):
        try:
            exports = [each / "1" / "export.json" for each in (folder, *variants_of(folder))]
            stats = [each.stat() for each in exports]
        except (OSError, StartError):  # replaced at this moment, or not an export
            continue
        stamps[folder.name] = tuple((stat.st_ino, stat.st_mtime_ns) for stat in stats)
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
        self._stuck: set[str] = set()  # models whose load this Triton will not end

    @property
    def hosts(self) -> set[str]:
        """Triton's models, without their variants."""
        return {card.host for card in self.cards.values()}

    async def fill(self, client: TritonClient) -> None:
        """Look at a Triton that has just come up; ``missing`` says why it could not load some.

        Raises:
            BackendError: a model failed.
            BackendLost: Triton went away.
        """
        self._stamps = {} if self._repository is None else stamps_in(self._repository)
        self.changing.clear()
        self._stuck.clear()
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

    async def refresh(self, client: TritonClient, host: str) -> None:
        """Ask a Triton model what it is, and of its variants; raises what ``describe`` raises."""
        report = await client.describe(host)
        cards = [report["card"]]
        for variant in report["variants"]:
            cards.append((await client.describe(host, variant))["card"])
        self._forget(host)
        self.cards |= {card["id"]: ModelCard.from_json(card) for card in cards}
        # In order, since the first is the default.
        ordered = sorted(self.cards.items())
        self.cards.clear()
        self.cards.update(ordered)

    async def follow(self, client: TritonClient, lost: Callable[[], set[int]]) -> None:
        """Keep up with what changes, until cancelled; ``lost`` as ``TritonProcess`` has it."""
        while True:
            await asyncio.sleep(FOLLOW_SECONDS)
            try:
                if self._repository is None:
                    await self._show(client)
                else:
                    await self._adopt(client, stamps_in(self._repository), lost)
            except (BackendLost, BackendError) as error:
                logger.warning("cannot look for new models: %s", error)

    async def _show(self, client: TritonClient) -> None:
        names, _ = await client.models()
        self._forget_all_but(names)
        for name in names:
            if name not in self.hosts:
                await self.refresh(client, name)

    async def _adopt(
        self, client: TritonClient, found: dict[str, Stamp], lost: Callable[[], set[int]]
    ) -> None:
        for name in self._stamps.keys() - found.keys():
            del self._stamps[name]
            if name in self.hosts:
                await self._unload(client, name)
        for name, stamp in found.items():
            if self._stamps.get(name) != stamp:
                # Noted first: what cannot be loaded is not tried again until it changes.
                self._stamps[name] = stamp
                await self._load(client, name, lost)

    async def _load(self, client: TritonClient, name: str, lost: Callable[[], set[int]]) -> None:
        if name in self._stuck:  # it would wait behind the load that does not end
            logger.error("model %s is loaded again when the server starts again", name)
            return
        self.changing.add(name)
        loading = asyncio.create_task(client.load(name, self._load_seconds))
        before, seen = lost(), set[int]()
        try:
            while not (await asyncio.wait([loading], timeout=LOST_SECONDS))[0]:
                now = lost() - before
                if now & seen:
                    self._stuck.add(name)
                    raise BackendError("its process ended before its first word", "failed")
                seen = now
            loading.result()
            await self.refresh(client, name)
        except BackendError as error:
            kept = "the one before stays" if name in self.hosts else "it is not served"
            logger.error("model %s cannot be loaded, %s: %s", name, kept, error)
        else:
            logger.warning("model %s was loaded: %s", name, self.cards[name].fingerprint[:12])
        finally:
            loading.cancel()
            self.changing.discard(name)

    async def _unload(self, client: TritonClient, name: str) -> None:
        self.changing.add(name)
        self._forget(name)  # first, so that no more requests come
        try:
            await client.unload(name, self._load_seconds)
        except BackendError as error:
            logger.error("model %s cannot be unloaded: %s", name, error)
        else:
            logger.warning("model %s was unloaded", name)
        finally:
            self._forget(name)  # should it have been asked just before
            self.changing.discard(name)

    def _forget_all_but(self, names: list[str]) -> None:
        for host in self.hosts - set(names):
            self._forget(host)

    def _forget(self, host: str) -> None:
        for name in [card.id for card in self.cards.values() if card.host == host]:
            del self.cards[name]
