"""LoRA over a run: attached without a trace, merged, dropped, grown, and refused where a matrix is shared."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_walks import VOCAB, base, drive, machine_of, problems_of, stream, weights
from torch import nn

from stackwise import Built, PhaseEntered, StepDone, UserError
from stackwise.machine.machine import TrainingMachine

LORA = {"style": {"use": "transformer.lora", "rank": 2, "select": ["rack"]}}
PROBE = {"tokens": stream(40).view(2, 20)}


def phases(third: dict[str, Any]) -> dict[str, Any]:
    return {
        "plain": {"until": "4 steps"},
        "beside": {"until": "8 steps", "model": {"weight_adapters": LORA, "freeze": ["embedding", "rack"]}},
        "after": third,
    }


def crossings(machine: TrainingMachine) -> Iterator[tuple[PhaseEntered, torch.Tensor, dict[str, torch.Tensor]]]:
    """Each later phase with the outputs and the weights right before it; ask the machine for those after it."""
    outputs, held = torch.empty(0), {}
    for event in machine.train():
        if isinstance(event, PhaseEntered) and event.phase_index:
            yield event, outputs, held
        if isinstance(event, StepDone):
            outputs, held = logits(machine), weights(machine)


def logits(machine: TrainingMachine) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = machine.model.model(PROBE)["logits"]
    return found


def test_attached_they_add_nothing_and_no_name_of_the_model_changes() -> None:
    machine = machine_of(base(phases=phases({})))
    (event, outputs, before), *_ = [next(crossings(machine))]
    assert torch.equal(logits(machine), outputs)
    names = list(machine.model.model.state_dict())
    own = [name for name in names if not name.startswith("weight_adapters.")]
    assert own == [*dict.fromkeys([*before, "head.weight"])] and names[: len(own)] == own
    added = [name for name in names if name.startswith("weight_adapters.")]
    assert len(added) == event.fresh == 2 * sum(before[n].dim() == 2 for n in before if n.startswith("rack."))
    assert all(name.startswith("weight_adapters.style.rack.stacks.base.") for name in added)


def test_they_change_no_value_that_the_model_begins_with() -> None:
    plain, beside = machine_of(base()), machine_of(base(model={**base()["model"], "weight_adapters": LORA}))
    for machine in (plain, beside):
        next(event for event in machine.train() if isinstance(event, PhaseEntered))
    values = weights(beside)
    assert all(torch.equal(tensor, values[name]) for name, tensor in weights(plain).items())


def test_merged_matrices_are_those_written_by_hand_and_dropped_ones_the_old() -> None:
    for leave in ("merge", "drop"):
        third = {"model": {"weight_adapters": {"style": None}, "freeze": []}, "enter": {"weight_adapters": leave}}
        machine = machine_of(base(phases=phases(third), optimizer={"use": "optim.adamw", "lr": 0.01}))
        walk = crossings(machine)
        _, _, original = next(walk)
        event, outputs, held = next(walk)
        now = weights(machine)
        transition = machine.schedule.phases[2].transition
        assert transition is not None and transition.preserves_function == (leave == "merge")
        assert not [name for name in now if name.startswith("weight_adapters.")]
        for name, tensor in now.items():
            place = f"weight_adapters.style.{name.removesuffix('.weight')}"
            expected = original[name]
            if leave == "merge" and f"{place}.a" in held:
                expected = expected + 16 / 2 * held[f"{place}.b"] @ held[f"{place}.a"]
                assert not torch.equal(tensor, original[name])
            torch.testing.assert_close(tensor, expected, rtol=0, atol=0 if leave == "drop" else 1e-6)
        assert event.merged == (len([name for name in held if name.endswith(".a")]) if leave == "merge" else 0)
        if leave == "merge":
            torch.testing.assert_close(logits(machine), outputs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("other", [{"rank": 3}, {"alpha": 4}], ids=["rank", "alpha"])
@pytest.mark.parametrize("leave", ["merge", "drop"])
def test_one_of_another_form_takes_the_place_of_the_old_which_leaves_once(leave: str, other: dict[str, Any]) -> None:
    third = {"model": {"weight_adapters": {"style": other}}, "enter": {"weight_adapters": leave}}
    machine = machine_of(base(phases=phases(third)))
    walk = crossings(machine)
    _, _, original = next(walk)
    event, outputs, held = next(walk)
    now, state = weights(machine), machine.optimizer.state_by_name()
    adapters = [name for name in now if name.startswith("weight_adapters.")]
    assert event.fresh == event.dropped == len(adapters) == len([name for name in held if name.startswith("weight_adapters.")])
    assert not any(now[name].any() for name in adapters if name.endswith(".b")) and not state.keys() & set(adapters)
    if leave == "merge":
        torch.testing.assert_close(logits(machine), outputs, rtol=0, atol=1e-6)
    else:
        assert all(torch.equal(now[name], original[name]) for name in original)


@pytest.mark.parametrize("leave", ["merge", "drop"])
@pytest.mark.parametrize(("select", "loses"), [(["rack.stacks.base.0"], True), (["rack", "head"], False), (["*"], False)])
def test_the_plan_knows_whether_narrower_selectors_lose_what_was_learnt(leave: str, select: list[str], loses: bool) -> None:
    third = {"model": {"weight_adapters": {"style": {"select": select}}}, "enter": {"weight_adapters": leave}}
    machine = machine_of(base(phases=phases(third), model={**base()["model"], "head": {"use": "transformer.lm", "tied": False}}))
    transition = machine.schedule.phases[2].transition
    assert transition is not None and transition.preserves_function == (leave == "merge" or not loses)
    walk = crossings(machine)
    next(walk)
    _, outputs, _ = next(walk)
    difference = float((logits(machine) - outputs).abs().max())
    assert difference <= 1e-6 if transition.preserves_function else difference > 1e-4


def test_wider_selectors_in_other_words_take_nothing_away() -> None:
    few, more = ["rack.stacks.base.0-0.*"], ["rack.stacks.base.0-1.*"]
    third = {"model": {"weight_adapters": {"style": {"select": more}}}, "enter": {"weight_adapters": "drop"}}
    narrow = phases(third)
    narrow["beside"] = {**narrow["beside"], "model": {"weight_adapters": {"style": {**LORA["style"], "select": few}}, "freeze": ["rack"]}}
    machine = machine_of(base(phases=narrow))
    transition = machine.schedule.phases[2].transition
    assert transition is not None and transition.preserves_function and not transition.notes
    walk = crossings(machine)
    next(walk)
    event, outputs, _ = next(walk)
    assert (event.dropped, event.merged) == (0, 0)
    torch.testing.assert_close(logits(machine), outputs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("select", [["rack.3-1"], [""]])
def test_selectors_that_cannot_be_read_are_told_with_their_place(select: list[str]) -> None:
    (problem,) = problems_of(base(phases=phases({"model": {"weight_adapters": {"style": {"select": select}}}})))
    assert problem.path == "model.weight_adapters.style.select"


def test_stacked_blocks_bring_copies_of_their_adapters_and_of_their_moments() -> None:
    third = {"model": {"rack": {"stacks": [{"base": 4}]}}, "enter": {"growth": {"use": "transformer.stack"}}}
    machine = machine_of(base(phases=phases(third)))
    walk = crossings(machine)
    next(walk)
    _, _, held = next(walk)
    now, state = weights(machine), machine.optimizer.state_by_name()
    adapters = [name for name in now if name.startswith("weight_adapters.")]
    assert len(adapters) == 2 * len([name for name in held if name.startswith("weight_adapters.")])
    for name in adapters:
        source = name.replace("base.2.", "base.0.").replace("base.3.", "base.1.")
        assert torch.equal(now[name], held[source]) and held[source].any()
        assert torch.equal(state[name]["exp_avg"], state[source]["exp_avg"]) and int(state[name]["step"]) == 4
    assert set(machine.model.trainable()) == set(adapters)


def test_identity_growth_beside_adapters_keeps_the_function() -> None:
    third = {"model": {"rack": {"stacks": [{"low": 1}, {"base": 3}]}}, "enter": {"growth": {"use": "transformer.identity"}}}
    machine = machine_of(base(phases=phases(third)))
    (_, _, _), (_, outputs, _) = crossings_until(machine, 2)
    assert torch.equal(logits(machine), outputs)


def crossings_until(machine: TrainingMachine, count: int) -> list[tuple[PhaseEntered, torch.Tensor, dict[str, torch.Tensor]]]:
    """The first crossings; the machine stands right behind the last."""
    walk = crossings(machine)
    return [next(walk) for _ in range(count)]


class LinearEmbedding(nn.Module):
    """One-hot vectors through a linear map."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.map = nn.Linear(VOCAB, width, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return F.embedding(tokens, self.map.weight.t())


