"""The site is built without a warning, asks nothing of a network, and has no dead link."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.rare]  # half a minute; links between pages are held by test_readme.py in every `make test`
DOCS = Path(__file__).parents[2] / "docs"


class Page(HTMLParser):
    """What a page loads, where it leads, and the places in it that others lead to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.leads: list[str] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        about = {name: value or "" for name, value in attrs}
        self.places |= {about["id"]} if "id" in about else set()
        if tag in ("script", "img", "iframe") and "src" in about:
            self.loads.append(about["src"])
        if tag == "link" and about.get("rel") in ("stylesheet", "icon", "preload"):
            self.loads.append(about["href"])
        if tag == "a" and "href" in about:
            self.leads.append(about["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Page]:
    """Every page by its file."""
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", DOCS, folder],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return {path.resolve(): Page(path.read_text(encoding="utf-8")) for path in folder.rglob("*.html")}


def dead(site: dict[Path, Page]) -> Iterator[str]:
    for path, page in site.items():
        for link in page.leads:
            parts = urlsplit(link)
            if parts.scheme or path.name in ("genindex.html", "search.html"):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists() or (parts.fragment and target in site and unquote(parts.fragment) not in site[target].places):
                yield f"{path.name}: {link}"


def test_no_link_is_dead(site: dict[Path, Page]) -> None:
    assert len(site) > 60 and list(dead(site)) == []


def test_nothing_is_loaded_from_elsewhere(site: dict[Path, Page]) -> None:
    assert not [load for page in site.values() for load in page.loads if urlsplit(load).netloc]


def test_the_search_finds_words_of_the_pages(site: dict[Path, Page]) -> None:
    (index,) = {path.parent / "searchindex.js" for path in site if path.name == "search.html"}
    assert "schedul" in index.read_text(encoding="utf-8")
