"""The model as trained: ties have one name, and selectors of the other are told which."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_walks import base, machine_of, plan_of

from stackwise import PhaseEntered
from stackwise.assembly.pricing import price
from stackwise.errors import SelectorError, StackwiseError

LORA = {"a": {"use": "transformer.lora", "rank": 2, "select": ["head"]}}


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {**base()["model"], "freeze": ["head"]}},
        {"model": {**base()["model"], "weight_adapters": LORA}},
        {"optimizer": {**base()["optimizer"], "groups": {"h": {"select": ["head"], "lr": 1e-4}}}},
    ],
    ids=["freeze", "weight adapters", "groups"],
)
def test_a_selector_of_a_tied_head_is_told_the_name_of_the_one_parameter(changes: dict[str, Any]) -> None:
    with pytest.raises(SelectorError) as caught:
        next(event for event in machine_of(base(**changes)).train() if isinstance(event, PhaseEntered))
    assert caught.value.selector == "head"
    assert "tied to embedding.weight" in str(caught.value)
    with pytest.raises(StackwiseError, match=r"tied to embedding\.weight"):
        price(plan_of(base(**changes)))


def test_a_second_name_beside_the_first_adds_nothing() -> None:
    """`embedding` and `head` of a tied model are one parameter, which both may name."""
    machine = machine_of(base(model={**base()["model"], "freeze": ["head", "embedding"]}))
    for _ in machine.train():
        pass
    assert [name for name, p in machine.model.model.named_parameters() if not p.requires_grad] == ["embedding.weight"]
    price(plan_of(base(model={**base()["model"], "freeze": ["head", "embedding"]})))
    phases = {"first": {"until": "50%"}, "second": {"enter": {"fresh": ["embedding", "head"]}}}
    (entered,) = [event for event in machine_of(base(phases=phases)).train() if isinstance(event, PhaseEntered) and event.phase == "second"]
    assert entered.fresh == 1


def test_a_selector_that_matches_nothing_at_all_keeps_its_near_names() -> None:
    machine = machine_of(base(model={**base()["model"], "freeze": ["embeding"]}))
    with pytest.raises(SelectorError, match=r"matches no parameter.*embedding"):
        next(event for event in machine.train() if isinstance(event, PhaseEntered))
