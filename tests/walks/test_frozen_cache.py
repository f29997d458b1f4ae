"""`model.cache: frozen`: what frozen blocks make of a row is computed once, and training is what it is without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_walks import VOCAB, base, drive, losses, machine_of, memory, plan_of
from torch import nn

import stackwise
from stackwise.assembly.pricing import price
from stackwise.errors import ConfigError, DiskError, UserError
from stackwise.planes.model import row_store
from stackwise.planes.model.frozen_prefix import FrozenPrefix, row_keys
from stackwise.planes.model.row_store import RowStore
from stackwise.reports.plan_text import plan_as_json, plan_as_text

FROZEN = ["embedding", "rack.stacks.base.0-1"]
ROWS = torch.randint(VOCAB, (10, 5), generator=torch.Generator().manual_seed(0))


def rows(**options: Any) -> dict[str, Any]:
    """A source of ten whole rows, which come again in every epoch."""
    return {"use": "data.memory", "arrays": {"tokens": ROWS}, **options}


def config(**changes: Any) -> dict[str, Any]:
    made = base()
    made["data"] = {"sources": {"a": rows()}, "batch_size": 4, "seq_len": 4}
    rack = {**made["model"]["rack"], "stacks": [{"base": 4}]}
    made["model"] = {**made["model"], "rack": rack, "head": {"use": "transformer.lm", "tied": False}, "freeze": FROZEN, "cache": "frozen"}
    made["model"] |= changes.pop("model", {})
    return {**made, **changes}


def prefix_of(machine: stackwise.TrainingMachine) -> FrozenPrefix:
    prefix = machine.model.model.prefix
    assert isinstance(prefix, FrozenPrefix)
    return prefix


def test_training_is_what_it_is_without_and_every_row_is_computed_once() -> None:
    cached, plain = machine_of(config()), machine_of(config(model={"cache": None}))
    ours, theirs = losses(drive(cached)), losses(drive(plain))
    for mine, his in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(his, rel=1e-6)
    for (name, mine), (_, his) in zip(cached.model.model.named_parameters(), plain.model.model.named_parameters(), strict=True):
        torch.testing.assert_close(mine, his, rtol=1e-6, atol=1e-6, msg=name)
    prefix = prefix_of(cached)
    assert (prefix.blocks, prefix.computed, prefix.found) == (2, 10, 12 * 4 - 10)


def test_frozen_blocks_run_only_for_rows_that_are_new() -> None:
    machine, seen = machine_of(config()), []
    walk = machine.train()
    for event in walk:
        if isinstance(event, stackwise.PhaseEntered):
            machine.model.model.rack.stacks["base"][0].register_forward_hook(lambda *_: seen.append(machine.step))
            break
    list(walk)
    assert sum(machine.model.model.training for _ in seen) == len(seen)
    assert len(seen) == 10 + 1  # each row, and the first one twice
    assert max(seen) <= 2


@pytest.mark.parametrize("stop", [1, 4, 7])
def test_a_resumed_run_is_the_same_to_the_bit(stop: int) -> None:
    whole = drive(machine_of(config()))
    first, again = machine_of(config()), machine_of(config())
    events = []
    walk = first.train()
    for event in walk:
        events.append(event)
        if first.step == stop:
            break
    again.restore(first.state())
    walk.close()
    assert losses(events) + losses(drive(again)) == losses(whole)


def two_phases(**second: Any) -> dict[str, Any]:
    return config(phases={"one": {"until": "50%"}, "two": {"until": "100%", **second}})


def test_a_boundary_that_leaves_the_prefix_alone_keeps_what_was_kept() -> None:
    machine = machine_of(two_phases(optimizer={"lr": 0.02}))
    drive(machine)
    assert prefix_of(machine).computed == 0


@pytest.mark.parametrize(
    ("second", "blocks"),
    [
        ({"model": {"freeze": [*FROZEN, "rack.stacks.base.2"]}}, 3),
        ({"model": {"freeze": ["embedding", "rack.stacks.base.0"]}}, 1),
    ],
    ids=["more is frozen", "less is frozen"],
)
def test_a_boundary_that_touches_the_prefix_begins_anew(second: dict[str, Any], blocks: int) -> None:
    cached = machine_of(two_phases(**second))
    plain = machine_of({**two_phases(**second), "model": {**two_phases()["model"], "cache": None}})
    for mine, his in zip(losses(drive(cached)), losses(drive(plain)), strict=True):
        assert mine == pytest.approx(his, rel=1e-6)
    assert (prefix_of(cached).blocks, prefix_of(cached).computed) == (blocks, 10)


def test_a_prefix_that_learnt_in_between_is_computed_anew() -> None:
    def made(cache: str | None) -> dict[str, Any]:
        again = {"freeze": FROZEN, "cache": cache}
        thawed = {"until": "70%", "model": {"freeze": [], "cache": None}}
        phases = {"one": {"until": "40%"}, "two": thawed, "three": {"until": "100%", "model": again}}
        return config(model={"cache": cache}, phases=phases)

    cached, plain = machine_of(made("frozen")), machine_of(made(None))
    for mine, his in zip(losses(drive(cached)), losses(drive(plain)), strict=True):
        assert mine == pytest.approx(his, rel=1e-6)
    prefix = prefix_of(cached)
    assert prefix.computed >= 8  # two batches before the rows come again
    assert prefix.computed + prefix.found == 3 * 4


def test_a_trained_adapter_ends_the_prefix() -> None:
    lora = {"low": {"use": "transformer.lora", "rank": 2, "select": ["rack.stacks.base.1.attention.qkv.weight"]}}
    trained = machine_of(config(model={"weight_adapters": lora}))
    next(event for event in trained.train() if isinstance(event, stackwise.PhaseEntered))
    assert prefix_of(trained).blocks == 1


# -- refusals -------------------------------------------------------------------------------------------------------

REFUSED: dict[str, dict[str, Any]] = {
    "nothing frozen in front": {"model": {"freeze": ["rack.stacks.base.2"]}},
    "the embedding learns": {"model": {"freeze": ["rack.stacks.base.0"]}},
    "frozen parts in training mode": {"model": {"frozen_mode": "train"}},
    "dropout that follows time": {"model": {"rack": {"dropout": {"linear": {"from": 0.1, "to": 0.0}}}}},
    "a rack that runs whole": {"model": {"rack": {"use": "transformer.conv", "width": 8, "stacks": [{"base": 4}]}}},
    "masks that are drawn": {"task": {"use": "transformer.masked-lm"}, "model": {"rack": {"attention": "bidirectional"}}},
    "rows that come once": {"run": {"name": "tiny", "seed": 3, "horizon": "2 steps", "device": "cpu"}},
    "a table of positions that learns": {"model": {"rack": {"positions": "learned", "max_positions": 8}}},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_follow_time_is_refused_before_the_run(name: str) -> None:
    changes = {**REFUSED[name]}
    model = dict(changes.pop("model", {}))
    if "rack" in model and "use" not in model["rack"]:
        model["rack"] = {**config()["model"]["rack"], **model["rack"]}
    made = config(model=model, **changes)
    if name == "masks that are drawn":
        made["model"]["embedding"] = {"use": "transformer.token", "vocab": VOCAB + 1}
    with pytest.raises(ConfigError) as refused:
        price(plan_of(made))
    (problem,) = refused.value.problems
    assert "cache" in problem.message or problem.path == "model.cache"


def test_what_draws_in_front_is_refused_at_the_first_row() -> None:
    machine = machine_of(config())
    machine.model._build, build = (
        lambda path, part, *rest: with_noise(build(path, part, *rest)) if path == "embedding" else build(path, part, *rest),
        machine.model._build,
    )
    with pytest.raises(UserError, match="draws"):
        drive(machine)


def with_noise(embedding: nn.Module) -> nn.Module:
    embedding.register_forward_hook(lambda _, __, hidden: hidden + torch.randn_like(hidden))
    return embedding


def test_rows_that_never_come_again_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stackwise.planes.model.frozen_prefix._LOOKUPS", 8)
    made = config()
    made["data"] = {"sources": {"a": memory()}, "batch_size": 2, "seq_len": 4}
    with pytest.raises(UserError, match="second time"):
        drive(machine_of(made))


# -- the price and the file -----------------------------------------------------------------------------------------


def test_the_plan_says_how_much_is_kept() -> None:
    plan = plan_of(config())
    prices = price(plan)
    assert prices[0].kept_bytes == 10 * 4 * 8 * 4  # rows, positions, features, bytes
    assert plan_as_json(plan, prices)["phases"][0]["kept_bytes"] == 1280
    assert "keeps" in plan_as_text(plan, prices)
    machine = machine_of(config())
    drive(machine)
    (store,) = prefix_of(machine)._stores.values()
    assert len(store) * 4 * 8 * 4 == 1280


def test_a_store_gives_back_what_was_put_beyond_its_first_room(tmp_path: Path) -> None:
    store, put = RowStore(tmp_path, (3, 5), torch.bfloat16), torch.randn(200, 3, 5).bfloat16()
    for i, row in enumerate(put):
        store.put(str(i).encode(), row)
    asked = [7, 150, 7, 0, 199]
    assert torch.equal(store.get([str(i).encode() for i in asked]), put[asked])
    assert b"200" not in store
    assert not list(tmp_path.iterdir())  # nothing is left of a process that is killed


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_store, "_FIRST", 2**40)  # more than any disk here holds
    with pytest.raises(DiskError):
        RowStore(tmp_path, (1024, 1024), torch.float32).put(b"one", torch.zeros(1024, 1024))


def test_rows_are_known_by_all_of_their_numbers() -> None:
    tokens, segments = torch.arange(6).view(2, 3), torch.tensor([[0, 0, 1], [0, 1, 1]])
    keys = {
        *row_keys({"tokens": tokens}),
        *row_keys({"tokens": tokens, "segments": segments}),
        *row_keys({"tokens": tokens, "segments": segments * 2}),
        *row_keys({"tokens": tokens.int()}),
        *row_keys({"others": tokens}),
    }
    assert len(keys) == 10
    assert row_keys({"tokens": tokens.flip(0)}) == row_keys({"tokens": tokens})[::-1]
