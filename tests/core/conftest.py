"""Fixtures of the core's tests."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SUPPORT = Path(__file__).parent.parent / "support"


@pytest.fixture(scope="session")
def distributions() -> ModuleType:
    """The module that writes fake distributions."""
    spec = importlib.util.spec_from_file_location("support_distributions", SUPPORT / "distributions.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def site(distributions: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty folder on the path of this process; its modules are forgotten afterwards."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    made = distributions.Site(folder)
    before = set(sys.modules)
    yield made
    for name in set(sys.modules) - before:
        if name in made.modules:
            del sys.modules[name]
