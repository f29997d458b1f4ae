"""`stackwise new-provider`: what it writes installs, lists, checks and trains as it is, for every kind."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

import stackwise
from stackwise import cli, conformance
from stackwise.contracts.components import Kind
from stackwise.contracts.hookspecs import HOOKS
from stackwise.host.provider import KINDS
from stackwise.runs.run import run
from stackwise.saved.export import export
from stackwise.scaffold import Names, files_of, read_blueprint

RULES = "E,F,W,I,B,UP,SIM,RUF,C4,PIE,PTH,RET"


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.main, ["new-provider", *map(str, arguments)])


@pytest.fixture
def made(tmp_path: Path, site: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes a provider of a kind, and installs it as an editable installation would."""

    def make(kind: str) -> Path:
        name = f"first-{kind}"
        folder = tmp_path / name
        done = call(name, "--kind", kind, "--output", folder)
        assert done.exit_code == 0, done.output
        project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        ((provider, value),) = project["entry-points"]["stackwise.providers"].items()
        assert provider == name
        monkeypatch.syspath_prepend(str(folder / "src"))
        site.install(provider, None, value=value, distribution=project["name"], requires=project["dependencies"][:2])
        return folder

    return make


def test_there_is_a_blueprint_for_every_kind_with_its_own_hook() -> None:
    assert {read_blueprint(kind).hook: kind for kind in KINDS} == dict(HOOKS)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_listed_and_keeps_every_promise(made: Any, kind: Kind) -> None:
    made(kind)
    rows = {row["provider"]: row for row in json.loads(CliRunner().invoke(cli.main, ["list-providers", "--json"]).stdout)}
    assert rows[f"first-{kind}"]["status"] == "ok"
    assert [row["kind"] for row in rows[f"first-{kind}"]["components"]] == [kind]
    outcomes = [outcome for subject in conformance.subjects_of(f"first-{kind}") for outcome in conformance.Runner().run_all(subject)]
    assert not [(o.check.name, o.reason) for o in outcomes if o.verdict in ("failed", "blocked")]
    assert sum(outcome.verdict == "passed" for outcome in outcomes) > 8


@pytest.mark.parametrize("kind", KINDS)
def test_its_example_trains(made: Any, kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made(kind)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STACKWISE_CACHE", str(tmp_path / "cache"))
    corpus = tmp_path / "text"
    corpus.mkdir()
    for i in range(20):
        (corpus / f"{i}.txt").write_text(f"{i} green bottles hanging on the wall, {i * i}. " * 20, encoding="utf-8")
    config = yaml.safe_load((folder / "example.yaml").read_text(encoding="utf-8"))
    assert kind == "format" or f"first-{kind}.{read_blueprint(kind).component}" in json.dumps(config)
    if kind != "loader":  # the standard library is read in the slow test
        config["data"]["sources"] = {"first": {"use": "data.text-files", "paths": [str(corpus / "*.txt")], "heldout": 0.2}}
    config["run"]["horizon"] = "6 steps"
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    result = run(path, output=tmp_path / "out")
    assert (result.directory / "final" / "weights.safetensors").is_file()
    if kind == "format":  # a run begins from what another left
        export(result.directory, tmp_path / "folder", form=read_blueprint(kind).component)
        config["model"]["start"] = {"from": str(tmp_path / "folder"), "format": {"use": f"first-{kind}.{read_blueprint(kind).component}"}}
        path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        assert run(path, output=tmp_path / "again").directory.is_dir()


def test_what_is_written_is_formatted_linted_and_documented(tmp_path: Path) -> None:
    for kind in KINDS:
        call(f"first-{kind}", "--kind", kind, "--output", tmp_path / kind)
        for command in (["check", f"--select={RULES}", "--ignore=RUF001,RUF002,RUF003"], ["format", "--check"]):
            ruff = [sys.executable, "-m", "ruff", *command, "--isolated", "--line-length=140", "."]
            done = subprocess.run(ruff, cwd=tmp_path / kind, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout


def test_no_placeholder_is_left_and_every_kind_has_its_own_files() -> None:
    for kind in KINDS:
        for name, text in files_of(Names.of("waves"), kind).items():
            assert "$" not in name and (name.endswith("checks.yml") or "$" not in text), (kind, name)


def test_the_new_provider_is_bound_to_this_core() -> None:
    project = tomllib.loads(files_of(Names.of("waves"), "rack")["pyproject.toml"])["project"]
    assert f"stackwise-core~={stackwise.__version__}" in project["dependencies"]


@pytest.mark.parametrize("name", ["Waves", "a b", "../x", "", "core", "stackwise-providers-", "1st"])
def test_a_name_that_is_none_is_refused(name: str, tmp_path: Path) -> None:
    done = call(name, "--kind", "rack", "--output", tmp_path / "x")
    assert done.exit_code == 2 and "error: " in done.output and not (tmp_path / "x").exists()


def test_the_name_of_the_distribution_does_as_well() -> None:
    assert Names.of("stackwise-providers-waves") == Names.of("waves")


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept", encoding="utf-8")
    done = call("waves", "--kind", "rack", "--output", tmp_path)
    assert done.exit_code == 2 and "exists already" in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
