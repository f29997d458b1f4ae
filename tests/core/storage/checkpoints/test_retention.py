"""Pruning leaves what the rules keep, and nothing else: against a second statement of the rules, and on disk."""

from __future__ import annotations

from math import isnan, nan
from pathlib import Path

import pytest
from faulty_disk import check_whole, hidden_entries, save
from how_many import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from stackwise.errors import UserError
from stackwise.storage.checkpoints.retention import Candidate, Retention
from stackwise.storage.checkpoints.store import CheckpointStore, verify

losses = st.one_of(st.none(), st.sampled_from([nan, 0.0, 1.0, 2.0, float("inf"), float("-inf")]))
checkpoints = st.dictionaries(st.integers(0, 40), st.tuples(losses, st.booleans()), max_size=12)
rules = st.fixed_dictionaries(
    {
        "last": st.none() | st.integers(1, 5),
        "every": st.none() | st.integers(1, 12),
        "best": st.none() | st.tuples(st.just("loss"), st.sampled_from(["min", "max"])),
    }
)


def stays(step: int, present: dict[int, tuple[float | None, bool]], protected: set[int], last: int | None, every: int | None, best) -> bool:
    """The rules, read one checkpoint at a time."""
    if last is None or step in protected or present[step][1]:
        return True
    if sum(other > step for other in present) < last:
        return True
    if every is not None and step % every == 0:
        return True
    loss = present[step][0]
    if best is None or loss is None or isnan(loss):
        return False
    for other, (value, _) in present.items():
        if value is None or isnan(value):
            continue
        if (value < loss if best[1] == "min" else value > loss) or (value == loss and other > step):
            return False
    return True


@settings(max_examples=examples(300))
@given(present=checkpoints, protected=st.sets(st.integers(0, 40), max_size=3), rule=rules)
def test_exactly_what_no_rule_keeps_is_removed(present, protected, rule) -> None:
    kept = [Candidate(step=s, metrics={} if loss is None else {"loss": loss}, pinned=pinned) for s, (loss, pinned) in present.items()]
    expected = tuple(step for step in sorted(present) if not stays(step, present, protected, **rule))
    assert Retention(**rule).steps_to_remove(kept, protected) == expected


saves = st.lists(st.tuples(st.integers(0, 12), losses, st.booleans(), st.booleans()), min_size=1, max_size=8)


@settings(max_examples=examples(15))
@given(
    saves=saves,
    rule=st.fixed_dictionaries({"last": st.integers(1, 3), "every": st.none() | st.integers(2, 5), "best": st.just(("loss", "min"))}),
)
def test_a_store_holds_what_the_rules_keep_save_by_save(tmp_path_factory: pytest.TempPathFactory, saves, rule) -> None:
    """Steps may come again, be smaller than those before, and be written beside the caller; a new store goes on in between."""
    place = tmp_path_factory.mktemp("c")
    present: dict[int, tuple[float | None, bool]] = {}
    for which, (step, loss, pinned, asynchronous) in enumerate(saves):
        store = CheckpointStore(place, keep_last=rule["last"], keep_every=rule["every"], best=rule["best"], pins={11})
        metrics = {} if loss is None else {"loss": loss}
        save(store, step, which, metrics=metrics, pin="kept" if pinned else None, asynchronous=asynchronous)
        store.close()
        present[step] = (loss, pinned)
        present = {s: value for s, value in present.items() if stays(s, present, {step, 11}, **rule)}
        assert store.names() == tuple(f"step-{s:09d}" for s in sorted(present)) and hidden_entries(place) == []
        assert check_whole(store.at(step)) == which


def test_everything_stays_unless_a_number_is_given(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "c", keep_every=2, best=("loss", "min"))
    for step in range(5):
        save(store, step, step)
    assert len(store.names()) == 5


def test_the_one_resumed_from_and_pinned_ones_stay(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "c", keep_last=1, pins={1})
    save(store, 1, 1)
    save(store, 2, 2, pin="phase boundary")
    save(store, 3, 3)
    store.pin(3)
    for step in (4, 5):
        save(store, step, step)
    assert [int(name[5:]) for name in store.names()] == [1, 2, 3, 5]
    save(CheckpointStore(tmp_path / "c", keep_last=1), 6, 6)
    assert [int(name[5:]) for name in store.names()] == [2, 6]  # a pin given to `save` is in the checkpoint, the others are the store's own


def test_a_damaged_newest_one_never_costs_the_newest_valid_one(tmp_path: Path) -> None:
    """A run resumed from 10, for 20 is damaged, saves 15: pruning to one must not leave 20 alone."""
    store = CheckpointStore(tmp_path / "c")
    for step in (10, 20):
        save(store, step, step)
    tensors = store.at(20).path / "tensors.safetensors"
    flipped = bytearray(tensors.read_bytes())
    flipped[-1] ^= 1
    tensors.write_bytes(flipped)
    resumed = CheckpointStore(tmp_path / "c", keep_last=1, pins={10})
    save(resumed, 15, 15)
    newest, skipped = resumed.newest()
    assert newest is not None and newest.step == 15 and [entry.step for entry in skipped] == [20] and verify(resumed.at(10).path) == []


def test_what_an_earlier_pruning_left_half_removed_is_swept_away(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "c", keep_last=2)
    for step in (1, 2):
        save(store, step, step)
    (store.at(1).path / "manifest.json").unlink()
    save(store, 3, 3)
    assert [int(name[5:]) for name in store.names()] == [2, 3]


@pytest.mark.parametrize("rule", [{"keep_last": 0}, {"keep_every": 0}, {"keep_last": -1}, {"best": ("loss", "lowest")}])
def test_rules_that_keep_nothing_are_refused(tmp_path: Path, rule) -> None:
    with pytest.raises(UserError):
        CheckpointStore(tmp_path / "c", **rule)
