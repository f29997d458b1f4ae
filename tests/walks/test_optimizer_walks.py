"""Every offered optimizer through growth, a change of its groups, an evaluation, and into another optimizer."""

from __future__ import annotations

from math import isfinite
from typing import Any

import pytest
import torch
from tiny_walks import base, boundaries, drive, flattened, losses, machine_of, memory, same_tensors, weights

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {"use": "optim.adamw", "lr": 0.01},
    "sgd": {"use": "optim.sgd", "lr": 0.1},
    "muon": {"use": "optim.muon"},
    "adafactor": {"use": "optim.adafactor", "lr": 0.1},
    "lion": {"use": "optim.lion", "lr": 0.001},
    "schedule-free": {"use": "optim.schedule-free", "lr": 0.01},
    "radam": {"use": "optim.torch", "name": "RAdam", "lr": 0.01},
    "lamb": {"use": "optim.pytorch-optimizer", "name": "lamb", "lr": 0.01},
    "came": {"use": "optim.pytorch-optimizer", "name": "came", "lr": 0.01},
    "soap": {"use": "optim.pytorch-optimizer", "name": "soap", "lr": 0.01},
}


def two_phases(second: dict[str, Any], optimizer: dict[str, Any], **sections: Any) -> dict[str, Any]:
    return base(phases={"one": {"until": "6 steps"}, "two": second}, optimizer=optimizer, **sections)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_growth_by_copy_copies_all_state_and_keeps_the_sources(name: str) -> None:
    second = {"model": {"rack": {"stacks": [{"base": 4}]}}, "enter": {"growth": {"use": "transformer.stack"}}}
    machine = machine_of(two_phases(second, OPTIMIZERS[name]))
    for before, entered, after in boundaries(machine):
        assert (entered.moments_kept, entered.moments_dropped) == (len(before.moments), 0)
        for key in after.weights:
            source = key.replace("base.2.", "base.0.").replace("base.3.", "base.1.")
            assert torch.equal(after.weights[key], before.weights[source])
            assert same_tensors(after.moments.get(key, {}), before.moments.get(source, {}))
    assert all(isfinite(float(p.sum())) for p in weights(machine).values())


@pytest.mark.parametrize("name", ["adamw", "adafactor", "soap"])
def test_copied_state_lives_on_its_own(name: str) -> None:
    second = {"model": {"rack": {"stacks": [{"base": 4}]}}, "enter": {"growth": {"use": "transformer.stack"}}}
    machine = machine_of(two_phases(second, OPTIMIZERS[name]))
    for _ in boundaries(machine):
        state = machine.optimizer.state_by_name()
        places = [
            value.data_ptr()
            for entries in state.values()
            for key, entry in entries.items()
            for _, value in flattened(key, entry)
            if isinstance(value, torch.Tensor)
        ]
        assert len(places) == len(set(places)) > 0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_other_groups_and_another_decay_keep_all_state(name: str) -> None:
    second = {"optimizer": {"decay": "all", "groups": {"norms": {"select": ["*.norm*"], "lr": 0.001}}}}
    ((before, entered, after),) = boundaries(machine_of(two_phases(second, OPTIMIZERS[name])))
    assert (entered.moments_kept, entered.moments_dropped) == (len(before.moments), 0)
    assert all(same_tensors(after.moments[key], before.moments[key]) for key in before.moments)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_evaluation_changes_no_bit_of_training(name: str) -> None:
    data = {"sources": {"a": memory(heldout=0.2)}, "batch_size": 2, "seq_len": 4}
    alone = machine_of(base(optimizer=OPTIMIZERS[name], data=data))
    watched = machine_of(base(optimizer=OPTIMIZERS[name], data=data, evaluate={"heldout": {"every": "2 steps", "batches": 2}}))
    assert losses(drive(alone)) == losses(drive(watched))
    assert same_tensors(weights(alone), weights(watched))


@pytest.mark.parametrize("other", ["muon", "lion"])
def test_adams_first_moment_goes_on_as_the_momentum_of(other: str) -> None:
    ((before, _, after),) = boundaries(machine_of(two_phases({"optimizer": OPTIMIZERS[other]}, OPTIMIZERS["adamw"])))
    rest = {"exp_avg", "exp_avg_sq", "step"} if other == "muon" else {"exp_avg"}
    for key, entries in after.moments.items():
        hidden = other == "muon" and key.startswith("rack.") and after.weights[key].ndim == 2
        assert entries.keys() == ({"exp_avg"} if hidden else rest)
        assert same_tensors(entries, {entry: before.moments[key][entry] for entry in entries})


@pytest.mark.parametrize("other", sorted(OPTIMIZERS.keys() - {"adamw"}))
def test_into_another_optimizer_and_back(other: str) -> None:
    phases = {
        "one": {"until": "4 steps"},
        "two": {"until": "8 steps", "optimizer": OPTIMIZERS[other]},
        "three": {"optimizer": OPTIMIZERS["adamw"]},
    }
    steps = losses(drive(machine_of(base(phases=phases))))
    assert len(steps) == 12 and all(isfinite(loss) and isfinite(norm) for _, loss, norm, _ in steps)


@pytest.mark.parametrize("which", ["lamb", "soap"])
def test_what_is_thawed_goes_on_with_its_count_and_what_is_fresh_begins_one(which: str) -> None:
    phases = {
        "all": {"until": "3 steps"},
        "some": {"until": "5 steps", "model": {"freeze": ["head"]}},
        "thawed": {"until": "8 steps", "model": {"freeze": []}},
        "grown": {"model": {"rack": {"stacks": [{"base": 3}]}}, "enter": {"growth": {"use": "transformer.identity"}}},
    }
    model = {**base()["model"], "head": {"use": "transformer.lm", "tied": False}}
    machine = machine_of(base(phases=phases, optimizer=OPTIMIZERS[which], model=model))
    drive(machine)
    state = machine.optimizer.state_by_name()
    counts = {
        part: {float(entries["group.step"]) for key, entries in state.items() if part in key} for part in ("embedding", "head.", "base.2")
    }
    assert counts == {"embedding": {12}, "head.": {10}, "base.2": {4}}


@pytest.mark.parametrize(("there", "here"), [("Adam", "Adagrad"), ("Adagrad", "Adam")])
def test_another_name_is_another_optimizer(there: str, here: str) -> None:
    machine = machine_of(two_phases({"optimizer": {"name": here}}, {"use": "optim.torch", "name": there, "lr": 0.01}))
    ((before, entered, _),) = boundaries(machine)
    assert (entered.moments_kept, entered.moments_dropped) == (0, len(before.moments))
    assert {int(entries["step"]) for entries in machine.optimizer.state_by_name().values()} == {6}


def test_what_is_lost_to_an_optimizer_that_does_not_say_what_it_keeps_is_counted_as_lost() -> None:
    machine = machine_of(two_phases({"optimizer": {"use": "optim.torch", "name": "Adam", "lr": 0.01}}, OPTIMIZERS["adamw"]))
    ((before, entered, after),) = boundaries(machine)
    assert (entered.moments_kept, entered.moments_dropped) == (0, len(before.moments)) and not after.moments
