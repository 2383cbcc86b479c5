"""One adapter per architecture: everything the trainer and exporter need to know of it."""

from distill.adapters.loading import load_adapter
from distill.adapters.sd3 import Condition, Sd3Adapter

__all__ = ["Condition", "Sd3Adapter", "load_adapter"]
