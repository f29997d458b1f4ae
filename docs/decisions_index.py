"""The index of docs/decisions: number, title and first sentence of every note. `make docs` writes it, with the pages of docs/reference."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).parent / "decisions"
HEAD = """<!-- written by make docs -->
# Decisions

A page for each choice that gives something up: what was decided, why, and its price. Numbers have gaps.
A note that was replaced says so in its title.

| | decision | begins |
|---|---|---|
"""
REPLACED = re.compile(r" \(replaced by (.*)\)$")


def index() -> str:
    """The text of README.md."""
    return HEAD + "".join(_rows())


def _rows() -> Iterator[str]:
    for path in sorted(FOLDER.glob("0*.md")):
        title, _, body = path.read_text(encoding="utf-8").partition("\n")
        replaced = REPLACED.search(title)
        meaning = f"Replaced by {replaced[1]}." if replaced else _first_sentence(body)
        yield f"| [{path.stem[:4]}]({path.name}) | {_plain(title)} | {meaning} |\n"


def _plain(title: str) -> str:
    """Without what stands in other columns: the number, and what has replaced the note."""
    plain = re.sub(r"^# (?:\d+[.:] *)?", "", REPLACED.sub("", title))
    return plain[:1].upper() + plain[1:]


def _first_sentence(body: str) -> str:
    """Of what was decided; of the page where no paragraph is marked as the decision."""
    text = " ".join(body.split())
    decided = re.search(r"\*\*(?:Decided|Decision|What)\b[^*]*\*\*(?:, in place of \[\d+\]\([^)]*\))?\.? *", text)
    text = text[decided.end() :] if decided else text
    sentence = re.match(r"(?:`[^`]*`|[^`])*?\.(?= |$)", text)
    return (sentence[0] if sentence else text).replace("|", r"\|")
