"""One epoch of a source that does not repeat: every row once, the last batch with those that are left."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_walks import base, drive, machine_of, plan_of, problems_of

import stackwise
from stackwise import ConfigError, StepDone

ROWS, BATCH, LENGTH = 23, 4, 6


@pytest.fixture(autouse=True)
def lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = "".join(json.dumps({"text": chr(ord("a") + i) * (3 + i % 3)}) + "\n" for i in range(ROWS))
    Path("rows.jsonl").write_text(text)


def declared(horizon: str = "1 epoch", source: dict[str, Any] | None = None, **sections: Any) -> dict[str, Any]:
    own = {
        "use": "data.jsonl",
        "paths": ["rows.jsonl"],
        "text": "text",
        "rows": "padded",
        "heldout": 0.0,
        "repeat": False,
        **(source or {}),
    }
    data = {"sources": {"a": own}, "batch_size": BATCH, "seq_len": LENGTH, **sections.pop("data", {})}
    config = base(data=data, **sections)
    config["run"] = {**config["run"], "horizon": horizon, **sections.get("run", {})}
    config["model"]["embedding"] = {"use": "transformer.token", "vocab": 256}
    return config


def first_letters(machine: stackwise.TrainingMachine) -> list[list[int]]:
    """The first token of every row of every step."""
    read = []
    original = machine.data.batches

    def batches(moment: Any) -> Any:
        made = original(moment)
        read.append([int(row[0]) for batch in made for row in batch["tokens"]])
        return made

    machine.data.batches = batches  # type: ignore[method-assign]
    drive(machine)
    return read


@pytest.mark.parametrize("run", [{}, {"workers": 2}, {"read_ahead": 3}], ids=["here", "readers", "ahead"])
def test_every_row_is_read_once_and_the_last_batch_has_those_that_are_left(run: dict[str, Any]) -> None:
    machine = machine_of(declared(run=run))
    read = first_letters(machine)
    assert [len(step) for step in read] == [4, 4, 4, 4, 4, 3]
    assert sorted(letter for step in read for letter in step) == [ord("a") + i for i in range(ROWS)]
    assert machine.data.ledger() == {"a": {"rows": ROWS, "tokens": ROWS * LENGTH}}
    assert machine.schedule.clock.tokens(6) == ROWS * LENGTH and machine.schedule.clock.t(5) == pytest.approx(20 / 23)


def test_the_last_step_is_the_mean_over_its_own_targets_and_steps_as_one_batch_of_them_would() -> None:
    """The loss of step 5 against the model as it was before it, over the rows that are left, by hand."""
    machine = machine_of(declared(optimizer={"use": "optim.adamw", "lr": 0.0}))
    kept: list[Any] = []
    original = machine.data.batches
    machine.data.batches = lambda moment: kept.append(original(moment)) or kept[-1]  # type: ignore[method-assign,func-returns-value]
    done = [event for event in machine.train() if isinstance(event, StepDone)]
    (batch,) = kept[-1]
    model = machine.model.model.eval()
    with torch.no_grad():
        logits = model({"tokens": batch["tokens"][:, :-1]})["logits"]
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch["tokens"][:, 1:], reduction="none")
    mask = batch["mask"][:, 1:] if "mask" in batch else torch.ones_like(losses)
    assert len(batch["tokens"]) == 3 and done[-1].loss == pytest.approx(float((losses * mask).sum() / mask.sum()), rel=1e-5)


@pytest.mark.parametrize("stop", range(6))
def test_a_stop_at_any_step_reads_the_rest(stop: int) -> None:
    machine, saved, whole = machine_of(declared()), None, []
    for event in machine.train():
        if isinstance(event, StepDone):
            whole.append(event.loss)
            if event.step == stop:
                saved = deepcopy(machine.state())
    assert saved is not None
    resumed = machine_of(declared())
    resumed.restore(saved)
    assert [event.loss for event in resumed.train() if isinstance(event, StepDone)] == whole[stop + 1 :]


def test_a_horizon_of_as_many_steps_says_how_to_read_the_rest() -> None:
    counted = declared(f"{ROWS // BATCH + 1} steps")
    with pytest.raises(
        ConfigError, match=r"to 5 steps, which fill whole batches, or to `horizon: 1 epoch`, whose last step has the 3 rows"
    ):
        stackwise.assemble(plan_of(counted))


@pytest.mark.parametrize(
    "data", [{"accumulate": 2}, {"step_tokens": 2 * BATCH * LENGTH}, {"batch_size": {"piecewise": {"values": {"0%": 4, "50%": 5}}}}]
)
def test_steps_of_several_micro_batches_or_sizes_are_refused_as_before(data: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="does not repeat"):
        plan_of(declared(data=data))


def test_more_than_an_epoch_is_refused_and_less_or_what_repeats_is_as_it_was() -> None:
    with pytest.raises(ConfigError, match="does not repeat"):
        plan_of(declared("2 epochs"))
    assert [phase.stop for phase in plan_of(declared("20 samples")).schedule] == [5]
    repeats = plan_of(declared(source={"repeat": True})).schedule
    assert repeats.clock.steps == 6 and repeats.clock.tokens(6) == 6 * BATCH * LENGTH


def test_phases_of_one_source_share_its_epoch() -> None:
    plan = plan_of(declared(phases={"first": {"until": "50%"}, "second": {"optimizer": {"lr": 0.001}}}))
    assert plan.schedule.clock.tokens(6) == ROWS * LENGTH


def test_a_mistake_elsewhere_is_told_alone_where_epochs_count() -> None:
    sound = base(run={"name": "t", "seed": 1, "horizon": "2 epochs", "device": "cpu"})
    model, data = sound["model"], sound["data"]
    heads = {**sound, "model": {**model, "rack": {**model["rack"], "heads": "two"}}}
    assert [problem.path for problem in problems_of(heads)] == ["model.rack.heads"]
    paths = {**sound, "data": {**data, "sources": {"a": {"use": "data.text-files", "paths": "a.txt"}}}}
    assert [problem.path for problem in problems_of(paths)] == ["data.sources.a.paths"]
