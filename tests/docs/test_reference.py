"""`docs/reference/` is what the code gives, the index leads to every page, and that of the decisions has every note once."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

import stackwise
from stackwise.cli import COMMANDS

DOCS = Path(__file__).parents[2] / "docs"
sys.path.insert(0, str(DOCS))

import reference_pages  # noqa: E402  # a script of that folder, which is on the path only now


def test_no_page_is_stale() -> None:
    for name, text in reference_pages.pages().items():
        assert (DOCS / name).read_text(encoding="utf-8") == text, "written by `make docs`"


def test_a_changed_command_makes_its_page_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(COMMANDS, "completion")  # type: ignore[misc]  # a table that nobody else changes
    assert reference_pages.stale() == ["reference/command-line.md"]


def test_every_name_of_the_face_and_every_command_is_there() -> None:
    python, commands = ((DOCS / "reference" / name).read_text(encoding="utf-8") for name in ("python.md", "command-line.md"))
    assert set(re.findall(r"^## `stackwise\.(\w+)`$", python, re.MULTILINE)) == set(stackwise.__all__) - {"__version__"}
    assert set(re.findall(r"^## `stackwise ([\w-]+)`$", commands, re.MULTILINE)) == set(COMMANDS)


def test_the_index_leads_to_every_page() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    linked = {target.partition("#")[0] for target in re.findall(r"\]\(([^)]+)\)", index)}
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert {page for page in pages if not re.match(r"decisions/0|index", page)} <= linked


NOTES = {path: path.read_text(encoding="utf-8") for path in sorted((DOCS / "decisions").glob("[0-9]*.md"))}


def test_every_decision_has_a_number_of_its_own() -> None:
    numbers = [path.name[:4] for path in NOTES]
    assert len(set(numbers)) == len(numbers) > 60


def test_a_decision_that_another_replaces_says_so_in_its_title() -> None:
    replaced = [target for text in NOTES.values() for target in re.findall(r"\*\*Decided\*\*, in place of \[\d+\]\(([^)]+)\)", text)]
    titles = {path.name: text.splitlines()[0] for path, text in NOTES.items()}
    assert replaced and all("(replaced by [" in titles[name] for name in replaced)


def test_a_message_of_the_troubleshooting_page_is_one_of_the_code() -> None:
    page = (DOCS / "how-to" / "troubleshooting.md").read_text(encoding="utf-8")
    source = "".join(path.read_text(encoding="utf-8") for folder in DOCS.parent.glob("stackwise-*/src") for path in folder.rglob("*.py"))
    quoted = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    assert len(quoted) > 8 and all(message in source for message in quoted), quoted
