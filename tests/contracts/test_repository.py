"""House rules that hold over the whole tree."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import fedlora

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MODULES = sorted(
    str(path.relative_to(ROOT))
    for folder in ("fedlora", "server", "client", "simulations")
    for path in (ROOT / folder).rglob("*.py")
    if not path.stem.endswith(("_pb2", "_pb2_grpc"))
)
TESTS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*.py"))
LONGEST_MODULE = 300
PLACEHOLDER = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")


def pins() -> dict[str, Version]:
    """Return the version that constraints.txt pins for each distribution."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def requirements() -> list[Requirement]:
    """Return what pyproject.toml asks for, extras included, of others than itself."""
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    found = [Requirement(line) for group in groups for line in group]
    return [requirement for requirement in found if requirement.name != PROJECT["name"]]


@pytest.mark.parametrize("module", MODULES)
def test_module_says_what_it_is(module: str) -> None:
    """Every module begins with a docstring."""
    assert ast.get_docstring(ast.parse((ROOT / module).read_text()))


@pytest.mark.parametrize("module", MODULES)
def test_module_is_short(module: str) -> None:
    """Past this length there is a seam to be found."""
    assert len((ROOT / module).read_text().splitlines()) <= LONGEST_MODULE


@pytest.mark.parametrize("module", MODULES)
def test_module_holds_no_placeholder(module: str) -> None:
    """What is left to do is an issue, not a comment."""
    assert not PLACEHOLDER.search((ROOT / module).read_text())


@pytest.mark.parametrize("module", TESTS)
def test_every_test_says_what_holds(module: str) -> None:
    """A test without a docstring leaves the reader of its failure to guess."""
    functions = [
        node
        for node in ast.walk(ast.parse((ROOT / module).read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]

    assert [test.name for test in functions if not ast.get_docstring(test)] == []


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_constraints_pin_every_requirement(requirement: Requirement) -> None:
    """The tested version of each direct dependency is pinned, and within its bounds."""
    assert pins()[canonicalize_name(requirement.name)] in requirement.specifier


def test_constraints_name_public_versions_only() -> None:
    """A local version such as ``+cpu`` could not be installed elsewhere."""
    assert [version for version in pins().values() if version.local] == []


def test_version_is_told_once() -> None:
    """Flower needs it in pyproject.toml, the code in ``__version__``, people in the changelog."""
    assert PROJECT["version"] == fedlora.__version__
    assert re.search(
        rf"^## .*\b{re.escape(fedlora.__version__)}\b",
        (ROOT / "CHANGELOG.md").read_text(),
        re.MULTILINE,
    )
