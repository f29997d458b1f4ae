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


def run(folder: Path, source: str, expected: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_it.py").write_text(FILE.format(here=str(HERE), source=source, expected=expected), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rA", *arguments, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)


VICTIM = "{kind: [component]}"


def test_a_failure_tells_what_was_found_the_promise_and_the_usual_cause(tmp_path: Path) -> None:
    done = run(tmp_path, VICTIM, {}, "-k", "check_totals or cold")
    assert done.returncode == 1
    assert "FAILED test_it.py::test_conforms[task:listed.v/check_totals]" in done.stdout
    assert "return a sum, not a mean" in done.stdout and "Usual cause: a mean instead of a sum" in done.stdout
    assert "PASSED test_it.py::test_collected_cold" in done.stdout


@pytest.mark.parametrize("name", ["check_totals", "task:listed.v/check_totals"])
def test_an_expected_failure_is_one_with_its_reason(tmp_path: Path, name: str) -> None:
    done = run(tmp_path, VICTIM, {name: "sums are not understood yet"}, "-k", "check_totals")
    assert done.returncode == 0 and "XFAIL" in done.stdout and "sums are not understood yet" in done.stdout


def test_an_expected_failure_of_a_prerequisite_blocks_nothing(tmp_path: Path) -> None:
    source = "dict([VICTIMS['check_measured_shapes'][:1] + ([VICTIMS['check_measured_shapes'][1]],)])"
    done = run(tmp_path, source, {"check_measured_shapes": "one dimension more"}, "-k", "check_measured_shapes or check_same_seed")
    assert done.returncode == 0 and "XFAIL" in done.stdout
    assert "PASSED test_it.py::test_conforms[head:listed.v/check_same_seed_same_weights]" in done.stdout


def test_an_expected_failure_that_passes_is_a_failure(tmp_path: Path) -> None:
    done = run(tmp_path, VICTIM, {"check_own_stream": "draws by itself"}, "-k", "check_own_stream")
    assert done.returncode == 1 and "take it off expected_failures" in done.stdout


def test_an_unknown_name_is_refused_with_a_near_one() -> None:
    with pytest.raises(UserError, match=r"'check_total' is no check of these components.*did you mean 'check_totals'"):
        conformance.parametrize("core", expected_failures={"check_total": "no reason"})


@pytest.mark.parametrize("name", ["check_totals", "rack:core.project/check_builds"])
def test_a_check_that_these_components_do_not_have_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="is no check of these components"):
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
