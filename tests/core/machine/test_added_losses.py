"""Losses that parts of the model add: exact gradients, weights over time, and everything that is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from tiny_walks import base, drive, machine_of, memory, plan_of, problems_of, weights
from torch import Tensor, nn

import stackwise
from stackwise import Built, RackSpec, UserError
from stackwise.assembly.pricing import price
from stackwise.contracts.events import Evaluated, StepDone
from stackwise.planes.model.reported import Reporter
from stackwise.reports.plan_text import plan_as_json, plan_as_text

SPEC = RackSpec(losses=("size",), metrics=("positive",))


class Calm(nn.Module):
    """One linear map; its loss counts the features above zero alone, so that its denominator differs from batch to batch."""

    returns: Any = None

    def __init__(self, width: int = 8, spec: RackSpec = SPEC) -> None:
        super().__init__()
        self.map, self._spec = nn.Linear(width, width), spec

    def to_spec(self) -> RackSpec:
        return self._spec

    def forward(self, hidden: Tensor) -> Any:
        out = self.map(hidden)
        above = (out.detach() > 0).float()
        reported = {"size": ((out.square() * above).sum(), above.sum()), "positive": (above.sum(), float(above.numel()))}
        return (out, reported) if self.returns is None else self.returns(out, reported)


def config(auxiliary: Mapping[str, Any] | None, rack: Any = None, **sections: Any) -> dict[str, Any]:
    made = base(
        run={"name": "added", "seed": 3, "horizon": "4 steps", "device": "cpu"},
        task={"use": "transformer.causal-lm", **({} if auxiliary is None else {"auxiliary": auxiliary})},
        optimizer=Built(torch.optim.SGD, lr=0.5),
        data={"sources": {"a": memory(heldout=0.25)}, "batch_size": 6, "seq_len": 4},
        **sections,
    )
    made["model"] = {**made["model"], "rack": Calm() if rack is None else rack}
    made["model"]["embedding"] = {**made["model"]["embedding"], "width": 8}
    return made


def lines(machine: stackwise.TrainingMachine) -> list[StepDone]:
    return [event for event in drive(machine) if isinstance(event, StepDone)]


def built(seed: int = 0) -> Calm:
    torch.manual_seed(seed)
    return Calm()


def test_the_step_is_that_of_the_written_out_objective() -> None:
    machine = machine_of(config({"rack.size": 0.25}, built()))
    events = machine.train()
    before: dict[str, Tensor] = {}
    for event in events:
        if type(event).__name__ == "PhaseEntered":
            model, held = machine.model.model, machine.data.state_dict()
            before = weights(machine)
            (batch,) = machine.data.batches(machine.schedule.at(step=0))
            machine.data.load_state_dict(held)
        if isinstance(event, StepDone):
            break
    after = weights(machine)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(before[name])
    tokens = batch["tokens"]
    hidden = model.embedding(tokens=tokens[:, :-1])
    out = model.rack.map(hidden)
    above = out.detach() > 0
    logits = model.head(out)["logits"]
    objective = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()) + 0.25 * out[above].square().mean()
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(objective, list(parameters.values()))
    for (name, start), gradient in zip(before.items(), gradients, strict=True):
        assert torch.allclose(after[name], start - 0.5 * gradient, atol=1e-6), name
    assert isinstance(event, StepDone)
    assert event.metrics["rack.size"] == pytest.approx(out[above].square().mean().item(), rel=1e-5)
    assert event.metrics["rack.positive"] == pytest.approx(above.float().mean().item(), rel=1e-5)


@pytest.mark.parametrize("shape", [{"batch_size": 2, "accumulate": 3}, {"batch_size": 4, "step_tokens": 24}])
def test_micro_batches_train_as_the_whole_batch(shape: dict[str, int]) -> None:
    whole, split = (machine_of(config({"rack.size": 3.0}, built()), data=data) for data in ({}, shape))
    for one, other in zip(lines(whole), lines(split), strict=True):
        assert other.loss == pytest.approx(one.loss, abs=1e-5)
        assert other.metrics["rack.size"] == pytest.approx(one.metrics["rack.size"], rel=1e-4)
        assert other.grad_norm == pytest.approx(one.grad_norm, rel=1e-4)
    for name, value in weights(whole).items():
        assert torch.allclose(value, weights(split)[name], atol=1e-5), name


def test_a_weight_of_zero_trains_as_without_and_still_reports() -> None:
    plain = machine_of(config(None, Built(Plain)))
    silent = machine_of(config({"rack.size": 0}, Built(Calm)))
    one, other = lines(plain), lines(silent)
    assert [(e.loss, e.grad_norm) for e in one] == [(e.loss, e.grad_norm) for e in other]
    assert all(e.metrics["rack.size"] > 0 for e in other)


class Plain(Calm):
    """The same without its report."""

    def to_spec(self) -> RackSpec:
        return RackSpec()

    def forward(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.map(hidden)
        return out


def test_weights_follow_time_and_evaluations_report() -> None:
    ramp = {"linear": {"from": 0.0, "to": 4.0}}
    timed = config({"rack.size": ramp}, built(), evaluate={"held": {"batches": 2}})
    machine = machine_of(timed)
    seen: dict[int, float] = {}
    for event in machine.train():
        if isinstance(event, StepDone):
            seen[event.step] = machine.objective._weights["rack.size"]
        if isinstance(event, Evaluated):
            assert event.metrics["rack.size"] > 0 and 0 <= event.metrics["rack.positive"] <= 1
    assert seen == {0: 0.0, 1: 1.0, 2: 2.0, 3: 3.0}
    plan = plan_of(timed)
    prices = price(plan)
    assert plan_as_json(plan, prices)["phases"][0]["auxiliary"] == {"rack.size": {"entry": 0.0, "exit": 3.0}}
    assert "rack.size × 0 → 3" in plan_as_text(plan, prices)


def test_what_nothing_weighs_and_what_nobody_declares_is_refused() -> None:
    (unweighed,) = problems_of(config(None))
    assert unweighed.path == "task.auxiliary" and "rack.size" in unweighed.message
    (misspelt,) = problems_of(config({"rack.size": 1, "rack.sise": 1}))
    assert misspelt.path == "task.auxiliary.rack.sise" and "rack.size" in misspelt.message
    (nobody,) = problems_of(config({"head.size": 1, "rack.size": 1}))
    assert nobody.path == "task.auxiliary.head.size"
    (negative,) = problems_of(config({"rack.size": -1}))
    assert negative.path == "task.auxiliary.rack.size"
    falling = {"linear": {"from": 1.0, "to": -1.0}}
    (negative,) = problems_of(config({"rack.size": falling}))
    assert negative.path == "task.auxiliary.rack.size"


def test_a_setting_reaches_a_weight_by_its_dotted_name() -> None:
    nested = config({"rack": {"size": 1.5}})
    assert plan_of(nested).experiment.phases[0].task.auxiliary.keys() == {"rack.size"}
    assert problems_of(config({"rack": {"size": 1.5}, "rack.size": 2}))


def test_a_part_that_does_not_say_is_held_to_it_when_it_runs() -> None:
    class Unsaid(nn.Module):
        def forward(self, hidden: Tensor) -> Tensor:
            return hidden

    machine = machine_of(config({"rack.size": 1}, Built(Calm)))
    assert lines(machine)
    with pytest.raises(UserError, match="size"):
        drive(machine_of(config(None, Built(Calm))))
    (unknown,) = problems_of(config({"rack.size": 1}, Unsaid()))
    assert unknown.path == "task.auxiliary.rack.size"


@pytest.mark.parametrize(
    "returns",
    [
        lambda out, reported: out,
        lambda out, reported: (out, {"size": reported["size"]}),
        lambda out, reported: (out, {**reported, "more": reported["size"]}),
        lambda out, reported: (out, {**reported, "size": reported["size"][0]}),
        lambda out, reported: (out, {**reported, "size": (out, 1.0)}),
        lambda out, reported: (out, {**reported, "size": (reported["size"][0], -1.0)}),
        lambda out, reported: (out, {**reported, "size": (reported["size"][0], out)}),
    ],
)
def test_a_wrong_report_is_told_as_the_fault_of_who_made_it(returns: Any) -> None:
    rack = built()
    rack.returns = returns
    with pytest.raises(UserError, match="rack"):
        drive(machine_of(config({"rack.size": 1}, rack)))
    with pytest.raises(stackwise.ProviderError, match=r"third\.calm") as raised:
        Reporter("rack", SPEC, "third.calm").take(rack(torch.ones(2, 3, 8)), {})
    assert raised.value.provider == "third"


def test_a_metric_of_a_part_may_choose_the_best_checkpoint() -> None:
    run = {"name": "added", "seed": 3, "horizon": "4 steps", "device": "cpu"}
    held = {"evaluate": {"held": {"batches": 1}}}
    good = config({"rack.size": 1}, **held)
    good["run"] = {**run, "stop": {"metric": "held.rack.size"}}
    assert not problems_of(good)
    bad = config({"rack.size": 1}, **held)
    bad["run"] = {**run, "stop": {"metric": "held.rack.sizes"}}
    assert [problem.path for problem in problems_of(bad)] == ["run.stop.metric"]


class Given(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


class Named(nn.Module):
    def forward(self, hidden: Tensor) -> dict[str, Tensor]:
        return {"y": hidden}


class Square:
    def get_spec(self) -> stackwise.TaskSpec:
        field = {"x": stackwise.TensorSpec("batch width")}
        return stackwise.TaskSpec(batch=field, inputs=field, outputs={"y": stackwise.TensorSpec("batch width")})

    def prepare(self, batch: Mapping[str, Tensor], moment: Any, generator: Any) -> Mapping[str, Tensor]:
        return batch

    def loss(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> tuple[Tensor, int, dict[str, Any]]:
        assert outputs.keys() == {"y"}  # what is reported is not the task's to see
        return (outputs["y"] - batch["target"]).square().sum(), batch["target"].numel(), {}


def test_finished_objects_take_their_weights_from_the_settings() -> None:
    def machine(**settings: Any) -> stackwise.TrainingMachine:
        torch.manual_seed(0)
        model = stackwise.Model(Given(), Calm(), Named())
        task = Square()
        data = [{"x": torch.randn(3, 8), "target": torch.randn(3, 8)} for _ in range(2)]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        schedule = stackwise.PhaseSchedule.single(steps=2)
        return stackwise.TrainingMachine(
            model=model, data=data, task=task, optimizer=optimizer, schedule=schedule, settings=stackwise.Settings(**settings)
        )

    with pytest.raises(UserError, match="size"):
        drive(machine())
    assert all(event.metrics["rack.size"] > 0 for event in lines(machine(auxiliary={"rack.size": 1.0})))
