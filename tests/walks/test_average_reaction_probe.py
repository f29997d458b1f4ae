"""The average of the weights, the reaction and the scales of the learning rate, the probe and the gate, each against its own recursion."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_walks import base, drive, losses, machine_of, memory, plan_of, same_tensors, stream, weights

from stackwise import ConfigError, Evaluated, PhaseEntered, StepDone
from stackwise.assembly.pricing import price
from stackwise.contracts.events import Reacted
from stackwise.reports.plan_text import plan_as_text

DEEPER = {"model": {"rack": {"stacks": [{"base": 4}]}}}
STACKED = {**DEEPER, "enter": {"growth": {"use": "transformer.stack"}}}
FALLING = {"linear": {"from": 0.9, "to": 0.5}}


def source_of(name: str) -> str:
    return name.replace("base.2.", "base.0.").replace("base.3.", "base.1.")


@pytest.mark.parametrize("operator", ["stack", "identity"])
def test_the_average_is_its_recursion_through_growth(operator: str) -> None:
    second = {**DEEPER, "enter": {"growth": {"use": f"transformer.{operator}"}}}
    optimizer = {"use": "optim.adamw", "lr": 0.03, "ema": {"decay": FALLING}}
    machine = machine_of(base(optimizer=optimizer, phases={"one": {"until": "5 steps"}, "two": second}))
    average: dict[str, torch.Tensor] = {}
    for event in machine.train():
        if isinstance(event, PhaseEntered):
            now = weights(machine)
            copies = operator == "stack"
            average = {name: average.get(source_of(name) if copies else name, tensor).clone() for name, tensor in now.items()}
        if isinstance(event, StepDone):
            decay = 0.9 + (0.5 - 0.9) * event.step / 12
            average = {name: decay * average[name] + (1 - decay) * tensor for name, tensor in weights(machine).items()}
        if isinstance(event, PhaseEntered | StepDone):
            assert machine.optimizer.average is not None
            held = machine.optimizer.average.state_by_name()
            assert held.keys() == average.keys()
            for name, tensor in held.items():
                torch.testing.assert_close(tensor, average[name], rtol=0, atol=1e-6)


def test_a_matrix_that_took_in_an_adapter_begins_its_average_at_the_merged_values() -> None:
    lora = {"style": {"use": "transformer.lora", "rank": 2, "select": ["*.mlp.*"]}}
    phases = {
        "one": {"until": "4 steps"},
        "two": {"until": "8 steps", "model": {"weight_adapters": lora}},
        "three": {"model": {"weight_adapters": {"style": None}}},
    }
    optimizer = {"use": "optim.adamw", "lr": 0.03, "ema": {"decay": 0.9}}
    machine = machine_of(base(optimizer=optimizer, phases=phases))
    for event in machine.train():
        if isinstance(event, PhaseEntered) and event.phase == "three":
            assert machine.optimizer.average is not None and event.merged
            average, now = machine.optimizer.average.state_by_name(), weights(machine)
            begun = {name for name in now if torch.equal(average[name], now[name])}
            assert {name for name in now if ".mlp." in name} <= begun and "embedding.weight" not in begun


def test_an_evaluation_may_judge_the_average_and_leaves_the_weights_alone() -> None:
    data = {"sources": {"a": memory(0, heldout=0.2)}, "batch_size": 2, "seq_len": 4}
    optimizer = {"use": "optim.adamw", "lr": 0.03, "ema": {"decay": 0.8}}
    evaluate = {"own": {"every": "3 steps", "batches": 2}, "mean": {"every": "3 steps", "batches": 2, "weights": "ema"}}
    machine = machine_of(base(optimizer=optimizer, data=data, evaluate=evaluate))
    plain = machine_of(base(optimizer=optimizer, data=data))
    events = drive(machine)
    assert losses(events) == losses(drive(plain)) and same_tensors(weights(machine), weights(plain))
    told = {name: [e.metrics["loss"] for e in events if isinstance(e, Evaluated) and e.name == name] for name in evaluate}
    assert told["own"][0] == told["mean"][0] and all(a != b for a, b in zip(told["own"][1:], told["mean"][1:], strict=True))
    assert machine.optimizer.average is not None
    with torch.no_grad():
        for name, tensor in machine.optimizer.average.state_by_name().items():
            machine.model.model.get_parameter(name).copy_(tensor)
    evaluation = machine.evaluations["own"]
    final = evaluation.run(machine.model.model, machine.objective, machine.placement, machine.schedule.at(step=12))
    alone = machine_of(base(optimizer=optimizer, data=data, evaluate={"mean": evaluate["own"]}))
    drive(alone)
    with torch.no_grad():
        for name, parameter in alone.model.model.named_parameters():
            parameter.copy_(weights(machine)[name])
    same = alone.evaluations["mean"].run(alone.model.model, alone.objective, alone.placement, alone.schedule.at(step=12))
    assert same["loss"] == told["mean"][-1] and final["loss"] != told["own"][-1]


def test_a_plateau_lowers_every_rate_by_its_factor_inside_the_envelope_of_the_plan() -> None:
    reaction = {"use": "optim.plateau", "metric": "train.loss", "factor": 0.5, "patience": 0, "threshold": 0.99, "lowest": 0.125}
    optimizer = {
        "use": "optim.muon",
        "lr": 0.02,
        "adamw_lr": 0.004,
        "groups": {"slow": {"select": ["rack.stacks.base.0"], "lr": 0.01}},
        "reaction": reaction,
    }
    config = base(optimizer=optimizer)
    plan = plan_of(config)
    assert "reacts  optim.plateau in train: every learning rate × 0.125 to 1" in plan_as_text(plan, price(plan))
    machine = machine_of(config)
    rates: dict[int, set[tuple[str, str, float]]] = {}
    reacted: dict[int, Reacted] = {}
    for event in machine.train():
        if isinstance(event, StepDone):
            groups = machine.optimizer.optimizer.param_groups
            rates[event.step] = {(g["rule"], g["group"], g["adamw_lr" if g["rule"] == "adamw" else "lr"]) for g in groups}
        if isinstance(event, Reacted):
            reacted[event.step] = event
    told = [(step, e.factor_before, e.factor) for step, e in reacted.items()]
    assert told == [(1, 1.0, 0.5), (2, 0.5, 0.25), (3, 0.25, 0.125)]  # the first loss is the best; no later one is a hundredth of it
    assert all("has not improved" in e.why for e in reacted.values())
    for step, seen in rates.items():
        factor = {0: 1.0, 1: 1.0, 2: 0.5, 3: 0.25}.get(step, 0.125)
        for rule, group, rate in seen:
            declared = 0.004 if rule == "adamw" else 0.01 if group == "slow" else 0.02
            assert rate == pytest.approx(declared * factor, rel=1e-12)


@pytest.mark.parametrize(("size", "before", "after"), [("depth", 2, 4), ("parameters", None, None), ("width", 8, 16)])
def test_every_rate_follows_the_size_of_the_model_by_its_power(size: str, before: Any, after: Any) -> None:
    widened = {"model": {"rack": {"width": 16, "heads": 4}}, "enter": {"growth": {"use": "transformer.widen"}}}
    scaling = {size: {"exponent": -0.5, **({"base": 1000} if size == "parameters" else {})}}
    optimizer = {"use": "optim.adamw", "lr": 0.01, "lr_scaling": scaling}
    phases = {"one": {"until": "6 steps"}, "two": widened if size == "width" else STACKED}
    machine = machine_of(base(optimizer=optimizer, phases=phases))
    for event in machine.train():
        if isinstance(event, StepDone):
            counted = sum(p.numel() for p in machine.model.model.parameters())
            ratio = counted / 1000 if size == "parameters" else (after if event.step >= 6 else before) / before
            assert event.lr == pytest.approx(0.01 * ratio**-0.5, rel=1e-12)


def test_fresh_parameters_warm_up_again_and_the_others_do_not() -> None:
    second = {**DEEPER, "enter": {"growth": {"use": "transformer.identity"}, "rewarm": "4 steps"}}
    machine = machine_of(base(phases={"one": {"until": "4 steps"}, "two": second}))
    rates = []
    for event in machine.train():
        if isinstance(event, StepDone) and event.step >= 4:
            rate = {id(p): g["lr"] for g in machine.optimizer.optimizer.param_groups for p in g["params"]}
            named = {name: rate[id(p)] for name, p in machine.model.model.named_parameters()}
            fresh = {value for name, value in named.items() if ".base.2." in name or ".base.3." in name}
            assert {value for name, value in named.items() if ".base.2." not in name and ".base.3." not in name} == {0.01}
            rates += fresh
    assert rates == pytest.approx([0.01 * min(k / 4, 1.0) for k in range(8)], abs=1e-12)


def test_the_probe_is_the_loss_of_the_last_batch_before_and_after_and_changes_no_bit() -> None:
    config = base(phases={"one": {"until": "6 steps"}, "two": STACKED})
    machine, silent = machine_of(config), machine_of({**config, "run": {**config["run"], "probe": False}})
    last: list[torch.Tensor] = []
    take = machine.data.batches
    machine.data.batches = lambda moment: last.append(take(moment)[-1]["tokens"].clone()) or [{"tokens": last[-1]}]  # type: ignore[method-assign,func-returns-value]
    events, seen = [], []

    def judged() -> tuple[torch.Tensor, float]:
        with torch.no_grad():
            logits = machine.model.model({"tokens": last[5][:, :-1]})["logits"]
        return logits, float(F.cross_entropy(logits.flatten(0, 1), last[5][:, 1:].flatten()))

    for event in machine.train():
        events.append(event)
        if (isinstance(event, StepDone) and event.step == 5) or (isinstance(event, PhaseEntered) and event.phase_index):
            seen.append(judged())
    entered = next(e for e in events if isinstance(e, PhaseEntered) and e.phase_index)
    (before, loss_before), (after, loss_after) = seen
    assert (entered.probe_loss_before, entered.probe_loss_after) == (pytest.approx(loss_before), pytest.approx(loss_after))
    assert entered.probe_change == pytest.approx(float((after - before).abs().max())) and entered.probe_change > 1e-4
    quiet = drive(silent)
    assert losses(quiet) == losses(events) and same_tensors(weights(machine), weights(silent))
    assert all(e.probe_change is None for e in quiet if isinstance(e, PhaseEntered))


@pytest.mark.parametrize("place", ["low", "base", "top"])
def test_a_gate_begins_shut_anywhere_and_is_open_at_the_end_of_its_phase(place: str) -> None:
    stacks = {"low": [{"low": 2}, {"base": 2}], "base": [{"base": 4}], "top": [{"base": 2}, {"top": 2}]}[place]
    gate = {"linear": {"from": 0, "to": 1, "over": "phase"}}
    grown = {"until": "8 steps", "model": {"rack": {"stacks": stacks}}, "enter": {"growth": {"use": "transformer.gated", "gate": gate}}}
    data = {"sources": {"a": memory(0, heldout=0.2)}, "batch_size": 2, "seq_len": 4}
    config = base(data=data, evaluate={"held": {"batches": 2}}, phases={"one": {"until": "4 steps"}, "two": grown, "three": {}})
    machine, probe, shut = machine_of(config), {"tokens": stream(40).view(2, 20)}, []
    told: dict[tuple[int, str], float] = {}
    for event in machine.train():
        if (isinstance(event, StepDone) and event.step == 3) or (isinstance(event, PhaseEntered) and event.phase == "two"):
            with torch.no_grad():
                shut.append(machine.model.model(probe)["logits"])
        if isinstance(event, Evaluated):
            told[event.step, event.at] = event.metrics["loss"]
    assert torch.equal(*shut)
    assert told[4, "exit"] == told[4, "entry"] and told[8, "exit"] == told[8, "entry"]


def test_a_run_that_ends_with_its_gate_is_judged_as_the_weights_that_it_leaves() -> None:
    gate = {"linear": {"from": 0, "to": 1, "over": "phase"}}
    grown = {**DEEPER, "enter": {"growth": {"use": "transformer.gated", "gate": gate}}}
    data = {"sources": {"a": memory(0, heldout=0.2)}, "batch_size": 2, "seq_len": 4}
    machine = machine_of(base(data=data, evaluate={"held": {"batches": 2}}, phases={"one": {"until": "4 steps"}, "two": grown}))
    last = [e.metrics["loss"] for e in drive(machine) if isinstance(e, Evaluated)][-1]
    evaluation, gates = machine.evaluations["held"], machine.model._gates
    assert gates is not None
    gates.remove()
    moment = machine.schedule.at(step=12)
    assert evaluation.run(machine.model.model, machine.objective, machine.placement, moment)["loss"] == last


def test_a_reaction_that_watches_nothing_that_is_measured_is_refused_by_the_plan() -> None:
    config = base(optimizer={"use": "optim.adamw", "reaction": {"use": "optim.plateau", "metric": "heldot.loss"}})
    config["evaluate"] = {"heldout": {"batches": 1}}
    with pytest.raises(ConfigError, match=r"watches 'heldot\.loss', and there is no evaluation 'heldot'.*heldout"):
        plan_of(config)
