"""`docs/explanation/walk.md` leads through files and names that exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = ROOT / "stackwise-core" / "src" / "stackwise"
WALK = (ROOT / "docs" / "explanation" / "walk.md").read_text(encoding="utf-8")

TOKENS = re.findall(r"`([\w/.]+\.py)`|`([A-Za-z_][\w.]*)\(\)`", WALK)


@cache
def defined(file: str) -> frozenset[str]:
    """Functions, classes and methods of a file, methods as `Class.method`."""
    names = set()
    for node in ast.parse((CORE / file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return frozenset(names)


def mentions() -> list[tuple[str, str]]:
    """(file, name) for every name, with the file mentioned last before it."""
    file, pairs = "", []
    for path, name in TOKENS:
        file = path or file
        if name:
            pairs.append((file, name))
    return pairs


@pytest.mark.parametrize("file", sorted({path for path, _ in TOKENS if path}))
def test_a_file_exists(file: str) -> None:
    assert (CORE / file).is_file()


@pytest.mark.parametrize(("file", "name"), dict.fromkeys(mentions()))
def test_a_name_is_defined_in_the_file_named_before_it(file: str, name: str) -> None:
    assert name in defined(file)


def test_the_walk_passes_through_every_room_that_a_run_does() -> None:
    rooms = {path.name for path in CORE.iterdir() if (path / "__init__.py").is_file()}
    without_a_run = {"builtin", "conformance", "saved", "scaffold", "sweeps"}
    assert {path.partition("/")[0] for path, _ in TOKENS if path} == rooms - without_a_run
