"""One class per architecture: what differs between them when they are exported."""

from __future__ import annotations

from distill.adapters import Adapter
from distill.adapters.registry import exporter_class
from export.architectures.architecture import Architecture


def architecture(adapter: Adapter) -> Architecture:
    """The exporter's part for an adapter."""
    made: Architecture = exporter_class(type(adapter.pipeline).__name__)(adapter)
    return made


__all__ = ["Architecture", "architecture"]
