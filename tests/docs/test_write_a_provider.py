"""`docs/how-to/write-a-provider.md` shows the code of the distribution that is built and trained with, and names what the face has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import stackwise

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "tests" / "third_party" / "waves-for-stackwise"
PAGE = (ROOT / "docs" / "how-to" / "write-a-provider.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(?:python|toml|yaml) title=(\S+)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(("file", "code"), BLOCKS, ids=[f"{i}-{file}" for i, (file, _) in enumerate(BLOCKS)])
def test_a_block_is_the_code_of_its_file(file: str, code: str) -> None:
    assert code.rstrip("\n") in (SOURCE / file).read_text(encoding="utf-8")


def test_all_code_but_commands_has_a_file() -> None:
    assert len(re.findall(r"^```(?!console)\w", PAGE, re.MULTILINE)) == len(BLOCKS) > 10


def test_the_sources_import_nothing_below_the_face() -> None:
    sources = sorted((SOURCE / "src").rglob("*.py"))
    imports = [line for path in sources for line in path.read_text(encoding="utf-8").splitlines() if "import" in line]
    assert not [line for line in imports if re.search(r"\bstackwise\.", line)]
    names = {n for path in sources for n in _imported(path.read_text(encoding="utf-8"))}
    assert names <= set(stackwise.__all__)


def _imported(source: str) -> set[str]:
    found: set[str] = set()
    for names in re.findall(r"^from stackwise import (\(.*?\)|[^\n]+)", source, re.DOTALL | re.MULTILINE):
        found |= set(re.findall(r"\w+", names))
    return found
