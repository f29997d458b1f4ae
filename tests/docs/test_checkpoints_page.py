"""`docs/reference/checkpoints.md`: its Python runs, and the names it gives are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import stackwise
from stackwise.storage.checkpoints import manifest
from stackwise.storage.checkpoints.store import name_of
from stackwise.storage.weights import DESCRIPTION, WEIGHTS

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "checkpoints.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("block", re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))
def test_its_code_does_what_it_says(block: str) -> None:
    exec(compile(block, "docs/reference/checkpoints.md", "exec"), {})


def test_its_names_are_those_of_the_code() -> None:
    for name in (manifest.TENSORS, manifest.STATE, manifest.MANIFEST, name_of(640), f"DIR/{WEIGHTS}", f"DIR/{DESCRIPTION}"):
        assert name in PAGE
    assert "stackwise.load_exported(" in PAGE and callable(stackwise.load_exported)
