"""What a checkpoint says beside the machine's state, and what is told where this installation is another."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from tiny_walks import base, drive, machine_of, plan_of

from stackwise.errors import UserError
from stackwise.saved.provenance import Described, changed_files, describe


def about(**sections: Any) -> dict[str, Any]:
    """As a run of one step saves it."""
    config = base(run={"seed": 3, "horizon": "1 steps", "device": "cpu"}, **sections)
    machine = machine_of(config)
    drive(machine)
    return {**describe(plan_of(config), machine, None), "reason": "end"}


@pytest.mark.parametrize("missing", ["reason", "providers", "trains_elsewhere"])
def test_a_checkpoint_from_before_a_key_was_written_is_read(missing: str) -> None:
    saved = about()
    assert Described.read(saved, 1).reason == "end"
    older = Described.read({key: value for key, value in saved.items() if key != missing}, 1)
    assert older.past.step == 1
    assert getattr(older, missing) == {"reason": "cadence", "providers": (), "trains_elsewhere": True}[missing]


@pytest.mark.parametrize(("optimizer", "elsewhere"), [("optim.adamw", False), ("optim.schedule-free", True)])
def test_it_says_whether_the_optimizer_trains_elsewhere(optimizer: str, elsewhere: bool) -> None:
    assert Described.read(about(optimizer={"use": optimizer, "lr": 0.01}), 1).trains_elsewhere is elsewhere


def test_each_of_two_providers_of_one_distribution_is_compared_with_itself() -> None:
    plan = plan_of(base())
    one, two, *_ = (attrs.evolve(provider, distribution="both", version="1.0") for provider in plan.providers)
    plan = attrs.evolve(plan, providers=(one, two))
    saved = [provider.provenance() for provider in plan.providers]
    assert len({row["sha256"] for row in saved}) == 2 and changed_files(saved, plan) == []
    for changed, rows in ((one, [{**saved[0], "sha256": "0" * 64}, saved[1]]), (two, [saved[0], {**saved[1], "sha256": "0" * 64}])):
        (told,) = changed_files(rows, plan)
        assert told.startswith(f"provider '{changed.name}' (both 1.0) has other files than at the checkpoint")


SHAPE: dict[str, Any] = {"batch_size": 2, "seq_len": 4, "accumulate": None, "step_tokens": None}
PIECE = {"start": 0, "before": {}, "rate": {}, "values": SHAPE}
CLOCKS: list[dict[str, Any]] = [
    {"horizon": ["1", "steps", None], "starts": starts, "pieces": pieces}
    for starts, pieces in (
        ([0, 1], []),
        ([0, 1], [{**PIECE, "start": 1}]),
        ([0, 1], [PIECE, PIECE]),
        ([0, 1], [{**PIECE, "values": 3}]),
        ([0, 1], [{**PIECE, "values": {"batch_size": 2}}]),
        *(([0, 1], [{**PIECE, "values": {**SHAPE, key: wrong}}]) for key in SHAPE for wrong in (True, 0, [], "2", 0.5)),
        ([0, 1], [{**PIECE, "rate": {"tokens": 8}}]),
        ([0, 1], [{**PIECE, "start": True}]),
        ([0], [PIECE]),
        ([1, 0], [PIECE]),
        ([0, 5, 5], [PIECE]),
    )
]
"""Clocks that begin late, run backwards, or count what is not a number."""

WRONG: dict[str, Any] = {
    "format": [2, None, "1", 10**400],
    "config": [None, 5, "config.yaml", []],
    "clock": [None, {}, [], {"horizon": ["1/0", "steps", "x"], "starts": [0, 1], "pieces": []}, {"horizon": 5}, *CLOCKS],
    "versions": [None, [], {"torch": 2}, {"torch": None}],
    "fingerprints": [None, "x", 7],
    "providers": [None, 5, [None], [{}], [{"provider": "a", "version": 1, "sha256": "x"}]],
    "parent": [5, "run", []],
    "reason": [None, 5, []],
}


def test_a_clock_that_nothing_is_wrong_with_is_read() -> None:
    clock = {"horizon": ["1", "steps", None], "starts": [0, 1], "pieces": [PIECE]}
    assert Described.read({**about(), "clock": clock}, 1).past.clock.values(0) == SHAPE


@pytest.mark.parametrize("key", WRONG)
def test_what_does_not_say_what_a_checkpoint_says_is_the_users(key: str) -> None:
    saved = about()
    for value in WRONG[key]:
        with pytest.raises(UserError):
            Described.read({**saved, key: value}, 1)
    if key not in ("reason", "providers"):
        with pytest.raises(UserError):
            Described.read({name: value for name, value in saved.items() if name != key}, 1)
