"""A provider made for the contract before this one is refused with the reason before anything of it is imported, by every command that
meets it; one made for this contract loads, lists, checks and trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from packaging.version import Version
from wrong_answers import CODE

from stackwise import __version__, cli

MAJOR, MINOR = Version(__version__).release[:2]
BEFORE, NOW, NEXT = (f"{MAJOR}.{minor}.0" for minor in (MINOR - 1, MINOR, MINOR + 1))
CONFIG = {
    "run": {"name": "odd", "horizon": "2 steps", "device": "cpu"},
    "task": {"use": "odd.one"},
    "data": {"sources": {"a": {"use": "odd.one"}}, "batch_size": 2, "seq_len": 4},
    "model": {"embedding": {"use": "odd.one"}, "rack": {"use": "odd.one", "stacks": [{"base": 1}]}, "head": {"use": "odd.one"}},
    "optimizer": {"use": "odd.one"},
}


@pytest.fixture
def install(site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Installs a provider for a core, in a folder with a config that uses it; it leaves a file behind wherever it is imported."""
    monkeypatch.chdir(tmp_path)
    Path("odd.yaml").write_text(yaml.safe_dump(CONFIG, sort_keys=False))
    trace = f"open({str(tmp_path / 'imported')!r}, 'w').close()\n"
    return lambda requirement: site.install("odd", trace + CODE, requires=[requirement])


def ask(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli.main, list(arguments))
    return done.exit_code, done.output


COMMANDS = [
    ("validate", "odd.yaml"),
    ("plan", "odd.yaml"),
    ("run", "odd.yaml"),
    ("check", "odd"),
    ("check", "odd.one"),
    ("show", "task:odd.one"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("core", [BEFORE, NEXT])
def test_one_for_another_contract_is_refused_before_import(install: Any, core: str, command: tuple[str, ...]) -> None:
    install(f"stackwise-core~={core}")
    code, said = ask(*command)
    assert code == 3
    assert f"fake-odd 1.0 needs stackwise-core~={core}" in said and f"{__version__} is installed" in said
    assert not Path("imported").exists() and not Path("runs").exists()


def test_it_is_listed_with_the_reason_and_hurts_nobody_else(install: Any, site: Any) -> None:
    install(f"stackwise-core~={BEFORE}")
    site.install("fine", requires=[f"stackwise-core~={NOW}"])
    code, said = ask("list-providers", "--json")
    rows = {row["provider"]: row for row in json.loads(said)}
    assert code == 0 and not Path("imported").exists()
    assert f"needs stackwise-core~={BEFORE}" in rows["odd"]["status"] and rows["odd"]["components"] == []
    assert rows["fine"]["status"] == "ok" and [each["id"] for each in rows["fine"]["components"]] == ["fine.thing"]


@pytest.mark.parametrize("requirement", [f"stackwise-core~={NOW}", f"stackwise-core>={BEFORE}"])
def test_one_for_this_contract_is_listed_planned_and_trained(install: Any, requirement: str) -> None:
    install(requirement)
    rows = {row["provider"]: row for row in json.loads(CliRunner().invoke(cli.main, ["list-providers", "--json"]).stdout)}
    assert rows["odd"]["status"] == "ok" and len(rows["odd"]["components"]) > 10
    for command in (("validate", "odd.yaml"), ("run", "odd.yaml")):
        code, said = ask(*command)
        assert code == 0, said
    assert Path("imported").exists()


def test_what_the_pages_tell_authors_to_require_fits_this_core() -> None:
    docs = Path(__file__).parents[3] / "docs"
    for page in ("reference/provider-api.md", "how-to/write-a-provider.md"):
        assert f"stackwise-core~={NOW}" in (docs / page).read_text(encoding="utf-8"), page
