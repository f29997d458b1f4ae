"""The site of these pages: `make site`. Plain Markdown goes in; what only Sphinx reads stands in this file."""

from __future__ import annotations

import re
from collections.abc import Iterator

import stackwise

project = "StackWise"
version = release = stackwise.__version__
project_copyright = "the StackWise authors"

extensions = ["myst_parser"]
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
suppress_warnings = ["myst.xref_missing"]  # links to files beside docs/, which tests/docs/test_readme.py follows

html_theme = "furo"
html_title = "StackWise"
html_copy_source = False
html_show_sphinx = False


def sidebar(index: str) -> Iterator[str]:
    """Each section of index.md, with the pages that it links to in their order, as Sphinx wants it for its sidebar."""
    seen: set[str] = set()
    for section in index.split("\n## ")[1:]:
        pages = [page for page in re.findall(r"\]\(([\w/-]+)\.md(?:#[^)]*)?\)", section) if not (page in seen or seen.add(page))]
        yield "\n".join(["", ":::{toctree}", ":hidden:", f":caption: {section.splitlines()[0]}", "", *pages, ":::", ""])


def add_sidebar(app: object, docname: str, source: list[str]) -> None:
    """Lists of pages that readers of plain Markdown do not need."""
    if docname == "index":
        source[0] += "".join(sidebar(source[0]))
    elif docname == "decisions/README":
        source[0] += "\n:::{toctree}\n:glob:\n\n0*\n:::\n"


def setup(app: object) -> None:
    """Called by Sphinx."""
    app.connect("source-read", add_sidebar)  # type: ignore[attr-defined]
