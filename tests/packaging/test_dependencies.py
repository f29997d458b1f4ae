"""What a distribution declares it imports, and what it imports it declares."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
DISTRIBUTIONS = sorted(path.parent.name for path in ROOT.glob("stackwise-*/pyproject.toml"))

NEVER_IMPORTED = {
    ("stackwise-providers-transformer", "stackwise-providers-data"): "a first run needs a loader",
    ("stackwise-providers-transformer", "stackwise-providers-optim"): "a first run needs an optimizer",
}
"""(distribution, what it declares without an import) → why."""


@cache
def distributions_by_module() -> Mapping[str, list[str]]:
    return packages_distributions()


def requirements(name: str, *, extras: bool) -> list[Requirement]:
    project = tomllib.loads((ROOT / name / "pyproject.toml").read_text("utf-8"))["project"]
    optional = [text for texts in project.get("optional-dependencies", {}).values() for text in texts]
    return [Requirement(text) for text in [*project["dependencies"], *(optional if extras else ())]]


def imported_names(source: str) -> Iterator[str]:
    """The first part of every absolute import, lazy and typing-only ones included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def imported_distributions(name: str) -> set[str]:
    """Third-party distributions that the source of one of ours imports; a module that nothing here offers stands under its own name."""
    offered = distributions_by_module()
    modules = {module for path in (ROOT / name / "src").rglob("*.py") for module in imported_names(path.read_text("utf-8"))}
    modules -= sys.stdlib_module_names | {name.replace("-", "_")} | ({"stackwise"} if name == "stackwise-core" else set())
    return {canonicalize_name(offered.get(module, [module])[0]) for module in modules}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_every_dependency_is_imported(name: str) -> None:
    unused = {canonicalize_name(need.name) for need in requirements(name, extras=False)} - imported_distributions(name)
    assert unused == {dependency for dist, dependency in NEVER_IMPORTED if dist == name}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_every_import_is_declared(name: str) -> None:
    assert imported_distributions(name) <= {canonicalize_name(need.name) for need in requirements(name, extras=True)}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_every_bound_admits_what_is_installed(name: str) -> None:
    for need in requirements(name, extras=False):
        assert need.specifier.contains(version(need.name), prereleases=True), need


def test_distributions_agree_on_their_lower_bounds() -> None:
    bounds: dict[str, set[str]] = {}
    for name in DISTRIBUTIONS:
        for need in requirements(name, extras=False):
            bounds.setdefault(canonicalize_name(need.name), set()).add(str(need.specifier))
    assert {name: found for name, found in bounds.items() if len(found) > 1} == {}
