"""Schedules of providers: planned step by step, held to the rules of the option, and blamed for what they get wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner

from stackwise import ConfigError, DataError, ProviderError, cli
from stackwise.assembly.machine import assemble
from stackwise.config import experiment
from stackwise.config.schema import config_schema
from stackwise.contracts.events import StepDone
from stackwise.host.discovery import discover
from stackwise.plan import make_plan

CODE = """
from attrs import frozen
from stackwise import Component, UserError, hookimpl, option, ScheduleWindow

@frozen(kw_only=True)
class Options:
    answer: str = option("right", doc="how it answers")

CALLS = []

class Square:
    def __init__(self, answer):
        self.answer = answer

    def value(self, step: int, window: ScheduleWindow):
        CALLS.append(step)
        if self.answer == "raises":
            return 1 / 0
        if self.answer == "refuses":
            raise UserError(f"{window.steps} steps are not enough")
        wrong = {"none": None, "text": "0.1", "nan": float("nan"), "true": True, "impure": 0.1 * len(CALLS), "below": -0.5}
        return wrong.get(self.answer, (step / window.steps) ** 2 + (window.entry or 0.0))

def build(options, context):
    return None if options.answer == "builds none" else Square(options.answer)

@hookimpl
def stackwise_schedules():
    yield Component(name="square", options="fake_shapes:Options", factory="fake_shapes:build")
"""


@pytest.fixture
def shapes(site: Any) -> None:
    site.install("shapes", CODE)


def config(lr: Any, **phases: Any) -> dict[str, Any]:
    rack = {"use": "transformer.decoder", "width": 8, "heads": 2, "stacks": [{"base": 1}]}
    return {
        "run": {"name": "shaped", "horizon": "8 steps", "device": "cpu"},
        "task": {"use": "transformer.causal-lm"},
        "data": {
            "sources": {"a": {"use": "data.memory", "arrays": {"tokens": [0, 1, 2, 3] * 64}, "vocab": 4}},
            "batch_size": 2,
            "seq_len": 4,
        },
        "model": {"embedding": {"use": "transformer.token"}, "rack": rack, "head": {"use": "transformer.lm"}},
        "optimizer": {"use": "optim.sgd", "lr": lr},
        **({"phases": phases} if phases else {}),
    }


def rates(tree: dict[str, Any]) -> list[float]:
    machine = assemble(make_plan(experiment(tree), discover()))
    return [event.lr for event in machine.train() if isinstance(event, StepDone)]


@pytest.mark.usefixtures("shapes")
def test_every_step_has_the_value_that_the_component_gives() -> None:
    assert rates(config({"use": "shapes.square"})) == pytest.approx([(step / 8) ** 2 for step in range(8)])


@pytest.mark.usefixtures("shapes")
def test_a_phase_spans_its_own_steps_and_begins_at_the_value_before() -> None:
    second = {"optimizer": {"lr": {"use": "shapes.square", "over": "phase"}}}
    tree = config(0.25, first={"until": "50%"}, second={"until": "75%", **second}, third={})
    assert rates(tree) == pytest.approx([0.25] * 4 + [0.25, 0.5] + [1.25, 1.25])


@pytest.mark.usefixtures("shapes")
def test_a_schedule_of_the_core_is_replaced_whole_and_back() -> None:
    linear, own = {"linear": {"from": 1, "to": 0}}, {"use": "shapes.square"}
    for first, second in ((linear, own), (own, linear)):
        tree = config(first, first={"until": "50%"}, second={"optimizer": {"lr": second}})
        assert len(rates(tree)) == 8


@pytest.mark.usefixtures("shapes")
@pytest.mark.parametrize("answer", ["none", "text", "nan", "true", "impure", "raises", "builds none"])
def test_a_wrong_answer_is_the_providers(answer: str) -> None:
    with pytest.raises(ProviderError) as caught:
        make_plan(experiment(config({"use": "shapes.square", "answer": answer})), discover())
    assert (caught.value.provider, caught.value.distribution) == ("shapes", "fake-shapes")
    assert "shapes.square" in str(caught.value) and ("its factory" if answer == "builds none" else "value(") in str(caught.value)


@pytest.mark.usefixtures("shapes")
@pytest.mark.parametrize(
    ("lr", "path"),
    [
        ({"use": "shapes.square", "answer": "refuses"}, "optimizer.lr"),
        ({"use": "shapes.square", "answer": "below"}, "optimizer.lr"),  # a learning rate is not below 0
        ({"use": "shapes.square", "anser": "x"}, "optimizer.lr.anser"),
        ({"use": "shapes.circle"}, "optimizer.lr.use"),
        ({"use": "shapes.square", "over": "month"}, "optimizer.lr.over"),
        ({"use": "optim.sgd"}, "optimizer.lr.use"),
    ],
)
def test_a_mistake_is_the_users_with_its_key(lr: dict[str, Any], path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_plan(experiment(config(lr)), discover())
    assert [problem.path for problem in caught.value.problems] == [path]


@pytest.mark.usefixtures("shapes")
def test_the_provider_is_among_those_of_the_plan() -> None:
    plan = make_plan(experiment(config({"use": "shapes.square"})), discover())
    assert "shapes" in {provider.name for provider in plan.providers}


@pytest.mark.usefixtures("shapes")
def test_the_schema_knows_the_component_and_its_options() -> None:
    schema = config_schema(discover())
    tree = config({"use": "shapes.square", "over": "phase"})
    validator = jsonschema.Draft202012Validator(schema)
    assert validator.is_valid(tree)
    for wrong in ({"use": "shapes.square", "anser": 1}, {"use": "shapes.square", "over": "month"}):
        assert not validator.is_valid(config(wrong))


def test_a_table_that_changed_since_the_checkpoint_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rates.csv").write_text("0,0.1\n100%,0.2\n")
    import yaml

    Path("c.yaml").write_text(yaml.safe_dump(config({"use": "optim.table", "path": "rates.csv"})))
    run = CliRunner().invoke(cli.main, ["run", "c.yaml", "--set", "run.checkpoint.every=4 steps"])
    assert run.exit_code == 0, run.output
    Path("rates.csv").write_text("0,0.1\n100%,0.3\n")
    again = CliRunner().invoke(cli.main, ["branch", "runs/shaped-001", "--at", "step 4"])
    assert again.exit_code == DataError.exit_code and "optimizer.lr" in again.output + (again.stderr or "")
    Path("rates.csv").write_text("0,0.1\n100%,0.2\n")
    assert CliRunner().invoke(cli.main, ["branch", "runs/shaped-001", "--at", "step 4"]).exit_code == 0
