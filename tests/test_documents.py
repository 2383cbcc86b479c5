"""What the documents quote is there: files they link to, commands and flags, messages."""

import ast
import contextlib
import io
import re
import runpy
import shlex
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

import benchmarks.cli
import cdm_serve.cli
import distill.cli
import export.cli

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "models" / "README.md"]
MAINS: dict[str, Callable[[list[str]], object]] = {
    "cdm-serve": cdm_serve.cli.main,
    "cdm-distill": distill.cli.main,
    "cdm-export": export.cli.main,
    "cdm-bench": benchmarks.cli.main,
}
OURS = re.compile(r"(cdm_serve|distill|export|benchmarks)(\.\w+)*$")  # python -m, torchrun -m


def fenced(document: Path) -> list[str]:
    """The lines of a document's code blocks, those that go on joined."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)
    return "".join(blocks).replace("\\\n", " ").splitlines()


def commands(document: Path) -> list[list[str]]:
    """The words of each call of one of our commands or modules, with nothing around them."""
    found = []
    for line in fenced(document):
        for part in re.split(r"&&|;|\|", line):
            words = shlex.split(part, comments=True)
            for i, word in enumerate(words):
                if word in MAINS or (OURS.match(word) and words[i - 1] == "-m"):
                    found.append(words[i:])
    return found


@cache
def help_of(program: str, *command: str) -> str:
    printed = io.StringIO()
    with (
        contextlib.redirect_stdout(printed),
        warnings.catch_warnings(),
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(SystemExit) as ended,
    ):
        if program in MAINS:
            MAINS[program]([*command, "--help"])
        patch.setattr("sys.argv", [program, *command, "--help"])
        warnings.simplefilter("ignore", RuntimeWarning)  # another test may have imported it
        runpy.run_module(program, run_name="__main__")
    assert ended.value.code == 0
    return printed.getvalue()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_has_the_flags_it_is_called_with(document: Path) -> None:
    for program, *words in commands(document):
        printed = help_of(program)
        if words and re.search(rf"[{{,]{re.escape(words[0])}[,}}]", printed):
            printed = help_of(program, words[0])
        known = set(re.findall(r"--[a-z0-9][a-z0-9-]*", printed))
        flags = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert flags <= known, [program, *words]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_to_a_file_and_a_heading(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        file, _, heading = target.partition("#")
        if "://" in target:
            continue
        path = document.parent / file if file else document
        assert path.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)", path.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert heading in anchors, target


def templates() -> set[str]:
    """Every text in the packages, with ``...`` where a value is put in."""
    found = set()
    for package in ("cdm_serve", "distill", "export"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = [
                        str(p.value) if isinstance(p, ast.Constant) else "..." for p in node.values
                    ]
                    found.add("".join(parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.add(node.value)
    return found


def test_every_message_of_troubleshooting_is_one_that_is_given() -> None:
    given = templates()
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    cells = re.findall(r"^\| (`.*?`) \|", text, re.MULTILINE)
    quoted = [message for cell in cells for message in re.findall(r"`(.+?)`", cell)]
    assert len(quoted) > 20
    unknown = [message for message in quoted if not any(message in each for each in given)]
    assert not unknown
