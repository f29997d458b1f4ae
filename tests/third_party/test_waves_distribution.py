"""A provider that is none of ours, from its source folder to a trained model: built, installed beside the core alone, and used."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copy

import pytest
from clean_venvs import CORE, ROOT, Environment, build_wheel
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

PROCESSES = pytest.mark.rare
"""One to five that compute; test_waves_conform.py and test_contract.py ask the same of it in this process."""
SOURCE = Path(__file__).parent / "waves-for-stackwise"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The core and the third party's wheel, and nothing of the project's own providers."""
    wheels = [build_wheel(source, tmp_path_factory) for source in (ROOT / CORE, SOURCE)]
    made = Environment(tmp_path_factory.mktemp("environment"), wheels)
    copy(SOURCE / "grow-waves.yaml", made.work)
    return made


def test_it_is_listed_with_its_components_of_every_kind(environment: Environment) -> None:
    rows = {row["provider"]: row for row in json.loads(environment.stackwise("list-providers", "--json").stdout)}
    assert set(rows) == {"core", "waves"}
    waves = rows["waves"]
    assert (waves["distribution"], waves["version"], waves["status"]) == ("waves-for-stackwise", "1.2.0", "ok")
    kinds = ["adapter", "embedding", "embedding", "growth", "head", "head", "loader", "observer", "optimizer", "rack", "rack", "rack"]
    kinds += ["reaction", "reaction", "schedule", "task", "task", "transform", "weight-adapter"]
    assert sorted(component["kind"] for component in waves["components"]) == kinds


@PROCESSES
def test_every_component_can_be_shown(environment: Environment) -> None:
    for name in ("rack:waves.conv", "embedding:waves.level", "head:waves.level", "loader:waves.sines", "growth:waves.repeat"):
        assert "from waves-for-stackwise 1.2.0" in environment.stackwise("show", name).stdout


@PROCESSES
def test_its_config_is_valid_and_planned_without_training(environment: Environment) -> None:
    assert "shallow 0–30, deep 30–48, tuned 48–60" in environment.stackwise("validate", "grow-waves.yaml").stdout
    planned = json.loads(environment.stackwise("plan", "--json", "grow-waves.yaml").stdout)
    assert [phase["stacks"] for phase in planned["phases"]] == [{"base": 2}, {"base": 4}, {"base": 4}]
    crossing = planned["phases"][1]["transition"]
    assert crossing["blocks"] == {"base.0": "base.0", "base.1": "base.0", "base.2": "base.1", "base.3": "base.1"}
    assert not crossing["preserves_function"]
    assert {provider["distribution"] for provider in planned["providers"]} == {"waves-for-stackwise"}


def test_it_trains_and_its_observer_sees_every_step(environment: Environment) -> None:
    done = environment.stackwise("run", "grow-waves.yaml", "--output", "first")
    assert "learning rates × 0.5 (were × 1): the loss was above 0.6" in done.stdout + done.stderr
    losses = (environment.work / "losses.csv").read_text(encoding="utf-8").splitlines()
    assert losses[0] == "step,loss"
    assert [line.split(",")[0] for line in losses[1:]] == [str(step) for step in range(60)]
    metrics = [json.loads(line) for line in (environment.work / "first" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    scores = [line["loss"] for line in metrics if "evaluation" in line]
    assert scores[-1] < 0.5 * scores[0]  # untrained, the error is about the variance of a sine, 1/2
    assert (environment.work / "first" / "final" / "weights.safetensors").is_file()
    weights = load_file(environment.work / "first" / "final" / "weights.safetensors")
    learnt = [tensor for name, tensor in weights.items() if name.startswith("weight_adapters.style.") and name.endswith(".up")]
    assert len(learnt) == 4 and all(bool(tensor.any()) for tensor in learnt)  # zero at first, beside the linear map of every block
    about = json.loads((environment.work / "first" / "final" / "weights.json").read_text(encoding="utf-8"))
    planned = json.loads((environment.work / "first" / "plan.json").read_text(encoding="utf-8"))
    assert about["providers"] == {"waves": "waves-for-stackwise 1.2.0"}
    assert about["provider_files"] == {row["provider"]: row["sha256"] for row in planned["providers"]}


@PROCESSES
def test_its_options_are_held_to_its_own_rules(environment: Environment) -> None:
    refused = environment.stackwise("validate", "grow-waves.yaml", "--set", "data.sources.sines.longest=3", code=2)
    assert "data.sources.sines" in refused.stderr and "below the shortest" in refused.stderr


@PROCESSES
def test_it_passes_the_kit_in_its_own_environment(environment: Environment) -> None:
    outcomes = json.loads(environment.stackwise("check", "waves", "--json").stdout)
    assert {row["verdict"] for row in outcomes} == {"passed", "not applicable"}
    assert len({row["component"] for row in outcomes}) == 19
