"""README.md is short, shows a file as it is, and has links that lead somewhere; test_pages_to_follow.py calls its commands."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from stackwise import config
from stackwise.cli import COMMANDS
from stackwise.host.discovery import discover
from stackwise.plan import make_plan

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FRONT = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md")
PAGES = [*(ROOT / name for name in FRONT), *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def test_it_is_short() -> None:
    assert len(README.splitlines()) < 120


def test_the_config_is_that_of_the_example() -> None:
    assert blocks("yaml") == [(ROOT / "examples" / "grow-bytes.yaml").read_text(encoding="utf-8")]


def test_every_example_is_listed() -> None:
    listed = set(re.findall(r"\]\(([\w-]+\.(?:yaml|py|ipynb))\)", (ROOT / "examples" / "README.md").read_text(encoding="utf-8")))
    found = {path.name for path in (ROOT / "examples").iterdir() if path.suffix in (".yaml", ".py", ".ipynb")}
    assert listed == {name for name in found if not name.startswith("prepare_")}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        there = page.parent / path if path else page
        assert there.exists(), f"{page.name}: {target}"
        assert not anchor or there.suffix != ".md" or anchor in anchors(there), f"{page.name}: {target}"


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}


def named_commands() -> Iterator[str]:
    for page in PAGES:
        yield from re.findall(r"^stackwise ([a-z-]+)|`stackwise ([a-z][a-z-]+)", page.read_text(encoding="utf-8"), re.MULTILINE)


def test_every_command_that_is_named_exists() -> None:
    named = {"".join(pair) for pair in named_commands()}
    assert named and named <= set(COMMANDS)


def test_its_picture_is_the_timeline_of_its_config() -> None:
    root = ElementTree.parse(ROOT / "docs" / "timeline.svg").getroot()
    texts = ["".join(each.itertext()) for each in root.iter("{http://www.w3.org/2000/svg}text")]
    plan = make_plan(config.load(ROOT / "examples" / "grow-bytes.yaml"), discover())
    names = [phase.name for phase in plan.schedule]
    assert [text for text in texts if text in names] == names
    copies = [
        f"{new[1]} ← {origin.source[1]}" for new, origin in plan.schedule.phases[1].blocks.items() if origin.source not in (None, new)
    ]
    assert sorted(text for text in texts if "←" in text) == sorted(copies)
