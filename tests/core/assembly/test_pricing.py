"""Pricing on the meta device: counts of the real model, bytes of the real optimizer, FLOPs of the closed form."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from how_many import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_walks import base, drive, machine_of, moments, plan_of, problems_of

import stackwise
from stackwise import ConfigError, StepDone, UserError
from stackwise.assembly.pricing import price
from stackwise.reports.plan_text import plan_as_json, plan_as_text

WIDTH, FF, VOCAB, TIME, ROWS = 8, 12, 16, 4, 2


def decoder(depth: int = 2, **options: Any) -> dict[str, Any]:
    model: dict[str, Any] = base()["model"]
    rack = {"use": "transformer.decoder", "width": WIDTH, "heads": 2, "ff": FF, "mlp": "gelu", "stacks": [{"base": depth}], **options}
    return base(model={**model, "rack": rack})


def matrices(depth: int) -> int:
    """Weights that every position is multiplied with: qkv, output, up and down of each block, and the logits."""
    return depth * (3 * WIDTH * WIDTH + WIDTH * WIDTH + 2 * WIDTH * FF) + WIDTH * VOCAB


@settings(max_examples=examples(6))
@given(st.integers(1, 4), st.booleans())
def test_parameters_are_those_of_the_closed_form_and_of_the_real_model(depth: int, tied: bool) -> None:
    config = decoder(depth)
    config["model"]["head"] = {"use": "transformer.lm", "tied": tied}
    (cost,) = price(plan_of(config))
    norms = (2 * depth + 1) * WIDTH
    assert cost.parameters == cost.trainable == matrices(depth) + norms + (0 if tied else VOCAB * WIDTH)
    machine = machine_of(config)
    drive(machine)
    assert cost.parameters == sum(p.numel() for p in machine.model.model.parameters())
    state = moments(machine)
    assert cost.optimizer_bytes == sum(t.numel() * t.element_size() for entries in state.values() for t in entries.values())


@pytest.mark.parametrize("precision", [{}, {"rack": "bfloat16"}])
def test_bytes_of_the_optimizer_are_moments_masters_and_the_average_in_float32(precision: dict[str, str]) -> None:
    config = decoder()
    config["model"]["precision"] = precision
    config["optimizer"] = {"use": "optim.adamw", "lr": 0.01, "ema": {"decay": 0.9}}
    (cost,) = price(plan_of(config))
    machine = machine_of(config)
    drive(machine)
    state = machine.optimizer.state_dict()
    kept = [
        *state["masters"].values(),
        *state["average"].values(),
        *(t for entries in state["parameters"].values() for t in entries.values()),
    ]
    assert {t.dtype for t in kept} == {torch.float32} and bool(state["masters"]) == bool(precision)
    assert cost.optimizer_bytes == sum(4 * t.numel() for t in kept)


@pytest.mark.parametrize(("depth", "accumulate"), [(1, 1), (3, 1), (2, 3)])
def test_flops_are_six_a_weight_and_token_plus_those_of_attention(depth: int, accumulate: int) -> None:
    """2 FLOPs a multiply-add, forward once and backward twice (arXiv 2001.08361, section 2.1); q·k and p·v are T² more each."""
    config = decoder(depth)
    config["data"]["accumulate"] = accumulate
    plan = plan_of(config)
    (cost,) = price(plan)
    tokens = plan.schedule.clock.tokens(plan.schedule.steps)
    dense = 6 * matrices(depth) * tokens
    attention = 2 * 2 * TIME * WIDTH * depth * tokens  # forward, the masked half counted too
    assert cost.flops is not None and cost.optimizer_flops == 14 * cost.parameters * 12 and cost.recompute_flops == 0
    flops = cost.flops - cost.optimizer_flops
    assert dense + 3 * attention <= flops <= dense + 3.5 * attention  # 3.5: kernels that compute q·k again in the backward pass
    assert cost.tokens == tokens == 12 * ROWS * TIME * accumulate


def test_a_frozen_rack_is_passed_through_but_costs_no_weight_gradients() -> None:
    config = decoder(2)
    (free,) = price(plan_of(config))
    config["model"]["freeze"] = ["rack.stacks"]
    (frozen,) = price(plan_of(config))
    saved = 2 * (matrices(2) - WIDTH * VOCAB) * free.tokens
    assert free.flops is not None and frozen.flops is not None
    assert free.flops - frozen.flops == saved + 14 * (free.trainable - frozen.trainable) * 12
    assert frozen.trainable == WIDTH * VOCAB + WIDTH and frozen.parameters == free.parameters


def test_each_phase_costs_what_it_costs_alone_whatever_came_before() -> None:
    deltas: dict[str, dict[str, Any]] = {
        "first": {},
        "frozen": {"model": {"freeze": ["rack.stacks"]}},
        "longer": {"data": {"seq_len": 2 * TIME}},
        "thawed": {"model": {"freeze": []}},
        "short": {"data": {"seq_len": TIME}},
        "normed": {"model": {"rack": {"qk_norm": True}}},
        "beside": {"model": {"weight_adapters": {"style": {"use": "transformer.lora", "rank": 2, "select": ["rack"]}}}},
    }
    phases = {name: {"until": f"{2 * i + 2} steps", **delta} for i, (name, delta) in enumerate(deltas.items())}
    together = price(plan_of(decoder(2), phases=phases, run={"horizon": f"{2 * len(deltas)} steps"}))
    config = decoder(2)
    for phase, delta in zip(together, deltas.values(), strict=True):
        config["data"].update(delta.get("data", {}))
        model = delta.get("model", {})
        config["model"].update({key: value for key, value in model.items() if key != "rack"})
        config["model"]["rack"].update(model.get("rack", {}))
        (alone,) = price(plan_of(config, run={"horizon": "2 steps"}))
        assert (phase.flops, phase.tokens) == (alone.flops, alone.tokens), phase.name


def test_pricing_touches_neither_data_nor_weights_nor_the_generators() -> None:
    import torch

    before = torch.get_rng_state()
    config = base(data={"sources": {"a": {"use": "data.text-files", "paths": ["/nowhere/*"]}}, "batch_size": 2, "seq_len": 4})
    config["model"]["embedding"] = {"use": "transformer.token"}
    config["model"]["rack"]["width"] = 4096
    config["model"]["rack"]["stacks"] = [{"base": 24}]
    (cost,) = price(plan_of(config))
    assert cost.parameters > 4e9
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"freeze": ["rack.stacks.bas"]}, "matches no parameter"),
        ({"freeze": ["*"]}, "leaves nothing to train"),
    ],
)
def test_selectors_are_tried_before_the_run(change: dict[str, Any], rule: str) -> None:
    config = decoder()
    config["model"] |= change
    with pytest.raises(UserError, match=rule):
        price(plan_of(config))


@pytest.mark.parametrize(
    ("second", "key"),
    [
        ({"enter": {"fresh": ["head"]}}, "phases.two.enter.fresh: selector 'head' matches head.weight alone"),
        ({"model": {"freeze": ["heads"]}}, "phases.two.model.freeze: selector 'heads' matches no parameter"),
        ({"enter": {"rewarm": "2 steps"}}, "phases.two.enter.rewarm: it has nothing to act on here, where no parameter is fresh"),
        ({"enter": {"moments": "reset"}}, "phases.two.enter.moments: it .* where no parameter is a copy and the optimizer stays"),
        ({"enter": {"weight_adapters": "drop"}}, "phases.two.enter.weight_adapters: it .* where no weight adapter leaves"),
    ],
)
def test_what_a_phase_says_of_its_entry_acts_on_something(second: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        price(plan_of(decoder(), phases={"one": {"until": "50%"}, "two": second}))


@pytest.mark.parametrize("key", [{"moments": "reset"}, {"weight_adapters": "drop"}, {"rewarm": "2 steps"}])
def test_the_first_phase_crosses_nothing(key: dict[str, Any]) -> None:
    (problem,) = problems_of(decoder(), phases={"one": {"enter": key}})
    assert "the first phase has nothing to grow from" in problem.message


def test_the_plan_as_json_is_json_and_as_text_names_what_happens() -> None:
    phases = {
        "shallow": {"until": "50%"},
        "deep": {"model": {"rack": {"stacks": [{"base": 4}]}}, "enter": {"growth": {"use": "transformer.stack"}}},
    }
    plan = plan_of({**decoder(), "phases": phases, "evaluate": {"held": {"every": "3 steps"}}})
    prices = price(plan)
    told = json.loads(json.dumps(plan_as_json(plan, prices)))
    assert [(phase["name"], phase["start"], phase["stop"]) for phase in told["phases"]] == [("shallow", 0, 6), ("deep", 6, 12)]
    crossing = told["phases"][1]["transition"]
    assert crossing["blocks"] == {"base.0": "base.0", "base.1": "base.1", "base.2": "base.0", "base.3": "base.1"}
    assert crossing["preserves_function"] is False and told["evaluations"] == {"held": [0, 3, 6, 9, 12]}
    text = plan_as_text(plan, prices)
    for words in ("shallow → deep at step 6", "base 2←0 3←1", "NOT preserved", f"{prices[1].parameters:,}", "evaluate  held"):
        assert words in text


def test_schedules_hold_what_the_log_shows() -> None:
    config = decoder()
    config["optimizer"]["lr"] = {"linear": {"from": 0.02, "to": 0}}
    (cost,) = price(plan_of(config))
    steps = [event.lr for event in drive(machine_of(config)) if isinstance(event, StepDone)]
    assert cost.lr == (steps[0], steps[-1]) == (0.02, pytest.approx(0.02 / 12))


def test_several_mistakes_are_told_at_once() -> None:
    config = decoder()
    config["model"]["rack"]["heads"] = 3
    config["optimizer"]["lr"] = -1
    config["data"]["batch_size"] = 0
    config["task"] = {"use": "transformer.causal_lm"}
    told = {problem.path for problem in problems_of(config)}
    assert {"optimizer.lr", "data.batch_size", "task.use"} <= told
    assert any(path.startswith("model.rack") for path in told)
    with pytest.raises(stackwise.ConfigError):
        plan_of(config)


def test_phases_that_are_not_walked_again_cost_what_walking_them_says(monkeypatch: pytest.MonkeyPatch) -> None:
    phases = {
        "a": {"until": "20%"},
        "b": {"until": "40%", "optimizer": {"lr": 0.001}},
        "c": {"until": "60%", "model": {"freeze": ["embedding"]}},
        "d": {"until": "80%", "optimizer": {"groups": {"slow": {"select": ["rack.norm"], "lr": 0.0}}}},
        "e": {"model": {"rack": {"stacks": [{"base": 3}]}}, "enter": {"growth": {"use": "transformer.stack"}}},
    }
    plan = plan_of(base(phases=phases))
    skipping = price(plan)
    count = iter(range(100))
    monkeypatch.setattr("stackwise.assembly.pricing._declared_model", lambda state: next(count))
    assert price(plan) == skipping
    assert len({phase.trainable for phase in skipping}) == 3


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"optimizer": {"groups": {"x": {"select": ["rack"], "lr": -1}}}}, "optimizer.groups.x.lr: -1.0 is below the minimum of 0"),
        (
            {"optimizer": {"groups": {"x": {"select": ["rack"], "beta1": {"linear": {"from": 0.5, "to": 1}}}}}},
            "x.beta1: 1.0 is not below 1",
        ),
        ({"optimizer": {"groups": {"x": {"select": ["rack"], "lr": "fast"}}}}, "optimizer.groups.x.lr: 'fast' is not a number"),
        (
            {"optimizer": {"groups": {"x": {"select": ["rack"]}, "y": {"select": ["rack.norm"]}}}},
            r"optimizer.groups: optimizer.groups.y selects only parameters that groups before it already took",
        ),
        ({"model": {"freeze": ["*"]}}, r"phases.two.model: model.freeze \['\*'\] leaves nothing to train"),
        ({"model": {"rack": {"ff": 40}}}, r"phases.two.model: rack.stacks.base.0.mlp.\w+.weight changes its shape"),
    ],
)
def test_what_is_wrong_with_model_and_groups_is_told_with_its_place(change: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        price(plan_of(decoder(), phases={"one": {"until": "50%"}, "two": change}))
