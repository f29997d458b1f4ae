"""What `stackwise init` writes reads back as what the folder says, its notes stay comments, and starters are what providers offer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from stackwise import cli
from stackwise.cli.init import _comment, _flow
from stackwise.host.discovery import discover


@pytest.mark.parametrize("value", ["whole", "no", "null", "true", "off", "a.b-c", "a: b", 3, 0.5, [1, "yes"], {"kind": "no"}])
def test_a_value_reads_back_as_itself(value: object) -> None:
    assert yaml.safe_load(_flow(value)) == value


def test_a_note_with_lines_of_its_own_stays_one_comment() -> None:
    assert _comment("dropout 'x\nmodel: {}\u202e'") == "# dropout 'x model: {}\\u202e'"


TEXT = "TEXT = 'run: {name: x}\\npaths: [\"rows.csv\", \"rows.csv:key\"]\\n'\nROWS = b'a,b'\nNUMBER = 3\n"


def offer(site: Any, name: str, starter: str) -> None:
    code = f"from stackwise import Starter, hookimpl\n{TEXT}\n@hookimpl\ndef stackwise_starters():\n    yield {starter}\n"
    site.install(name, code, module=f"fake_{name}")


def init(*arguments: str) -> Any:
    return CliRunner().invoke(cli.main, ["init", *arguments])


def test_a_third_partys_starter_is_listed_and_written_with_its_data(site: Any, tmp_path: Path) -> None:
    offer(site, "one", "Starter(name='waves', text='fake_one:TEXT', summary='sines', files={'rows.csv': 'fake_one:ROWS'})")
    assert re.search(r"^waves +sines$", init().stdout, re.MULTILINE)
    done = init("waves", "-o", str(tmp_path / "exp.yaml"))
    assert done.exit_code == 0, done.output
    rows = str(tmp_path / "rows.csv")
    assert yaml.safe_load((tmp_path / "exp.yaml").read_text())["paths"] == [rows, f"{rows}:key"]
    assert (tmp_path / "rows.csv").read_bytes() == b"a,b"


def test_a_name_that_two_offer_needs_the_provider(site: Any) -> None:
    for name in ("one", "two"):
        offer(site, name, f"Starter(name='waves', text='fake_{name}:TEXT')")
    assert init("waves").exit_code == 2
    assert init("one.waves").exit_code == 0
    assert re.findall(r"^(\w+\.waves)\b", init().stdout, re.MULTILINE) == ["one.waves", "two.waves"]


@pytest.mark.parametrize(
    ("starter", "code"),
    [
        ("Starter(name='waves', text='fake_one:NUMBER')", 3),
        ("Starter(name='waves', text='fake_one:GONE')", 3),
        ("Starter(name='waves', text='fake_one:TEXT', files={'other.csv': 'fake_one:ROWS'})", 3),
        ("Starter(name='waves', text='fake_one:TEXT', folder=True)", 2),
    ],
    ids=["no text", "missing", "unnamed data", "needs a folder"],
)
def test_whose_fault_it_is_that_a_starter_is_not_written(site: Any, starter: str, code: int) -> None:
    offer(site, "one", starter)
    assert init("waves").exit_code == code


@pytest.mark.parametrize("fault", ["text='no target'", "files={'../x': 'a:b'}", "files=3", "language='c'", "folder=1"])
def test_a_malformed_starter_puts_its_provider_aside(site: Any, fault: str) -> None:
    offer(site, "one", f"Starter(**{{**dict(name='waves', text='a:b'), **dict({fault})}})")
    provider = discover(allow={"one"}).provider("one")
    assert provider is not None and not provider.ok and fault.partition("=")[0] in provider.status
