"""Each package imports only what the house allows it to."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = {"cdm_serve", "distill", "export", "benchmarks"}
HEAVY = {"torch", "diffusers", "transformers", "accelerate", "peft"}
FORBIDDEN = {
    "cdm_serve": (OURS - {"cdm_serve"}) | HEAVY,
    "distill": OURS - {"distill"},
    "export": {"cdm_serve", "benchmarks"},
}


def imported_names(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_of(package: str) -> None:
    # The file that export copies into a Triton model folder runs there and is the server's.
    files = [p for p in (ROOT / package).rglob("*.py") if p.parent != ROOT / "export" / "triton"]
    assert files
    broken = {
        str(path.relative_to(ROOT)): found
        for path in files
        if (found := imported_names(path) & FORBIDDEN[package])
    }
    assert not broken


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
