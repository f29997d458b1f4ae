"""Wrong data anywhere on the timeline, and sources that end too soon, end a run before its first step and are told with their place."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from tiny_walks import VOCAB, base, drive, machine_of, memory, plan_of, problems_of, stream

import stackwise
from stackwise.contracts.specs import BatchSpec, TensorSpec
from stackwise.curriculum.bridges import Bridge
from stackwise.curriculum.parts import Part
from stackwise.curriculum.states import BatchShape, DataState
from stackwise.errors import ConfigError, DataError, UserError
from stackwise.planes.data.plane import DataPlane
from stackwise.timeline.duration import Moment
from stackwise.timeline.schedules import Curve

ROWS = np.arange(80, dtype=np.int64).reshape(10, 8) % VOCAB


def rows(high: int = VOCAB - 1, length: int = 8) -> dict[str, Any]:
    """A source of rows of ids whose greatest is `high`."""
    held = ROWS[:, :length].copy()
    held[-1, -1] = high
    return {"use": "data.memory", "arrays": {"tokens": held}}


WRONG = [
    ({"sources": {"b": {"use": "data.memory", "arrays": {"tokens": [1, 2, 3]}}}}, "data.sources.b: arrays.tokens: 3 tokens are fewer"),
    (
        {"sources": {"b": {"use": "data.memory", "arrays": {"tokens": [1] * 30 + [VOCAB]}}}},
        rf"data.sources.b: .*it holds the id {VOCAB};",
    ),
    (
        {"sources": {"b": rows(VOCAB + 3)}},
        rf"source 'b': 'tokens' holds values from 0 to {VOCAB + 3}, and the model takes 0 to {VOCAB - 1}",
    ),
    ({"transforms": [{"use": "data.feature-noise", "std": 1.0}]}, r"data\.transforms\.0: .*needs the field 'features'"),
    ({"sources": {"b": rows(length=4)}}, "source 'b': .*has no 5 entries along its second axis"),
    ({"sources": {"b": rows(-1)}}, "source 'b': 'tokens' holds values from -1 to"),
]
"""What the second phase reads, and what is said of it; the last two come up in the loader and in the check after it."""
READS_IN_A_PROCESS = (pytest.mark.slow, pytest.mark.rare)  # the check after the loader is in this process whoever reads


@pytest.mark.parametrize(
    ("data", "message", "workers"),
    [
        *((*case, 0) for case in WRONG),
        *(pytest.param(*case, 1, marks=mark) for case, mark in zip(WRONG[-2:], READS_IN_A_PROCESS, strict=True)),
    ],
)
def test_data_that_only_a_later_phase_reads_is_looked_at_first(data: dict[str, Any], message: str, workers: int) -> None:
    config = base(phases={"first": {"until": "50%"}, "second": {"data": data}})
    config["run"] = {**config["run"], "workers": workers}
    with pytest.raises(UserError, match=message):
        machine_of(config)


@pytest.mark.parametrize(
    ("where", "sections"),
    [
        ("phases.second.data.sources.x", {"phases": {"first": {"until": "50%"}, "second": {"data": {"sources": {"x": None}}}}}),
        ("evaluate.other.sources.x", {"evaluate": {"other": {"sources": {"x": None}}}}),
    ],
)
def test_files_that_are_missing_are_told_with_their_key(where: str, sections: dict[str, Any]) -> None:
    missing = {"use": "data.text-files", "paths": ["nothing/*"], "heldout": 0.5}
    innermost = sections.get("evaluate", {}).get("other") or sections["phases"]["second"]["data"]
    innermost["sources"]["x"] = missing
    config = base(**sections)
    config["model"]["embedding"]["vocab"] = 256
    with pytest.raises(DataError, match=rf"{re.escape(where)}: paths: no file matches"):
        machine_of(config)


def test_the_sizes_of_rows_and_model_agree_and_the_run_goes() -> None:
    drive(machine_of(base(data={"sources": {"a": rows()}, "batch_size": 2, "seq_len": 4})))


class Unsaid:
    """A loader that does not say what its values are; its third batch holds one too many."""

    def __init__(self) -> None:
        self.taken = 0

    def get_batch_spec(self) -> BatchSpec:
        return BatchSpec(fields={"tokens": TensorSpec("batch time", "int64")})

    def take(self, rows: int | None, length: int | None) -> dict[str, torch.Tensor]:
        self.taken += 1
        return {"tokens": torch.full((rows or 1, length or 1), 9 if self.taken == 3 else 8)}

    def state_dict(self) -> dict[str, Any]:
        return {"taken": self.taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.taken = state["taken"]


def test_values_of_which_nothing_is_said_are_looked_at_as_they_come() -> None:
    bridge = Bridge("source:a-task", "bounds", "", into="task", field="tokens", limits=(0, 9))
    plane = DataPlane(lambda name, part: Unsaid())
    shape = BatchShape.of(batch_size=2, seq_len=3)
    plane.enter(
        DataState(sources={"a": Part(kind="loader", id="x")}, mix={"a": Curve.constant(1.0)}, shapes=((0, shape),), bridges=(bridge,)),
        lookahead=0,
    )
    for step in range(2):
        plane.batches(Moment(step, 0.0, "run", 0, 0.0, 0))
    with pytest.raises(DataError, match="source 'a': 'tokens' holds values from 9 to 9, and the model takes 0 to 8"):
        plane.batches(Moment(2, 0.0, "run", 0, 0.0, 0))


def over_time(**values: float) -> dict[str, Any]:
    return {"piecewise": {"values": {f"{at[1:]}%": value for at, value in values.items()}}}


@pytest.mark.parametrize(
    ("mix", "path", "message"),
    [
        ({"a": over_time(_0=1, _50=0), "b": over_time(_0=0, _75=1)}, "data.mix", "every weight is zero at step 6:"),
        ({"a": {"linear": {"from": 0, "to": 1}}, "b": over_time(_0=0, _9=1)}, "data.mix", "every weight is zero at step 0:"),
        ({"a": {"linear": {"from": 1, "to": -1}}, "b": 1}, "data.mix.a", "a weight of -1 is below zero"),
        ({"a": over_time(_0=1, _50=0), "b": over_time(_0=0, _50=1)}, None, None),
        ({"a": {"linear": {"from": 1, "to": 0}}, "b": {"linear": {"from": 2, "to": 0}}}, None, None),
    ],
)
def test_at_every_step_some_source_has_a_weight_and_none_has_less_than_none(mix: Any, path: str | None, message: str | None) -> None:
    """Twelve steps: weights that fall to zero at the end of the run do so behind its last."""
    problems = problems_of(base(data={"sources": {"a": memory(), "b": memory(1)}, "mix": mix, "batch_size": 2, "seq_len": 4}))
    assert [problem.path for problem in problems] == ([] if path is None else [path])
    assert all(str(message) in problem.message for problem in problems)


def finite(entries: int, **options: Any) -> dict[str, Any]:
    """A stream that is read once; rows of 4 + 1 tokens are cut from it."""
    return {"use": "data.memory", "arrays": {"tokens": stream(entries)}, "repeat": False, **options}


def test_one_epoch_suffices_to_the_row() -> None:
    enough = base(data={"sources": {"a": finite(12 * 2 * 5)}, "batch_size": 2, "seq_len": 4})
    assert len(drive(machine_of(enough))) > 12
    with pytest.raises(
        ConfigError,
        match=r"data\.sources\.a: one epoch of 119 entries .*reads 24 rows, 1\.01 epochs; enough for 23: .* to 11 steps",
    ):
        plan_of(base(data={"sources": {"a": finite(12 * 2 * 5 - 1)}, "batch_size": 2, "seq_len": 4}))
    shorter = base(data={"sources": {"a": finite(12 * 2 * 5 - 1)}, "batch_size": 2, "seq_len": 4})
    plan_of({**shorter, "run": {**base()["run"], "horizon": "11 steps"}})


def test_what_phases_read_of_one_source_adds_up_and_another_one_begins_anew() -> None:
    half, other = 6 * 2 * 5, {"data": {"sources": {"a": finite(61)}}}
    phases: dict[str, Any] = {"first": {"until": "50%"}, "second": {"optimizer": {"lr": 0.001}}}
    data = {"sources": {"a": finite(half)}, "batch_size": 2, "seq_len": 4}
    plan_of(base(data=data, phases={**phases, "second": other}))
    with pytest.raises(ConfigError, match=r"one epoch of 60 entries .*24 rows, 2\.00 epochs"):
        plan_of(base(data=data, phases=phases))


@pytest.mark.parametrize(("others", "rows"), [(2, 8), (4, 5)])
def test_of_a_mixture_every_row_that_may_come_is_there(others: int, rows: int) -> None:
    """Of 24 rows a third, or 4.8 of which the fifth may come."""
    data = {"batch_size": 2, "seq_len": 4, "mix": {"a": 1, "b": others}}
    drive(machine_of(base(data={**data, "sources": {"a": finite(rows * 5), "b": memory(1)}})))
    with pytest.raises(ConfigError, match=rf"data\.sources\.a: one epoch of {rows * 5 - 1} entries .*reads {rows} rows"):
        plan_of(base(data={**data, "sources": {"a": finite(rows * 5 - 1), "b": memory(1)}}))


def test_a_size_that_shows_only_when_read_counts_as_well(tmp_path: Any) -> None:
    (tmp_path / "few.jsonl").write_text("\n".join(f'{{"text": "number {i}"}}' for i in range(9)), encoding="utf-8")
    source = {
        "use": "data.jsonl",
        "paths": [str(tmp_path / "few.jsonl")],
        "text": "text",
        "rows": "padded",
        "repeat": False,
        "heldout": 0.0,
    }
    config = base(data={"sources": {"a": source}, "batch_size": 2, "seq_len": 4})
    config["model"]["embedding"]["vocab"] = 256
    plan = plan_of(config)
    with pytest.raises(
        ConfigError, match=re.escape("one epoch of 9 rows is all that it gives, as it does not repeat, and the run reads 24")
    ):
        stackwise.assemble(plan)
