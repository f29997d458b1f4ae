"""`docs/reference/runs.md`: its table has every file that a run leaves, and its section of a config can be planned."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from shown_runs import make_run

from stackwise.cli import main

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "runs.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs"))


def test_every_file_of_a_run_is_listed(directory: Path) -> None:
    files = PAGE[PAGE.index("## Files of a run") : PAGE.index("## Resume")]
    listed = {name.partition("/")[0] for row in re.findall(r"^\| (`.*?) \|", files, re.MULTILINE) for name in re.findall(r"`([^`]+)`", row)}
    assert {path.name for path in directory.iterdir()} <= listed


def test_its_section_of_a_config_is_planned(directory: Path) -> None:
    (section,) = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    config = directory.parent / "section.yaml"
    config.write_text(f"extends: {directory.name}.yaml\n{section}", encoding="utf-8")
    planned = CliRunner().invoke(main, ["plan", str(config)])
    assert planned.exit_code == 0, planned.output
