"""One file an architecture: all that the trainer and the exporter need to know of it."""

from distill.adapters.adapter import Adapter
from distill.adapters.condition import Condition
from distill.adapters.loading import load_adapter, load_skeleton

__all__ = ["Adapter", "Condition", "load_adapter", "load_skeleton"]
