"""The two doors of the kit: what they accept, what they refuse, and what they cost before a check runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from stackwise import UserError, cli, conformance

HERE = Path(__file__).parent
FILE = """
import sys
sys.path.insert(0, {here!r})
from stackwise import conformance
from table import SOUND, VICTIMS

kind, component = VICTIMS["check_totals"]
test_conforms = conformance.parametrize({source}, expected_failures={expected})

def test_collected_cold():
    assert "torch" not in COLLECTED

COLLECTED = set(sys.modules)
"""


VICTIM = "{kind: [component]}"
MISSHAPEN = "dict([VICTIMS['check_measured_shapes'][:1] + ([VICTIMS['check_measured_shapes'][1]],)])"
FILES: dict[str, tuple[str, dict[str, str], str]] = {
    "fails": (VICTIM, {}, "check_totals or cold"),
    "named": (VICTIM, {"check_totals": "sums are not understood yet"}, "check_totals"),
    "addressed": (VICTIM, {"task:listed.v/check_totals": "sums are not understood yet"}, "check_totals"),
    "first": (MISSHAPEN, {"check_measured_shapes": "one dimension more"}, "check_measured_shapes or check_same_seed"),
    "passes": (VICTIM, {"check_own_stream": "draws by itself"}, "check_own_stream"),
}
"""File of an author's tests → what it checks, what it expects to fail, and which of its tests run."""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What pytest says of all of them, in a process of its own."""
    folder = tmp_path_factory.mktemp("doors")
    for name, (source, expected, _) in FILES.items():
        (folder / f"test_{name}.py").write_text(FILE.format(here=str(HERE), source=source, expected=expected), encoding="utf-8")
    chosen = " or ".join(f"(test_{name}.py and ({tests}))" for name, (_, _, tests) in FILES.items())
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib", "-rA", "-k", chosen, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


def summary(told: str, name: str) -> list[str]:
    """The lines of pytest's summary about one file."""
    return [line for line in told.splitlines() if f" test_{name}.py::" in line and line.split(" ")[0].isupper()]


def test_a_failure_tells_what_was_found_the_promise_and_the_usual_cause(told: str) -> None:
    assert any(line.startswith("FAILED test_fails.py::test_conforms[task:listed.v/check_totals]") for line in summary(told, "fails"))
    assert "return a sum, not a mean" in told and "Usual cause: a mean instead of a sum" in told
    assert "PASSED test_fails.py::test_collected_cold" in summary(told, "fails")


@pytest.mark.parametrize("name", ["named", "addressed"])
def test_an_expected_failure_is_one_with_its_reason(told: str, name: str) -> None:
    (line,) = summary(told, name)
    assert line.startswith("XFAIL ") and "sums are not understood yet" in line


def test_an_expected_failure_of_a_prerequisite_blocks_nothing(told: str) -> None:
    lines = summary(told, "first")
    assert len(lines) == 2 and any(line.startswith("XFAIL ") for line in lines)
    assert "PASSED test_first.py::test_conforms[head:listed.v/check_same_seed_same_weights]" in lines


def test_an_expected_failure_that_passes_is_a_failure(told: str) -> None:
    (line,) = summary(told, "passes")
    assert line.startswith("FAILED ") and "take it off expected_failures" in told


def test_an_unknown_name_is_refused_with_a_near_one() -> None:
    with pytest.raises(UserError, match=r"'check_total' is not a check of these components.*did you mean 'check_totals'"):
        conformance.parametrize("core", expected_failures={"check_total": "no reason"})


@pytest.mark.parametrize("name", ["check_totals", "rack:core.project/check_builds"])
def test_a_check_that_these_components_do_not_have_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="is not a check of these components"):
        conformance.parametrize("core", expected_failures={name: "some reason"})


@pytest.mark.parametrize("reason", ["", "   "])
def test_a_reason_is_required(reason: str) -> None:
    with pytest.raises(UserError, match="has no reason"):
        conformance.parametrize("core", expected_failures={"check_builds": reason})


def test_a_provider_that_is_not_installed_is_named() -> None:
    with pytest.raises(UserError, match=r"no provider 'cor' is installed.*did you mean 'core'.*group 'stackwise.providers'"):
        conformance.parametrize("cor")


