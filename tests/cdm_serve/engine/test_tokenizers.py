import pytest
from transformers import CLIPTokenizer

from cdm_serve.engine.tokenizers import PromptTokenizer

PROMPTS = ["", "a fox", "A  Fox\nin the SNOW!", "größer 狐狸 🦊", "long " * 40, "<|endoftext|> x"]


@pytest.fixture
def tokens(manifest):
    return PromptTokenizer(manifest.tokenizers)(PROMPTS)


def test_ids_are_those_of_the_students_own_tokenizers(student, tokens):
    for ids, name in zip(tokens.ids, ("tokenizer", "tokenizer_2"), strict=True):
        reference = CLIPTokenizer.from_pretrained(student / name)
        expected = reference(PROMPTS, padding="max_length", truncation=True)["input_ids"]
        assert ids.tolist() == expected


def test_counts_leave_out_the_padding(tokens):
    assert tokens.counts == (2, 6, *tokens.counts[2:4], 24, tokens.counts[5])
