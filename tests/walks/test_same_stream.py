"""The stream is the same whatever makes it, and goes on from any place where it was cut."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import busy_stream
import pytest
import torch
from busy_stream import busy, digest
from hypothesis import given
from hypothesis import strategies as st
from random_curricula import walks
from tiny_walks import plan_of, registry

import stackwise
from stackwise.machine.machine import TrainingMachine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("texts")
    for i in range(12):
        (made / f"{i}.txt").write_text(f"{i} bottles, {'and ' * (i % 4)}one fell", encoding="utf-8")
    return made


@cache
def expected() -> str:
    return digest(busy(read_ahead=0))


@pytest.mark.slow
@pytest.mark.parametrize(
    "run", [{"read_ahead": 1}, {"read_ahead": 5}, pytest.param({"workers": 2, "read_ahead": 3}, marks=pytest.mark.rare)], ids=str
)
def test_threads_and_processes_change_no_bit(run: dict[str, int]) -> None:
    assert digest(busy(**run)) == expected()


def test_evaluations_and_observers_change_no_bit() -> None:
    heard: list[object] = []
    evaluate = {"e": {"every": "2 steps", "batches": 2}, "f": {"batches": 1, "seq_len": 3}}
    watched = {**busy(read_ahead=2), "evaluate": evaluate, "observers": [heard.append]}
    assert digest(watched) == expected()
    assert sum(isinstance(event, stackwise.Evaluated) for event in heard) > 20


def test_the_order_of_sets_and_dicts_changes_no_bit() -> None:
    hash_seed = "77" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(Path(busy_stream.__file__).parent)}
    done = subprocess.run([sys.executable, busy_stream.__file__], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected()


def test_another_seed_is_another_stream() -> None:
    assert digest(busy(seed=12)) != expected()


# -- the plane, put back at any step -------------------------------------------------------------------------------------


def walk(machine: TrainingMachine, start: int = 0, state: dict[str, Any] | None = None) -> Iterator[tuple[int, str]]:
    """The data plane alone, from a step on: step, what its batches are."""
    for phase in machine.schedule:
        assert phase.state is not None
        if start and phase.start > start:
            start = 0
        machine.objective.enter(phase.state.task)
        machine.data.enter(phase.state.data, lookahead=machine.objective.lookahead)
        if phase.stop <= start:
            continue
        first = max(phase.start, start)
        if state is not None:
            machine.data.load_state_dict(state)
            state = None
        machine.data.open(machine.schedule.moments(phase, first))
        for moment in machine.schedule.moments(phase, first):
            batches = machine.data.batches(moment)
            yield moment.step, str([{name: tensor.tolist() for name, tensor in batch.items()} for batch in batches])
    machine.data.end()


@cache
def whole() -> list[tuple[int, str]]:
    return list(walk(stackwise.assemble(plan_of(busy(read_ahead=0)))))


@walks(25)
@given(st.integers(1, 23), st.sampled_from([0, 1, 4]), st.sampled_from([0, 3]))
def test_the_state_at_any_step_leads_to_the_same_rest(cut: int, depth: int, depth_after: int) -> None:
    first = stackwise.assemble(plan_of(busy(read_ahead=depth)))
    steps = walk(first)
    for step, _ in steps:
        if step + 1 == cut:
            break
    state = json.loads(json.dumps(first.data.state_dict()))
    ledger = first.data.ledger()
    first.data.end()
    second = stackwise.assemble(plan_of(busy(read_ahead=depth_after)))
    rest = walk(second, cut, state)
    following = next(rest)
    assert following == whole()[cut]
    assert [following, *rest] == whole()[cut:]
    assert {name: line["rows"] for name, line in ledger.items()} == {name: line["rows"] for name, line in state["ledger"].items()}


@pytest.mark.slow
@pytest.mark.rare  # eight processes that import torch; two of them read and go on in the exposure below, and in test_every_key.py
def test_a_state_of_one_process_is_one_of_several() -> None:
    first = stackwise.assemble(plan_of(busy(read_ahead=2)))
    steps = walk(first)
    for step, _ in steps:
        if step == 12:
            break
    state = first.data.state_dict()
    first.data.end()
    assert list(walk(stackwise.assemble(plan_of(busy(workers=2, read_ahead=2))), 13, state)) == whole()[13:]


# -- what is exposed follows time, in every process and after every cut ------------------------------------------------


def exposing(**run: int) -> TrainingMachine:
    """Documents of rising length, ever more of them exposed while their rows grow."""
    source = {"use": "data.text-files", "paths": ["*.txt"], "rows": "padded", "difficulty": "length", "heldout": 0.0}
    config = busy(**run)
    config["data"] = {
        "sources": {"a": {**source, "exposed": {"piecewise": {"values": {"0%": 0.1, "25%": 0.5, "50%": 0.3, "75%": 1.0}}}}},
        "batch_size": 2,
        "seq_len": {"piecewise": {"values": {"0%": 16, "40%": 24}}},
    }
    config["model"]["embedding"].pop("vocab")
    return stackwise.assemble(plan_of({**config, "phases": None}))


def test_exposure_is_the_same_read_ahead_by_processes_and_after_a_cut(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    plain = list(walk(exposing(read_ahead=0)))
    assert list(walk(exposing(read_ahead=3))) == plain
    assert list(walk(exposing(read_ahead=1, workers=2))) == plain
    for cut in (1, 5, 6, 7, 12, 18, 23):
        first = exposing(read_ahead=2)
        steps = walk(first)
        assert [next(steps) for _ in range(cut)] == plain[:cut]
        state = json.loads(json.dumps(first.data.state_dict()))
        first.data.end()
        assert list(walk(exposing(read_ahead=2), cut, state)) == plain[cut:]


# -- a loader, cut at any row --------------------------------------------------------------------------------------------


LOADERS: dict[str, dict[str, Any]] = {
    "stream": {"use": "data.memory", "arrays": {"tokens": torch.arange(95)}},
    "rows": {"use": "data.memory", "arrays": {"tokens": torch.arange(77).view(11, 7)}},
    "text": {"use": "data.text-files", "paths": ["*.txt"]},
    "packed": {"use": "data.text-files", "paths": ["*.txt"], "rows": "packed"},
    "padded": {"use": "data.text-files", "paths": ["*.txt"], "rows": "padded"},
    "ranked": {"use": "data.text-files", "paths": ["*.txt"], "rows": "padded", "difficulty": "length", "exposed": 0.5},
}


def built(name: str) -> Any:
    """A loader, as a run would build it."""
    options = {key: value for key, value in LOADERS[name].items() if key != "use"}
    registered = registry().get("loader", LOADERS[name]["use"])
    context = stackwise.BuildContext(seed=9, max_rows=4, max_length=7)
    return registered.load_factory()(registered.load_options()(**options), context)


@pytest.mark.parametrize("name", LOADERS)
def test_a_loader_cut_three_times_at_any_row_goes_on_with_the_next(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)

    @walks(10)
    @given(st.lists(st.integers(1, 30), min_size=3, max_size=3))
    def check(cuts: list[int]) -> None:
        loader, read = built(name), []
        uncut = built(name)
        for cut in cuts:
            read += [str(loader.take(1, 7)) for _ in range(cut)]
            state = json.loads(json.dumps(loader.state_dict()))
            loader = built(name)
            loader.load_state_dict(state)
        read += [str(loader.take(2, 7)), str(loader.take(1, 5))]
        expected = [str(uncut.take(1, 7)) for _ in range(sum(cuts))]
        assert read == [*expected, str(uncut.take(2, 7)), str(uncut.take(1, 5))]

    check()
