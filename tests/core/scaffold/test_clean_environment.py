"""From `new-provider` to a finished run in an environment that holds wheels only, as an author's first afternoon goes."""

from __future__ import annotations

import json

import pytest
from clean_venvs import ALL, ROOT, Environment, build_wheel
from click.testing import CliRunner

from stackwise import cli

pytestmark = pytest.mark.slow

KINDS = ("rack", "loader")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The project's wheels, and one of a new provider for each of some kinds."""
    here = tmp_path_factory.mktemp("wheels")
    wheels = [build_wheel(ROOT / name, here) for name in ALL]
    for kind in KINDS:
        folder = here / f"stackwise-providers-first-{kind}"
        done = CliRunner().invoke(cli.main, ["new-provider", f"first-{kind}", "--kind", kind, "--output", str(folder)])
        assert done.exit_code == 0, done.output
        wheels.append(build_wheel(folder, tmp_path_factory.mktemp(kind)))
    made = Environment(tmp_path_factory.mktemp("environment"), wheels)
    for kind in KINDS:
        source = here / f"stackwise-providers-first-{kind}" / "example.yaml"
        (made.work / f"{kind}.yaml").write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_listed_checked_and_trained_with(environment: Environment, kind: str) -> None:
    rows = {row["provider"]: row for row in json.loads(environment.stackwise("list-providers", "--json").stdout)}
    assert rows[f"first-{kind}"]["status"] == "ok" and not rows[f"first-{kind}"]["editable"]
    outcomes = json.loads(environment.stackwise("check", f"first-{kind}", "--json").stdout)
    assert {row["verdict"] for row in outcomes} <= {"passed", "not applicable"}
    environment.stackwise("run", f"{kind}.yaml", "--output", f"out-{kind}")
    assert (environment.work / f"out-{kind}" / "final" / "weights.safetensors").is_file()


def test_it_is_written_from_the_wheel_as_well(environment: Environment) -> None:
    environment.stackwise("new-provider", "second", "--kind", "head")
    folder = environment.work / "stackwise-providers-second"
    assert (folder / "src" / "stackwise_providers_second" / "head.py").is_file()
