"""News of users: fragments have names that a release reads, and a release puts them on top of CHANGELOG.md and takes them away."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FRAGMENT = re.compile(r"\+[\w-]+\.(added|changed|fixed)\.md")


def test_every_fragment_is_read_by_a_release() -> None:
    names = {path.name for path in (ROOT / "changes").iterdir()}
    assert {name for name in names if not FRAGMENT.fullmatch(name)} == {"README.md"}
    assert all((ROOT / "changes" / name).read_text(encoding="utf-8").strip() for name in names)


def release(folder: Path, version: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "towncrier", "build", "--yes", "--version", version, "--date", "2000-01-01"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_release_puts_its_fragments_above_the_one_before(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / "changes").mkdir()
    shutil.copy(ROOT / "changes" / "README.md", tmp_path / "changes")
    for version in ("97.0", "98.0"):
        (tmp_path / "changes" / "+one.fixed.md").write_text(f"**Data:** mended in {version}.\n", encoding="utf-8")
        done = release(tmp_path, version)
        assert done.returncode == 0, done.stderr
        assert [path.name for path in (tmp_path / "changes").iterdir()] == ["README.md"]
    before, after = ((where / "CHANGELOG.md").read_text(encoding="utf-8") for where in (ROOT, tmp_path))
    head, found, rest = before.partition("<!-- releases -->\n")
    assert found and after.startswith(head + found)
    assert re.findall(r"^## (\S+)|^- (.*)$", after[len(head) :], re.MULTILINE)[:4] == [
        *(("98.0", ""), ("", "**Data:** mended in 98.0.")),
        *(("97.0", ""), ("", "**Data:** mended in 97.0.")),
    ]
    assert after.endswith(rest.strip("\n") + "\n")
