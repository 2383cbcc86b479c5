"""Each package imports only what the house allows it to, and no module itself by a detour."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("cdm_serve", "distill", "export", "benchmarks")
HEAVY = {"torch", "diffusers", "transformers", "accelerate", "peft"}
# What a package may import of ours besides itself; benchmarks anything.
ALLOWED = {
    "cdm_serve": (),
    "distill": (),
    "export": (
        "cdm_serve.doctor",
        "cdm_serve.engine",
        "cdm_serve.errors",
        "distill.adapters",
        "distill.errors",
        "distill.prompt_sources",
    ),
}


def files_of(package: str) -> list[Path]:
    """Those that are imported: what export copies into a model folder is not."""
    files = [p for p in (ROOT / package).rglob("*.py") if p.parent != ROOT / "export" / "triton"]
    assert files
    return files


def imports_of(path: Path) -> set[str]:
    """All of them, wherever they stand; of ``from a import b`` ``a.b`` as well as ``a``."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.update({node.module, *(f"{node.module}.{alias.name}" for alias in node.names)})
    return names


def is_in(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == each or name.startswith(f"{each}.") for each in packages)


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_of(package: str) -> None:
    broken = {
        str(path.relative_to(ROOT)): found
        for path in files_of(package)
        if (
            found := {
                name
                for name in imports_of(path)
                if is_in(name, OURS) and not is_in(name, (package, *ALLOWED[package]))
            }
        )
    }
    assert not broken


def test_serving_knows_no_torch() -> None:
    assert not {
        str(path.relative_to(ROOT)): found
        for path in files_of("cdm_serve")
        if (found := {name.split(".")[0] for name in imports_of(path)} & HEAVY)
    }


def test_serving_loads_no_torch() -> None:
    code = (
        "import sys, pkgutil, importlib, cdm_serve\n"
        "for module in pkgutil.walk_packages(cdm_serve.__path__, 'cdm_serve.'):\n"
        "    if not module.name.endswith(('triton_model', '__main__')):\n"
        "        importlib.import_module(module.name)\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert printed.stdout.strip() == "[]", printed.stderr


def test_no_module_imports_itself_by_a_detour() -> None:
    """Not even inside a function or for the type checker alone."""
    modules = {}
    for package in OURS:
        for path in files_of(package):
            parts = path.relative_to(ROOT).with_suffix("").parts
            modules[".".join(parts).removesuffix(".__init__")] = imports_of(path)
    graph = {
        name: {each for each in imported if each in modules and each != name}
        for name, imported in modules.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))
