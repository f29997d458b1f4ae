"""`docs/reference/tasks.md` has a row for every task that comes with StackWise, and names what they need and report."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tiny_walks import registry

from stackwise import TaskSpec

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "tasks.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `([\w-]+)`(?:, (?:form|pairs) `([\w-]+)`)? \| (.*?) \| (.*?) \| (.*?) \|$", PAGE, re.MULTILINE)
CHOICES = {"spans": "pairs", "prefix": "form", "encoder-decoder": "form"}


def test_every_task_has_a_row() -> None:
    tasks = {component.id.partition(".")[2] for component in registry() if component.kind == "task" and component.provider == "transformer"}
    assert {row[0] for row in ROWS} == tasks


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]}-{row[1]}")
def test_a_row_says_what_the_spec_says(row: tuple[str, ...]) -> None:
    name, choice, needs, rack, _ = row
    options = registry().get("task", f"transformer.{name}").load_options()
    spec = options(**({CHOICES[choice]: choice} if choice else {})).to_spec()
    assert isinstance(spec, TaskSpec)
    assert all(f"`{field}`" in needs for field in spec.batch)
    if choice != "spans":
        assert all(f"`{side}`" in rack for side in spec.side)
        assert choice == "encoder-decoder" or str(spec.attention) in rack


def test_the_results_have_a_row_for_every_example_that_is_measured() -> None:
    root = Path(__file__).parents[2]
    results = (root / "docs" / "explanation" / "results.md").read_text(encoding="utf-8")
    measured = re.search(r"tasks\.py ([\w -]+)$", results, re.MULTILINE)
    assert measured is not None
    for name in measured[1].split():
        assert (root / "examples" / f"{name}.yaml").is_file() and f"| `{name}`" in results
