"""Forty-odd mistakes and the sentences that answer them, whole, in `sentences.md`, where a person can read and judge them.

Everywhere else tests assert the class, the path and the fields of an error, so that a better sentence is changed here alone.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
from click.testing import CliRunner

from stackwise import cli

HERE = Path(__file__).parent


class Case(NamedTuple):
    title: str
    config: str
    sentences: str


def read_cases() -> list[Case]:
    """Sections of `sentences.md`: a title, a config on top of `base.yaml`, and the answer."""
    text = (HERE / "sentences.md").read_text("utf-8")
    sections = re.findall(r"^## (.+?)\n+```yaml\n(.*?)```\n+```text\n(.*?)\n```$", text, flags=re.DOTALL | re.MULTILINE)
    return [Case(*section) for section in sections]


def answer(config: str, folder: Path) -> str:
    """What `stackwise validate` says of a config that lies beside `base.yaml`."""
    shutil.copy(HERE / "base.yaml", folder)
    extends = "" if config.startswith("extends:") else "extends: base.yaml\n"
    path = folder / "exp.yaml"
    path.write_text(extends + config, encoding="utf-8")
    ended = CliRunner().invoke(cli.main, ["validate", "exp.yaml"])
    assert ended.exit_code == 2, ended.output
    return ended.stderr.replace(str(folder), "").strip()


@pytest.mark.parametrize("case", read_cases(), ids=lambda case: case.title)
def test_a_mistake_is_answered_by_its_sentence(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert answer(case.config, tmp_path) == case.sentences


def test_there_are_some_forty() -> None:
    assert 40 <= len(read_cases()) <= 50
