"""The tokenizer and the two small CLIP text encoders."""

import json
from collections.abc import Sequence
from itertools import chain

import numpy as np
from tokenizers import Tokenizer, models, trainers
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from distill.demo.emoji.compose import draw_composition
from distill.demo.emoji.vocabulary import SUBJECTS

TEXT_LENGTH = 24
TEXT_WIDTH = 128
_WORD_END = "</w>"
_START, _END = "<|startoftext|>", "<|endoftext|>"
_CAPTIONS = 20_000
# Common words of prompts that no caption has, so that each is one token and not a row of letters.
_OTHER_WORDS = (
    "the and with of to some two very cute little tiny big huge photo picture drawing painting "
    "standing sitting flying beside near under over next behind front sky stars beach mountain "
    "forest city water ocean field winter summer morning evening happy sad light dark bright"
)


def new_tokenizer() -> CLIPTokenizer:
    """Train CLIP's byte-pair encoding on the captions of the whole vocabulary."""
    rng = np.random.default_rng(0)
    captions = (draw_composition(rng, len(SUBJECTS), 0.5).caption for _ in range(_CAPTIONS))
    learner = Tokenizer(models.BPE(end_of_word_suffix=_WORD_END))
    # CLIPTokenizer's own normaliser and word splitting, so that the merges fit what it will see.
    reference = CLIPTokenizer(vocab={_START: 0, _END: 1}, merges=[])._tokenizer
    learner.normalizer, learner.pre_tokenizer = reference.normalizer, reference.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=2000, end_of_word_suffix=_WORD_END, show_progress=False, min_frequency=2
    )
    learner.train_from_iterator(chain(captions, [_OTHER_WORDS] * 2), trainer)
    learned = set(learner.get_vocab())
    merges = _merges(learner)
    letters = sorted(ByteLevel.alphabet())
    ends = [letter + _WORD_END for letter in letters]
    known = dict.fromkeys([*letters, *ends, *(a + b for a, b in merges), *sorted(learned)])
    tokens = [*known, _START, _END]
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=merges,
        model_max_length=TEXT_LENGTH,
    )


def _merges(learner: Tokenizer) -> list[tuple[str, str]]:
    return [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """Build a text encoder of three layers with random weights."""
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=2,
            max_position_embeddings=TEXT_LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def token_ids(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> Tensor:
    """Return ``(B, 24)`` ids, as the pipeline makes them."""
    encoded = tokenizer(
        list(captions),
        padding="max_length",
        max_length=TEXT_LENGTH,
        truncation=True,
        return_tensors="pt",
    )
    ids: Tensor = encoded.input_ids
    return ids
