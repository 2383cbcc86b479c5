"""What pyproject.toml declares is what is imported, and constraints.txt pins all of it."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DISTRIBUTIONS = packages_distributions()
OURS = {"cdm_serve", "distill", "export", "benchmarks"}
# What lives in an environment of its own says so beside it.
OWN = {"benchmarks/serving/peers": "requirements.txt"}
# In no environment of the tests.
NOT_HERE = {
    "cupy": "cupy-cuda13x",
    "cupyx": "cupy-cuda13x",
    "datasets": "datasets",
    "litserve": "litserve",
    "openvino_genai": "openvino-genai",
    "openvino_tokenizers": "openvino-tokenizers",
    "optimum": "optimum-intel",
    "tensorrt": "tensorrt",
}
NO_PACKAGE = {"triton_python_backend_utils"}  # Triton's own, inside its process
# The extras that a folder's files may need; the longest folder that holds a file counts.
EXTRAS = {
    "cdm_serve": {"c2pa", "redis", "telemetry"},
    "cdm_serve/engine": {"cpu", "cuda", "tensorrt"},
    "cdm_serve/ray": {"ray"},
    "distill": {"distill", "datasets"},
    "distill/demo": {"demo"},
    "export": {"export", "int8", "tensorrt"},
    "benchmarks": {"bench", "cuda", "export", "tensorrt"},
    "benchmarks/serving/peers": {"bench"},
    "tests": {"dev"},
}


@cache
def declared(extra: str) -> frozenset[str]:
    """The distributions of an extra, with those of the extras it names; "" is the base."""
    lines = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    names: set[str] = set()
    for requirement in map(Requirement, lines):
        if requirement.name == PROJECT["name"]:
            names.update(*map(declared, requirement.extras))
        else:
            names.add(canonicalize_name(requirement.name))
    return frozenset(names)


def imported(path: Path) -> Iterator[str]:
    """Top names of the modules of others that a file imports, also by ``import_module``."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            # "google" is shared by many: the module below it says whose.
            names.append(node.module)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names += [each.value for each in node.args if isinstance(each, ast.Constant)]
    tops = {".".join(name.split(".")[: 2 if name.startswith("google.") else 1]) for name in names}
    own = {each.stem for each in (ROOT / "tests").iterdir()} if "tests" in path.parts else set()
    yield from tops - OURS - NO_PACKAGE - own - sys.stdlib_module_names


@cache
def distribution_of(module: str) -> str:
    if module == "google.protobuf":
        return "protobuf"
    found = DISTRIBUTIONS.get(module) or [NOT_HERE[module]]
    return canonicalize_name(found[0])


@pytest.mark.parametrize("folder", EXTRAS)
def test_every_import_is_declared(folder: str) -> None:
    allowed = declared("").union(*map(declared, EXTRAS[folder]))
    if folder in OWN:
        lines = (ROOT / folder / OWN[folder]).read_text().splitlines()
        own = [Requirement(line) for line in lines if not line.startswith("#")]
        allowed |= {canonicalize_name(each.name) for each in own}
    inside = {other for other in EXTRAS if other.startswith(f"{folder}/")}
    missing = {
        f"{path.relative_to(ROOT)}: {module}"
        for path in (ROOT / folder).rglob("*.py")
        if not any(path.is_relative_to(ROOT / other) for other in inside)
        for module in imported(path)
        if distribution_of(module) not in allowed
    }
    assert not missing


def test_a_gpu_has_its_libraries_and_no_package_that_would_overwrite_its_own() -> None:
    """``onnxruntime`` and ``onnxruntime-gpu`` share a folder, and the one installed last wins."""
    cuda, tensorrt = declared("cuda"), declared("tensorrt")
    shared = {"cuda-toolkit", "cupy-cuda13x", "tokenizers"}
    assert cuda == shared | {"onnxruntime-gpu"} and tensorrt == shared | {"tensorrt"}
    lines = PROJECT["optional-dependencies"]["cuda"]
    assert any("cudnn" in Requirement(line).extras for line in lines)


def test_every_extra_that_is_named_is_there() -> None:
    files = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "Makefile"]
    files += [path for package in OURS for path in (ROOT / package).rglob("*.py")]
    named = {
        extra
        for path in files
        for extras in re.findall(r"(?:cdm-serve|'\.)\[([a-z0-9,]+)\]", path.read_text("utf-8"))
        for extra in extras.split(",")
    }
    assert {"cpu", "dev", "export"} <= named <= PROJECT["optional-dependencies"].keys()
    _, _, table = (ROOT / "README.md").read_text().partition("| extra |")
    rows = re.findall(r"^\| (.*?) \|", table.partition("\n\n")[0], re.MULTILINE)
    told = set(re.findall(r"`(\w+)`", " ".join(rows)))
    assert told == PROJECT["optional-dependencies"].keys() - {"dev"}


def test_every_requirement_is_pinned_in_order() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    names = [canonicalize_name(pin.name) for pin in pins]
    assert names == sorted(names) and len(set(names)) == len(names)
    assert all(str(pin.specifier).startswith("==") for pin in pins)
    assert "+" not in "".join(lines) and "://" not in "".join(lines)
    extras = PROJECT["optional-dependencies"]
    assert set().union(declared(""), *map(declared, extras)) - {"datasets"} <= set(names)
