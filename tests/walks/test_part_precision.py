"""Precision by part: what is held and computed in which dtype, and what crosses between."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_walks import base, boundaries, drive, machine_of, problems_of, stream

from stackwise import StepDone

PROBE = {"tokens": stream(40).view(2, 20)}
BF16 = {"rack": "bfloat16"}


def model(**changes: Any) -> dict[str, Any]:
    return {**base()["model"], **changes}


def dtypes(machine: Any) -> set[tuple[str, torch.dtype]]:
    return {(name.split(".")[0], p.dtype) for name, p in machine.model.model.named_parameters()}


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon", "lion", "schedule-free"])
def test_parameters_and_hidden_states_have_the_declared_dtypes_and_moments_are_float32(optimizer: str) -> None:
    machine = machine_of(base(model=model(precision=BF16), optimizer={"use": f"optim.{optimizer}", "lr": 0.01}))
    seen: dict[str, tuple[torch.dtype, torch.dtype]] = {}

    def note(role: str, given: torch.Tensor, out: Any) -> None:
        seen[role] = (given.dtype, (out["logits"] if role == "head" else out).dtype)

    for event in machine.train():
        if isinstance(event, StepDone) and event.step == 0:
            for role in ("rack", "head"):
                part = machine.model.model.get_submodule(role)
                part.register_forward_hook(lambda _, inputs, out, role=role: note(role, inputs[0], out))
    assert dtypes(machine) == {("embedding", torch.float32), ("rack", torch.bfloat16)}
    assert seen == {"rack": (torch.bfloat16, torch.bfloat16), "head": (torch.float32, torch.float32)}
    state = machine.optimizer.state_by_name()
    for name, parameter in machine.model.model.named_parameters():
        shaped = [value for value in state[name].values() if torch.is_tensor(value) and value.shape == parameter.shape]
        assert shaped and all(value.dtype == torch.float32 for value in shaped)


def test_the_output_is_that_of_the_parts_cast_by_hand() -> None:
    machine = machine_of(base(model=model(precision=BF16)))
    drive(machine)
    whole = machine.model.model
    with torch.no_grad():
        hidden = whole.embedding(PROBE["tokens"])
        by_hand = whole.head(whole.rack(hidden.to(torch.bfloat16)).float())["logits"]
        assert torch.equal(whole(PROBE)["logits"], by_hand)


def test_there_and_back_again_loses_what_bf16_rounds_and_nothing_else() -> None:
    phases = {
        "wide": {"until": "4 steps"},
        "narrow": {"until": "8 steps", "model": {"precision": BF16}},
        "again": {"model": {"precision": {"rack": "float32"}}},
    }
    walk = boundaries(machine_of(base(phases=phases)))
    (before, entered, after), (late, back, last) = walk
    for name, tensor in after.weights.items():
        part = torch.bfloat16 if name.startswith("rack.") else torch.float32
        assert tensor.dtype == part and torch.equal(tensor, before.weights[name].to(part))
        assert after.moments[name]["exp_avg"].shape == tensor.shape
        assert (after.identities[name] == before.identities[name]) == (part == torch.float32)
        assert int(after.moments[name]["step"]) == 4
    assert entered.moments_dropped == back.moments_dropped == 0
    assert all(torch.equal(last.weights[name], tensor.float()) for name, tensor in late.weights.items())
    assert {p.dtype for p in last.weights.values()} == {torch.float32}


def test_moments_stay_float32_across_changes_of_precision() -> None:
    narrow, again = {"until": "8 steps", "model": {"precision": BF16}}, {"model": {"precision": None}}
    phases = {"wide": {"until": "4 steps"}, "narrow": narrow, "again": again}
    machine = machine_of(base(phases=phases))
    for event in machine.train():
        if isinstance(event, StepDone):
            for name, _ in machine.model.model.named_parameters():
                assert machine.optimizer.state_by_name()[name]["exp_avg"].dtype == torch.float32, (event.step, name)


def test_adapters_of_both_kinds_meet_the_precision_beside_them() -> None:
    adapters = {junction: [{"use": "core.project", "width_in": 8, "width_out": 8}] for junction in ("embedding-rack", "rack-head")}
    lora = {"style": {"use": "transformer.lora", "rank": 2, "select": ["rack"]}}
    machine = machine_of(base(model=model(precision={"embedding": "float32", **BF16}, adapters=adapters, weight_adapters=lora)))
    drive(machine)
    assert dtypes(machine) == {
        ("embedding", torch.float32),
        ("rack", torch.bfloat16),
        ("adapters", torch.float32),
        ("weight_adapters", torch.bfloat16),
    }


@pytest.mark.parametrize("precision", [{"head": "bfloat16"}, {"embedding": "bfloat16"}, {"rack": "bfloat16", "head": "float16"}])
def test_a_tied_head_in_another_precision_than_the_embedding_is_refused(precision: dict[str, str]) -> None:
    (problem,) = problems_of(base(model=model(precision=precision)))
    assert problem.path == "model.precision"
    assert "head.weight is tied to embedding.weight" in problem.message and "give both one precision, or untie them" in problem.message
    untied = {"use": "transformer.lm", "tied": False}
    assert not problems_of(base(model=model(precision=precision, head=untied)))
    drive(machine_of(base(model=model(precision={"head": "bfloat16", "embedding": "bfloat16"}))))
