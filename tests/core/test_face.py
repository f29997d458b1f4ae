"""The face `stackwise`: what it names is there, for programs and for type checkers, and nothing is loaded before it is used."""

from __future__ import annotations

import ast
import subprocess
import sys
from inspect import getmembers
from pathlib import Path
from typing import get_args

import pytest

import stackwise
from stackwise.contracts import events, generation, growth, protocols


def test_every_name_is_there():
    for name in stackwise.__all__:
        assert getattr(stackwise, name) is not None
    assert set(dir(stackwise)) == set(stackwise.__all__)
    with pytest.raises(AttributeError, match="'hookimp'"):
        _ = stackwise.hookimp  # type: ignore[attr-defined]


def test_type_checkers_find_each_name_where_the_table_says():
    """The first group of the table, what authors use, and the errors; users in code are served by the table alone."""
    (block,) = (node for node in ast.parse(Path(stackwise.__file__).read_text(encoding="utf-8")).body if isinstance(node, ast.If))
    typed = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert {name: stackwise._FACE[name] for name in typed} == typed
    rooms = ("stackwise.contracts.", "stackwise.errors")
    missing = {name for name, module in stackwise._FACE.items() if module.startswith(rooms) and name not in typed}
    assert missing <= {"Built", *(event.__name__ for event in get_args(events.Event))}


def test_every_shape_of_a_component_is_a_name_of_the_face():
    shapes = {
        name for module in (protocols, growth, generation) for name, value in getmembers(module) if getattr(value, "_is_protocol", False)
    }
    assert shapes - {"Protocol"} <= set(stackwise.__all__)


def test_every_event_is_a_name_of_the_face():
    assert {event.__name__ for event in get_args(events.Event)} <= set(stackwise.__all__)


def test_importing_the_face_loads_no_library():
    code = "import sys, stackwise; print(sorted({'attrs', 'torch', 'yaml', 'pluggy', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_way_in_that_was_announced_to_go_is_gone():
    with pytest.raises(ImportError):
        from stackwise.contracts import Stateful  # type: ignore[attr-defined]  # noqa: F401
