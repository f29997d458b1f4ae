"""The size of the core, read from its source: short functions, few arguments, files that one can read in one sitting."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "stackwise-core" / "src" / "stackwise"
MOST_LINES_OF_A_FUNCTION, MOST_PARAMETERS, MOST_LINES_OF_A_FILE = 45, 8, 400

EXCEPTIONS: Mapping[str, str] = {
    "cli/branch.py::branch": "one parameter an option of the command, as click calls it",
    "cli/generate.py::generate": "one parameter an option of the command, as click calls it",
    "config/keys.py::key": "one keyword for each thing that can be said of a key of the config, all but one optional",
}
"""`path` or `path::function` → the sentence that says why it is larger."""


def read_sources() -> dict[str, str]:
    """Path below the package → source."""
    return {path.relative_to(SOURCE).as_posix(): path.read_text(encoding="utf-8") for path in sorted(SOURCE.rglob("*.py"))}


def functions(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function, also of classes and functions, with its dotted name."""
    for inner in ast.iter_child_nodes(node):
        if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + inner.name, inner
            yield from functions(inner, f"{prefix}{inner.name}.")
        elif isinstance(inner, ast.ClassDef):
            yield from functions(inner, f"{prefix}{inner.name}.")
        else:
            yield from functions(inner, prefix)


def count_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """From `def` to the last line of the body, without the docstring: a function is not long for being explained."""
    assert function.end_lineno is not None
    documented = ast.get_docstring(function, clean=False) is not None
    docstring = function.body[0]
    return function.end_lineno - function.lineno + 1 - ((docstring.end_lineno or 0) - docstring.lineno + 1 if documented else 0)


def count_parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Without `self` or `cls`."""
    arguments = function.args
    names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    names += [a.arg for a in (arguments.vararg, arguments.kwarg) if a is not None]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def oversized(sources: Mapping[str, str]) -> dict[str, str]:
    """What is larger than the rules allow → by how much."""
    faults: dict[str, str] = {}
    for path, source in sources.items():
        if (lines := source.count("\n")) > MOST_LINES_OF_A_FILE:
            faults[path] = f"{lines} lines"
        for name, function in functions(ast.parse(source)):
            sizes = []
            if (lines := count_lines(function)) > MOST_LINES_OF_A_FUNCTION:
                sizes.append(f"{lines} lines")
            if (parameters := count_parameters(function)) > MOST_PARAMETERS:
                sizes.append(f"{parameters} parameters")
            if sizes:
                faults[f"{path}::{name}"] = " and ".join(sizes)
    return faults


def test_nothing_is_larger_than_the_rules_but_what_says_why():
    faults = oversized(read_sources())
    assert {where: size for where, size in faults.items() if where not in EXCEPTIONS} == {}
    assert set(EXCEPTIONS) - set(faults) == set(), "no longer too large: take them off the list"


@pytest.mark.parametrize(
    ("source", "faults"),
    [
        ("def f():\n" + "    x = 1\n" * 44, {}),
        ("def f():\n" + "    x = 1\n" * 45, {"a.py::f": "46 lines"}),
        ('def f():\n    """One.\n\n    Two.\n    """\n' + "    x = 1\n" * 44, {}),
        ("class A:\n    def f(self, a, b, c, d, *, e, f, g, h): ...\n", {}),
        ("class A:\n    def f(self, a, b, c, d, *, e, f, g, h, **i): ...\n", {"a.py::A.f": "9 parameters"}),
        ("def f():\n    def g(a, b, c, d, e, f, g, h, *i): ...\n", {"a.py::f.g": "9 parameters"}),
        ("x = 1\n" * 401, {"a.py": "401 lines"}),
    ],
)
def test_a_planted_size_is_measured(source: str, faults: dict[str, str]):
    assert oversized({"a.py": source}) == faults


def test_the_name_of_a_test_is_a_short_sentence():
    names = [name for path in Path(__file__).parent.rglob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text("utf-8"))]
    assert [name for name in names if len(name) > 90] == []
