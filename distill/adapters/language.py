"""Language models as text encoders: what several architectures do with a Qwen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def without_logits(language_model: nn.Module) -> Iterator[None]:
    """A language model that does not answer each of the tokens out of 150,000, for nothing."""
    hook = language_model.register_forward_pre_hook(
        lambda _, args, kwargs: (args, kwargs | {"logits_to_keep": 1}), with_kwargs=True
    )
    try:
        yield
    finally:
        hook.remove()
