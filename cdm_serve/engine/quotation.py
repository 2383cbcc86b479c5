"""Prompts whose quoted text is tokenized character by character, so that it can be drawn."""

import re

_INNER_APOSTROPHE = re.compile(r"[a-zA-Z]+'[a-zA-Z]+")
_MARKS = (("'", "'"), ('"', '"'), ("\u2018", "\u2019"), ("\u201c", "\u201d"))
_QUOTED = re.compile("|".join(f"{a}[^{a}{b}]*?{b}" for a, b in _MARKS))


def pieces(prompt: str) -> list[str]:
    """The parts of a prompt that are tokenized each by itself, in order.

    As diffusers' ``split_quotation`` has it: text in ``''``, ``""``, ``‘’`` or
    ``“”`` falls into single characters, the marks included; an apostrophe between two letters is
    no mark. Where a prompt has two or more different such words, diffusers garbles all but one,
    which one changing from process to process; here all stay as they are.
    """
    words = list(dict.fromkeys(_INNER_APOSTROPHE.findall(prompt)))
    for i, word in enumerate(words):
        prompt = prompt.replace(word, _placeholder(i))
    parts: list[str] = []
    end = 0
    for quoted in _QUOTED.finditer(prompt):
        parts += [_restored(prompt[end : quoted.start()], words)]
        parts += _restored(quoted.group(), words)
        end = quoted.end()
    parts += [_restored(prompt[end:], words)]
    return [part for part in parts if part]


def _placeholder(index: int) -> str:
    """Something with no quotation mark that is in no prompt: no character of it is a character."""
    return f"\ufdd0{index}\ufdd1"


def _restored(text: str, words: list[str]) -> str:
    for i, word in enumerate(words):
        text = text.replace(_placeholder(i), word)
    return text
