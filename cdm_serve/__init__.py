"""The gateway: images over HTTP in front of Triton, without torch."""

__version__ = "0.1.0"