def test_one_component_can_be_asked_for() -> None:
    assert {subject.id for subject in conformance.subjects_of("core.project")} == {"adapter:core.project"}
    with pytest.raises(UserError, match=r"has no component 'core.projet'.*did you mean 'core.project'"):
        conformance.subjects_of("core.projet")


def check(*arguments: str) -> Any:
    return CliRunner().invoke(cli.main, ["check", *arguments])


def test_the_command_exits_0_when_every_promise_is_kept() -> None:
    done = check("core.project", "--json")
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    assert {row["component"] for row in rows} == {"adapter:core.project"}
    assert {row["verdict"] for row in rows} <= {"passed", "not applicable"}


def test_the_command_exits_3_and_explains_when_one_is_broken(site: Any) -> None:
    head = (
        "from attrs import frozen\nfrom stackwise import option\n@frozen(kw_only=True)\nclass O:\n    gain: float = option(1.0, doc='')\n"
    )
    head += "def build(options, context):\n    return lambda event: None\n"
    name = "[Component(name='watch', options='fake_poor:O', factory='fake_poor:build')]"
    code = f"from stackwise import Component, hookimpl\n{head}\n@hookimpl\ndef stackwise_observers():\n    return {name}\n"
    site.install("poor", code)
    done = check("poor")
    assert done.exit_code == 3
    assert "FAIL" in done.output and "O.gain has no doc" in done.output and "Usual cause: a plain `attrs.field`" in done.output
    rows = {row["check"]: row for row in json.loads(check("poor", "--json").stdout)}
    assert rows["check_options_documented"]["explanation"].startswith("Options are a frozen attrs class")


def test_an_entry_point_that_imports_torch_is_told(site: Any) -> None:
    head = "import torch\nfrom attrs import frozen\nfrom stackwise import Component, hookimpl\n"
    (site.folder / "fake_hot_options.py").write_text("from attrs import frozen\n@frozen(kw_only=True)\nclass O: ...\n", encoding="utf-8")
    record = "[Component(name='watch', options='fake_hot_options:O', factory='fake_hot:build')]"
    site.install("hot", f"{head}def build(o, c):\n    return print\n@hookimpl\ndef stackwise_observers():\n    return {record}\n")
    (subject,) = conformance.subjects_of("hot")
    found = conformance.Runner().run(subject, conformance.CATALOGUE["check_loads_cold"])
    assert found.verdict == "failed" and found.reason.startswith("importing fake_hot imports torch")


def test_the_command_exits_2_for_what_is_not_installed_and_3_for_what_is_broken(site: Any) -> None:
    site.install("bad", "raise RuntimeError('no luck')")
    assert check("nowhere").exit_code == 2
    done = check("bad")
    assert done.exit_code == 3 and "no luck" in done.output


def test_a_check_runs_in_a_folder_of_its_own_and_leaves_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HERE))
    from table import SOUND

    monkeypatch.chdir(tmp_path)
    (subject,) = conformance.subjects_of({"observer": SOUND["observer"]})
    assert all(outcome.verdict != "failed" for outcome in conformance.Runner().run_all(subject))
    assert Path.cwd() == tmp_path and not list(tmp_path.iterdir())


def test_an_expected_failure_on_the_command_line_passes_with_its_reason(site: Any) -> None:
    component = "[Component(name='watch', options='fake_poor:O', factory='fake_poor:build')]"
    head = "from attrs import frozen\nfrom stackwise import Component, hookimpl, option\n@frozen(kw_only=True)\nclass O:\n"
    head += "    gain: float = option(1.0, doc='')\ndef build(options, context):\n    return lambda event: None\n"
    site.install("poor", f"{head}@hookimpl\ndef stackwise_observers():\n    return {component}\n")
    named = "poor.watch.check_options_documented=its one option needs no word"
    done = check("poor", "--json", "--expect-failure", named)
    assert done.exit_code == 0, done.output
    rows = {row["check"]: row for row in json.loads(done.stdout)}
    assert rows["check_options_documented"]["verdict"] == "expected"
    assert "needs no word" in rows["check_options_documented"]["reason"]
    assert check("poor", "--expect-failure", "check_options_documented=so", "--expect-failure", "check_builds=never ran").exit_code == 3
    assert check("poor", "--expect-failure", "check_option=so").exit_code == 2
    assert check("poor", "--expect-failure", "check_builds").exit_code == 2
