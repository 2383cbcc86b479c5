"""Language models as text encoders: what several architectures do with a Qwen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from distill.errors import DistillError


def check_chat(tokenizer: Any) -> None:
    """That it knows how a chat is written.

    Raises:
        DistillError: it has no template.
    """
    if tokenizer.chat_template is None:
        raise DistillError(
            f"the tokenizer in {tokenizer.name_or_path} has no chat template, in which prompts are "
            "encoded; expected one in chat_template.jinja or tokenizer_config.json"
        )


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
