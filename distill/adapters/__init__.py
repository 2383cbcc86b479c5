"""One adapter per architecture: everything the trainer and exporter need to know of it."""

from distill.adapters.adapter import Adapter, Condition
from distill.adapters.loading import load_adapter
from distill.adapters.longcat import LongCatAdapter
from distill.adapters.sd3 import Sd3Adapter

__all__ = ["Adapter", "Condition", "LongCatAdapter", "Sd3Adapter", "load_adapter"]
