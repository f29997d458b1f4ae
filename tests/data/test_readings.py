"""An evaluation that would read what training reads is refused by the plan, unless it says so; what is apart is taken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_walks import base, plan_of, problems_of

from stackwise import Reading

TEXT = {"use": "data.text-files"}
LINES = {"use": "data.jsonl", "text": "text"}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with files of text, of records and of arrays."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "many").mkdir()
    for i in range(30):
        (tmp_path / "many" / f"{i:02}.txt").write_text(f"text {i}\n" * 40)
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("".join(f"line {i} of {name}\n" for i in range(80)))
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps({"text": f"{name} {i}", "other": f"x {i}"}) + "\n" for i in range(60)))
    np.save(tmp_path / "a.npy", np.arange(400) % 200)
    np.save(tmp_path / "b.npy", np.arange(400) % 199)
    (tmp_path / "link.txt").symlink_to("a.txt")
    (tmp_path / "linked").symlink_to("many")
    for name in ("a.txt", "a.jsonl", "a.npy"):
        (tmp_path / f"copy-{name}").write_bytes((tmp_path / name).read_bytes())
    (tmp_path / "like.txt").write_text((tmp_path / "a.txt").read_text().replace("line 30", "line 99"))
    return tmp_path


def problems(training: dict[str, Any], own: dict[str, Any] | None, later: dict[str, Any] | None = None, **said: Any) -> list[str]:
    """The paths of what is wrong, the sources of training, of an evaluation alone and of a second phase being these."""
    config = base(evaluate={"held": {"batches": 1, **({} if own is None else {"sources": {"x": own}}), **said}})
    config["model"]["embedding"]["vocab"] = 256
    config["data"]["sources"] = {"a": training}
    if later is not None:
        config["phases"] = {"first": {"until": "50%"}, "second": {"data": {"sources": {"replace": {"b": later}}}}}
    return [problem.path for problem in problems_of(config)]


@pytest.mark.parametrize(
    ("training", "own", "meet"),
    [
        ({**TEXT, "paths": ["a.txt"], "heldout": 0}, {**TEXT, "paths": ["a.txt"]}, True),
        ({**TEXT, "paths": ["a.txt"]}, {**TEXT, "paths": ["./a.txt"]}, True),
        ({**TEXT, "paths": ["a.txt"]}, {**TEXT, "paths": ["link.txt"]}, True),
        ({**TEXT, "paths": ["many/0*.txt"]}, {**TEXT, "paths": ["linked/03.txt"]}, True),
        ({**TEXT, "paths": ["a.txt"]}, {**TEXT, "paths": ["b.txt"]}, False),
        ({**TEXT, "paths": ["a.txt"], "heldout": 0.2}, {**TEXT, "paths": ["a.txt"], "heldout": 0.2}, False),
        ({**TEXT, "paths": ["a.txt"], "heldout": 0.2}, {**TEXT, "paths": ["a.txt"], "heldout": 0.4}, True),
        ({**TEXT, "paths": ["many/*.txt"], "heldout": 0.4}, {**TEXT, "paths": ["many/*.txt"], "heldout": 0.2}, False),
        ({**TEXT, "paths": ["many/*.txt"], "heldout": 0.2}, {**TEXT, "paths": ["many/*.txt"], "heldout": 0.4}, True),
        ({**TEXT, "paths": ["many/*.txt"], "heldout": 0}, {**TEXT, "paths": ["many/07.txt"]}, True),
        ({**LINES, "paths": ["*.jsonl"], "heldout": 0}, {**LINES, "paths": ["b.jsonl"]}, True),
        ({**LINES, "paths": ["a.jsonl"]}, {**LINES, "paths": ["b.jsonl"]}, False),
        ({**LINES, "paths": ["*.jsonl"], "heldout": 0.3}, {**LINES, "paths": ["a.jsonl"], "heldout": 0.2}, False),
        ({**LINES, "paths": ["*.jsonl"], "heldout": 0.2}, {**LINES, "paths": ["a.jsonl"], "heldout": 0.3}, True),
        ({**LINES, "paths": ["a.jsonl"], "heldout": 0.3}, {**LINES, "text": "other", "paths": ["a.jsonl"], "heldout": 0.3}, True),
        ({**TEXT, "paths": ["a.jsonl"], "heldout": 0}, {**LINES, "paths": ["a.jsonl"]}, True),
        ({**TEXT, "paths": ["a.txt"]}, {**TEXT, "paths": ["copy-a.txt"]}, True),
        ({**TEXT, "paths": ["a.txt"]}, {**TEXT, "paths": ["like.txt"]}, False),
        ({**TEXT, "paths": ["a.txt"], "heldout": 0.2}, {**TEXT, "paths": ["copy-a.txt"], "heldout": 0.2}, False),
        ({**LINES, "paths": ["a.jsonl"]}, {**LINES, "paths": ["copy-a.jsonl"]}, True),
        ({**LINES, "paths": ["a.jsonl"], "heldout": 0.3}, {**LINES, "paths": ["copy-a.jsonl"], "heldout": 0.3}, False),
    ],
)
def test_files_that_both_read(training: dict[str, Any], own: dict[str, Any], meet: bool) -> None:
    assert problems(training, own) == (["evaluate.held.sources.x"] if meet else [])
    assert problems(training, own, training_rows=True) == ([] if meet else ["evaluate.held.training_rows"])


@pytest.mark.parametrize(
    ("share", "own", "meet"), [(0.0, 0.0, True), (0.25, 0.0, True), (0.25, 0.25, False), (0.25, 0.1, False), (0.1, 0.25, True)]
)
def test_arrays_that_both_read(share: float, own: float, meet: bool) -> None:
    files = [{"use": "data.array-files", "files": {"tokens": "a.npy"}, "heldout": part, "vocab": 256} for part in (share, own)]
    tokens = np.arange(400) % 200
    memory = [{"use": "data.memory", "arrays": {"tokens": tokens}, "heldout": part, "vocab": 256} for part in (share, own)]
    for training, evaluation in (files, memory):
        assert problems(training, evaluation) == (["evaluate.held.sources.x"] if meet else [])
    elsewhere = {"use": "data.array-files", "files": {"tokens": "b.npy"}, "vocab": 256}
    assert problems(files[0], elsewhere) == []
    copy = {**elsewhere, "files": {"tokens": "copy-a.npy"}}
    assert problems(files[0], copy) == ["evaluate.held.sources.x"]


def test_a_large_copy_is_told_from_a_file_of_the_same_size(here: Path) -> None:
    text = "".join(f"{i:07}\n" for i in range(100_000))
    for name, content in (("large.txt", text), ("again.txt", text), ("other.txt", text.replace("0050000", "x"))):
        (here / name).write_text(content.ljust(len(text)))
    training = {**TEXT, "paths": ["large.txt"]}
    assert problems(training, {**TEXT, "paths": ["again.txt"]}) == ["evaluate.held.sources.x"]
    assert problems(training, {**TEXT, "paths": ["other.txt"]}) == []


@pytest.mark.parametrize(("heldout", "meet"), [(0, True), (0.05, False), (0.2, False)])
def test_a_later_phase_that_trains_on_what_is_held_out(heldout: float, meet: bool) -> None:
    later = {**LINES, "paths": ["a.jsonl"], "heldout": heldout}
    assert problems({**LINES, "paths": ["a.jsonl"]}, None, later) == (["evaluate.held"] if meet else [])


def test_what_is_given_in_code_is_known_by_the_object() -> None:
    batches = [{"tokens": torch.zeros(2, 5, dtype=torch.long)} for _ in range(3)]
    others = [{"tokens": torch.zeros(2, 5, dtype=torch.long)} for _ in range(3)]
    config = base(data={"sources": {"a": batches}})
    told = [[p.path for p in problems_of(config, evaluate={"h": {"sources": {"x": each}}})] for each in (batches, others)]
    assert told == [["evaluate.h.sources.x"], []]
    plan = plan_of(config, evaluate={"h": {"sources": {"x": batches}, "training_rows": True}})
    assert plan.evaluations[0].training_rows


def test_loaders_of_one_dataset_read_the_same() -> None:
    from torch.utils.data import DataLoader, SubsetRandomSampler, random_split

    rows = [{"tokens": torch.zeros(5, dtype=torch.long)} for _ in range(8)]
    part, rest = random_split(rows, [4, 4])  # type: ignore[arg-type]
    some, others = ({"dataset": rows, "sampler": SubsetRandomSampler(range(4 * i, 4 * i + 4))} for i in (0, 1))
    told = []
    for one, other in (({"dataset": rows}, {"dataset": rows, "shuffle": True}), ({"dataset": part}, {"dataset": rest}), (some, others)):
        config = base(data={"sources": {"a": DataLoader(**one, batch_size=2)}})
        own = {"sources": {"x": DataLoader(**other, batch_size=2)}}
        told.append([problem.path for problem in problems_of(config, evaluate={"h": own})])
    assert told == [["evaluate.h.sources.x"], [], []]


@pytest.mark.parametrize(
    ("one", "other", "meet"),
    [
        (Reading("a"), Reading("a"), True),
        (Reading("a"), Reading("b"), False),
        (Reading("a", key=1), Reading("a", key=2), False),
        (Reading("a", 0.0, 0.5), Reading("a", 0.5, 1.0), False),
        (Reading("a", 0.0, 0.6), Reading("a", 0.5, 1.0), True),
        (Reading("a", 0.0, 0.5, "x"), Reading("a", 0.5, 1.0, "y"), True),
        (Reading("a", 0.0, 0.0), Reading("a"), False),
    ],
)
def test_two_readings_meet(one: Reading, other: Reading, meet: bool) -> None:
    assert one.meets(other) is other.meets(one) is meet
