"""Every protocol of the contract has an example that runs: a class of a distribution that is checked and trained with, or code in its
docstring; and the reference leads to it."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import stackwise

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs"))

import reference_pages  # noqa: E402  # a script of that folder, which is on the path only now

PAGE = (ROOT / "docs" / "reference" / "contracts.md").read_text(encoding="utf-8")


def protocols() -> Iterator[type]:
    """Every protocol that a module of the contract defines and the face names."""
    folder = Path(inspect.getfile(reference_pages.protocols)).parent
    for path in sorted(folder.glob("*.py")):
        module = importlib.import_module(f"stackwise.contracts.{path.stem}") if path.stem != "__init__" else None
        for name, found in vars(module).items() if module else ():
            if getattr(found, "_is_protocol", False) and found.__module__ == module.__name__:  # type: ignore[union-attr]
                assert name in stackwise.__all__, f"{name} is not a name of the face"
                yield found


PROTOCOLS = {each.__name__: each for each in protocols()}


def members(protocol: type) -> set[str]:
    """What it asks for by name; of a call, that it can be called."""
    own = {*vars(protocol), *getattr(protocol, "__annotations__", {})}
    return {name for name in own if not name.startswith("_") or name == "__call__"}


def loaded(place: str) -> ModuleType:
    if not place.endswith(".py"):
        return importlib.import_module(place)
    file = ROOT / place
    if "third_party" in place:
        sys.path.insert(0, str(file.parents[1]))
        try:
            return importlib.import_module(f"{file.parent.name}.{file.stem}")
        finally:
            sys.path.remove(str(file.parents[1]))
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = sys.modules[file.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def example_of(name: str) -> list[Any]:
    """The classes that may be one."""
    if name in reference_pages.EXAMPLES:
        place, _, attribute = reference_pages.EXAMPLES[name].partition(":")
        return [getattr(loaded(place), attribute)]
    code = re.findall(r"```python\n(.*?)```", inspect.getdoc(PROTOCOLS[name]) or "", re.DOTALL)
    assert code, f"{name} has neither a line in EXAMPLES nor code in its docstring"
    space: dict[str, Any] = {}
    exec("\n".join(code), space)  # it is ours
    return [found for found in space.values() if isinstance(found, type)]


def test_the_protocols_are_those_of_the_contract() -> None:
    assert len(PROTOCOLS) > 35 and set(reference_pages.EXAMPLES) <= set(PROTOCOLS)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_has_an_example_that_is_one(name: str) -> None:
    wanted = members(PROTOCOLS[name])
    assert wanted
    fits = [found for found in example_of(name) if all(_has(found, member) for member in wanted)]
    assert fits, (name, wanted)


def _has(found: Any, member: str) -> bool:
    """Whether a class has a member, also one that its constructor sets."""
    if hasattr(found, member):
        return True
    try:
        text = inspect.getsource(found)
    except TypeError:  # made by code of a docstring
        return False
    source = ast.parse(inspect.cleandoc("\n" + text))
    return any(isinstance(node, ast.Attribute) and node.attr == member and isinstance(node.ctx, ast.Store) for node in ast.walk(source))


@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_reference_leads_to_it(name: str) -> None:
    section = PAGE.split(f"\n### `stackwise.{name}`\n", 1)[1].partition("\n### ")[0]
    if (link := re.search(r"^Example: \[`\w+`\]\(\.\./\.\./([^)]+)\)", section, re.MULTILINE)) is not None:
        assert (ROOT / link[1]).is_file()
    else:
        assert "```python\nclass " in section


def test_a_protocol_without_an_example_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(reference_pages.EXAMPLES, "Loader")
    with pytest.raises(AssertionError, match="Loader has neither"):
        example_of("Loader")
