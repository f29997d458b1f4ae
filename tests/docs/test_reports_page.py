"""`docs/how-to/reports.md`: every command that it shows does what it says, on runs of these names."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from shown_runs import make_run

from stackwise.cli import main
from stackwise.reports.drawing import BUCKETS, SMOOTH_SHARE

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "reports.md").read_text(encoding="utf-8")
COMMANDS = [command for command in re.findall(r"^stackwise (.*)$", PAGE, re.MULTILINE) if "--live" not in command]
"""One that serves until it is interrupted is tested in tests/core/reports/test_live_page.py."""
assert len(COMMANDS) > 5  # a page that writes them in another way would be tested in none


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    make_run(folder / "runs", "grow-bytes-001")
    make_run(folder / "runs", "seed-2", seed=4)
    shutil.copytree(folder / "runs" / "grow-bytes-001", folder / "runs" / "seed-1")
    shutil.copytree(folder / "runs" / "grow-bytes-001", folder / "runs" / "other")
    shutil.copy(folder / "runs" / "grow-bytes-001.yaml", folder / "grow-bytes.yaml")
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_its_commands_work(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    done = CliRunner().invoke(main, shlex.split(command))
    assert done.exit_code == 0, done.output
    for page in re.findall(r"[\w.-]+\.html", command):
        assert (folder / page).read_text().startswith("<!doctype html>")


def test_its_figures_are_the_codes():
    assert f"each of {BUCKETS} intervals" in PAGE and SMOOTH_SHARE == 0.01
