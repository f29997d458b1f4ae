"""From `new-provider` to a finished run in an environment that holds wheels only, for every kind, in one shell script."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from clean_venvs import ALL, ROOT, Environment, build_wheel, run

from stackwise.contracts.components import Kind
from stackwise.host.provider import KINDS

pytestmark = [pytest.mark.slow, pytest.mark.rare]
"""A minute: test_wheels.py builds and installs, and test_new_provider.py makes, checks and trains every kind in its own process."""

SCRIPT = Path(__file__).parent / "first_afternoon.sh"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The project's wheels, and what an author has beside them."""
    wheels = [build_wheel(ROOT / name, tmp_path_factory) for name in ALL]
    return Environment(tmp_path_factory.mktemp("environment"), wheels, tools=["pip", "setuptools", "wheel", "pytest"])


FIRST: tuple[Kind, ...] = ("growth", "observer", "rack")
"""One that needs no torch, one that needs no model, a part of the model."""


@pytest.mark.parametrize("kinds", [FIRST, tuple(k for k in KINDS if k not in FIRST)], ids=["few", "rest"])
def test_a_kind_goes_from_new_provider_to_a_finished_run(environment: Environment, kinds: tuple[Kind, ...]) -> None:
    done = run("bash", "-c", f'PATH="{environment.folder}/bin:$PATH" bash {SCRIPT} {" ".join(kinds)}', cwd=environment.work)
    assert " failed" not in done.stdout and " blocked" not in done.stdout
    rows = {row["provider"]: row for row in json.loads(environment.stackwise("list-providers", "--json").stdout)}
    for kind in kinds:
        row = rows[f"first-{kind}"]
        assert (row["status"], row["editable"], [each["kind"] for each in row["components"]]) == ("ok", False, [kind])
        assert environment.folder in Path(row["location"]).parents
        folder = environment.work / f"stackwise-providers-first-{kind}" / "done"
        assert (folder / "final" / "weights.safetensors").is_file()
        assert json.loads((folder / "status.json").read_text(encoding="utf-8"))["status"] == "finished"
        if kind == "format":  # a run writes its own files; others are written by an export
            environment.stackwise("export", str(folder), str(folder.parent / "exported"), "--format", "first-format.json")
            assert (folder.parent / "exported" / "model.json").is_file()
            continue
        assert f"first-{kind}" in json.loads((folder / "final" / "weights.json").read_text(encoding="utf-8"))["providers"]