@pytest.mark.parametrize(
    ("select", "says"),
    [
        (["embedding"], "none of these is the matrix of a linear map"),
        (["*norm*"], "none of these is the matrix of a linear map"),
        (["head"], "tied to embedding.weight"),
    ],
)
def test_embeddings_norms_and_tied_heads_are_refused(select: list[str], says: str) -> None:
    adapters = {"style": {"use": "transformer.lora", "rank": 2, "select": select}}
    with pytest.raises(UserError, match=says):
        drive(machine_of(base(model={**base()["model"], "weight_adapters": adapters})))


class TwiceTheSame(nn.Module):
    """Two linear maps with one matrix."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.other.weight = self.one.weight

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        turned: torch.Tensor = self.other(torch.tanh(self.one(hidden)))
        return hidden + turned


def test_a_matrix_that_is_tied_to_another_is_refused_by_both_names() -> None:
    model = {
        "embedding": {"use": "transformer.token", "vocab": VOCAB, "width": 8},
        "rack": Built(TwiceTheSame, width=8),
        "head": {"use": "transformer.lm", "width": 8},
        "weight_adapters": LORA,
    }
    with pytest.raises(UserError, match=r"rack\.one\.weight and rack\.other\.weight are one tied matrix"):
        drive(machine_of(base(model=model)))
