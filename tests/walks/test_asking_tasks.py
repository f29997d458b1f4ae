"""A task that asks the model while it prepares a batch: what it is given, what stays untouched, what it costs, and that it learns."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_walks import base, drive, losses, machine_of, plan_of
from torch import Tensor
from whole_runs import digested

import stackwise
from stackwise import Built, ProviderError, StepDone, TaskSpec, TensorSpec, UserError
from stackwise.assembly.preview import previews
from stackwise.assembly.pricing import price

EXAMPLE = Path(__file__).parents[2] / "examples" / "on_policy.py"
TOKENS = TensorSpec("batch time", "int64", bounds=(0, "vocab"))
SEEN: dict[str, Any] = {}


class Asks:
    """Predicts what the model itself finds likeliest."""

    def __init__(self, times: int = 1, returns: Any = None) -> None:
        self.times, self.returns = times, returns

    def get_spec(self) -> TaskSpec:
        outputs = {"logits": TensorSpec("batch time vocab")}
        return TaskSpec(batch={"tokens": TOKENS}, inputs={"tokens": TOKENS}, outputs=outputs, attention="causal", uses_model=True)

    def prepare(self, batch: Mapping[str, Tensor], moment: Any, generator: Any, *, model: Any) -> Any:
        for _ in range(self.times):
            logits = model({"tokens": batch["tokens"]})["logits"]
        SEEN["training"], SEEN["grad"] = getattr(model, "_model", None), (torch.is_grad_enabled(), logits.requires_grad)
        if self.returns is not None:
            return self.returns
        return {"tokens": batch["tokens"], "targets": logits.argmax(-1)}

    def loss(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> tuple[Tensor, float, dict[str, Any]]:
        logits = outputs["logits"].flatten(0, 1)
        return torch.nn.functional.cross_entropy(logits, batch["targets"].flatten(), reduction="sum"), float(len(logits)), {}


def config(**task: Any) -> dict[str, Any]:
    rack = {"use": "transformer.decoder", "width": 8, "heads": 2, "stacks": [{"base": 1}], "dropout": 0.5}
    model = {"embedding": {"use": "transformer.token", "vocab": 16}, "rack": rack, "head": {"use": "transformer.lm"}}
    return base(task=Built(Asks, spec=Asks().get_spec(), **task), model=model, evaluate={"e": {"batches": 1, "training_rows": True}})


def tokens(made: dict[str, Any]) -> dict[str, Any]:
    return {
        **made,
        "data": {"sources": {"a": {"use": "data.memory", "arrays": {"tokens": torch.arange(64) % 16}}}, "batch_size": 2, "seq_len": 4},
    }


def test_it_is_given_the_model_of_the_step_in_eval_mode_and_training_goes_on_in_its_own() -> None:
    made = tokens(config())
    del made["evaluate"]
    machine = machine_of(made)
    for event in machine.train():
        if isinstance(event, StepDone):
            assert SEEN["grad"] == (False, False)
            assert SEEN["training"] is machine.model.model
            assert machine.model.model.training
    one, again = machine_of(made), machine_of(made)
    whole, states = [], {}
    for event in one.train():
        if isinstance(event, StepDone):
            whole.append(event)
            states[one.step] = digested(one.state()), {**one.state()}
            if one.step == 5:
                break
    again.restore(states[5][1])
    rest = losses(drive(again))
    assert rest == losses(drive(machine_of(made)))[5:]


def test_its_questions_are_priced() -> None:
    def flops(times: int) -> int:
        made = tokens(config(times=times))
        del made["evaluate"]
        phase = price(plan_of(made))[0]
        assert phase.flops is not None and phase.optimizer_flops is not None
        return phase.flops - phase.optimizer_flops

    one, two, three = flops(1), flops(2), flops(3)
    assert three - two == two - one > 0
    forward_and_backward = one - (two - one)
    assert 2.0 < forward_and_backward / (two - one) <= 3.0  # a backward pass costs up to two forward ones


def test_a_preview_has_no_model() -> None:
    made = tokens(config())
    del made["evaluate"]
    with pytest.raises(UserError, match="preview"):
        list(previews(plan_of(made)))


@pytest.mark.parametrize("returned", [[1, 2], {"tokens": [1, 2]}])
def test_a_prepared_batch_that_is_none_is_told_as_the_fault_of_who_made_it(returned: Any) -> None:
    made = tokens(config(returns=returned))
    del made["evaluate"]
    with pytest.raises((UserError, ProviderError), match="prepare"):
        drive(machine_of(made))


@pytest.mark.slow
def test_rewards_of_drawn_answers_come_to_one() -> None:
    spec = importlib.util.spec_from_file_location("on_policy", EXAMPLE)
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    rewards = [
        event.metrics["reward"] for event in drive(stackwise.assemble(example.make_experiment())) if isinstance(event, stackwise.Evaluated)
    ]
    assert rewards[0] < 0.3 and rewards[-1] > 0.97
