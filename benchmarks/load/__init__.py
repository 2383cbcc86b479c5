"""Loads on any OpenAI-compatible image server."""
