"""The training machine on models whose gradients can be worked out apart from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isnan, nan
from time import process_time, sleep
from typing import Any

import pytest
import torch
from how_many import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_walks import base, drive, machine_of, moments, same_tensors, stream, weights
from torch import nn

import stackwise
from stackwise import DataError, Evaluated, Moment, PhaseSchedule, RunFinished, StepDone, TaskSpec, TrainingHalted, UserError
from stackwise.machine.machine import TrainingMachine
from stackwise.machine.settings import Settings


class Weighted:
    """Weighted squared error; `loss` returns the sum over targets and the sum of their weights."""

    def get_spec(self) -> TaskSpec:
        return TaskSpec(batch={}, inputs={}, outputs={})

    def prepare(self, batch: Any, moment: Any, generator: torch.Generator) -> Any:
        return batch

    def loss(self, outputs: torch.Tensor, batch: Mapping[str, torch.Tensor]) -> Any:
        errors = (outputs.squeeze(-1) - batch["y"]).square() * batch["w"]
        return errors.sum(), batch["w"].sum(), {}


class Line(nn.Module):
    """x → w·x + b."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.map = nn.Linear(3, 1)

    def forward(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        out: torch.Tensor = self.map(batch["x"])
        return out


def rows(count: int, seed: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.rand(count, generator=generator) + 0.1
    return {"x": torch.randn(count, 3, generator=generator), "y": torch.randn(count, generator=generator), "w": weight}


def by_hand(batches: list[dict[str, torch.Tensor]], steps: int, clip: float | None = None) -> tuple[Line, list[float], list[float]]:
    """The same training as a loop of six lines, clipped by torch."""
    model, losses, norms = Line(), [], []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for k in range(steps):
        total, weight, _ = Weighted().loss(model(batches[k]), batches[k])
        (total / weight).backward()
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), clip if clip is not None else 1e9)))
        optimizer.step()
        optimizer.zero_grad()
        losses.append((total / weight).item())
    return model, losses, norms


def simple(batches: Any, steps: int, model: nn.Module | None = None, **options: Any) -> TrainingMachine:
    model = model or Line()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    settings = Settings(**options)
    schedule = PhaseSchedule.single(steps=steps)
    return TrainingMachine(model=model, data=batches, task=Weighted(), optimizer=optimizer, schedule=schedule, settings=settings)


def test_the_machine_trains_as_a_loop_by_hand_does() -> None:
    batches = [rows(4, seed) for seed in range(6)]
    machine = simple(batches, 6)
    steps = [event for event in machine.train() if isinstance(event, StepDone)]
    model, losses, norms = by_hand(batches, 6)
    assert [event.loss for event in steps] == pytest.approx(losses)
    assert [event.grad_norm for event in steps] == pytest.approx(norms)
    for own, other in zip(machine.model.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(own, other)


class Cut:
    """A loader that cuts one batch after another into parts of uneven sizes, one a `take`."""

    def __init__(self, whole: list[dict[str, torch.Tensor]], sizes: list[int]) -> None:
        self.parts = [part for batch in whole for part in _split(batch, sizes)]

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return iter(self.parts)


def _split(batch: dict[str, torch.Tensor], sizes: list[int]) -> list[dict[str, torch.Tensor]]:
    columns = {name: tensor.split(sizes) for name, tensor in batch.items()}
    return [{name: column[i] for name, column in columns.items()} for i in range(len(sizes))]


@settings(max_examples=examples(20))
@given(st.lists(st.integers(1, 6), min_size=2, max_size=4))
def test_accumulation_equals_the_full_batch_whatever_the_sizes_and_weights(sizes: list[int]) -> None:
    whole = [rows(sum(sizes), seed) for seed in range(3)]
    machine = simple(Cut(whole, sizes), 3)
    deliver = machine.data.batches
    machine.data.batches = lambda moment: [deliver(moment)[0] for _ in sizes]  # type: ignore[method-assign]
    steps = [event for event in machine.train() if isinstance(event, StepDone)]
    model, losses, norms = by_hand(whole, 3)
    assert [event.loss for event in steps] == pytest.approx(losses, rel=1e-5)
    assert [event.grad_norm for event in steps] == pytest.approx(norms, rel=1e-5)
    for own, other in zip(machine.model.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-6)


def test_accumulation_of_a_declared_run_equals_the_larger_batch() -> None:
    def data(batch_size: int, accumulate: int) -> dict[str, Any]:
        source = {"use": "data.memory", "arrays": {"tokens": stream()}, "shuffle": False}
        return {"sources": {"a": source}, "batch_size": batch_size, "accumulate": accumulate, "seq_len": 4}

    whole = [e for e in drive(machine_of(base(data=data(6, 1)))) if isinstance(e, StepDone)]
    parts = [e for e in drive(machine_of(base(data=data(2, 3)))) if isinstance(e, StepDone)]
    assert [e.tokens for e in whole] == [e.tokens for e in parts]
    assert [e.loss for e in whole] == pytest.approx([e.loss for e in parts], rel=1e-4)
    assert [e.grad_norm for e in whole] == pytest.approx([e.grad_norm for e in parts], rel=1e-3)


@pytest.mark.parametrize("clip", [0.05, 0.5, 1e6])
def test_clipping_is_torchs(clip: float) -> None:
    batches = [rows(4, seed) for seed in range(5)]
    machine = simple(batches, 5)
    machine.optimizer.clip = clip
    steps = [event for event in machine.train() if isinstance(event, StepDone)]
    model, _, norms = by_hand(batches, 5, clip)
    assert [event.grad_norm for event in steps] == pytest.approx(norms, rel=1e-4)
    for own, other in zip(machine.model.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-6)


def test_waiting_takes_time_and_no_processor() -> None:
    machine = simple([rows(4, seed) for seed in range(5)], 5)
    deliver = machine.data.batches

    def waiting(moment: Moment) -> list[dict[str, torch.Tensor]]:
        sleep(0.2)
        return deliver(moment)

    machine.data.batches = waiting  # type: ignore[method-assign, assignment]
    before = process_time()
    *_, done = machine.train()
    assert isinstance(done, RunFinished)
    assert done.seconds > 1 and 0 < done.cpu_seconds < min(done.seconds - 0.9, process_time() - before)
    assert machine.state()["cpu_seconds"] == done.cpu_seconds


# -- steps that are not finite -----------------------------------------------------------------------------------------


def poisoned(bad: set[int], steps: int, value: float = nan) -> list[dict[str, torch.Tensor]]:
    batches = [rows(4, seed) for seed in range(steps)]
    for k in bad:
        batches[k]["y"][2] = value
    return batches


@pytest.mark.parametrize("value", [nan, float("inf"), 3e38])
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(value: float) -> None:
    machine = simple(poisoned({2, 4}, 6, value), 6)
    held: list[tuple[dict[str, torch.Tensor], dict[str, dict[str, torch.Tensor]]]] = []
    events = []
    for event in machine.train():
        events.append(event)
        if isinstance(event, StepDone):
            held.append((weights(machine), moments(machine)))
            assert event.skipped == (event.step in {2, 4})
    for k in range(1, 6):
        assert same_tensors(held[k][0], held[k - 1][0]) == (k in {2, 4})
        assert all(same_tensors(held[k][1][name], held[k - 1][1][name]) for name in held[k][1]) == (k in {2, 4})
    done = events[-1]
    assert isinstance(done, RunFinished) and (done.skipped, done.steps) == (2, 6)
    assert machine.data.ledger()["data"]["rows"] == 24
    left_out = [batch for k, batch in enumerate(poisoned({2, 4}, 6, value)) if k not in {2, 4}]
    for own, other in zip(machine.model.model.parameters(), by_hand(left_out, 4)[0].parameters(), strict=True):
        torch.testing.assert_close(own, other)


def test_a_gradient_that_is_not_finite_beside_a_finite_loss_is_skipped_too() -> None:
    class Root(Weighted):
        def loss(self, outputs: torch.Tensor, batch: Mapping[str, torch.Tensor]) -> Any:
            return (outputs.squeeze(-1) * 0).abs().sqrt().sum(), 1.0, {}

    model = Line()
    before = [p.detach().clone() for p in model.parameters()]
    machine = TrainingMachine(
        model=model,
        data=[rows(2)],
        task=Root(),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        schedule=PhaseSchedule.single(steps=2),
    )
    steps = [event for event in machine.train() if isinstance(event, StepDone)]
    assert all(event.loss == 0.0 and isnan(event.grad_norm) and event.skipped for event in steps)
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("halt_after", [1, 2, 3])
def test_training_halts_after_so_many_in_a_row(halt_after: int) -> None:
    machine = simple(poisoned({1, 4, 5, 7, 8, 9}, 12), 12, halt_after=halt_after)
    steps: list[StepDone] = []
    with pytest.raises(TrainingHalted, match=f"{halt_after} steps in a row, last at step") as caught:
        steps.extend(event for event in machine.train() if isinstance(event, StepDone))
    assert machine.step == {1: 2, 2: 6, 3: 10}[halt_after]
    assert caught.value.exit_code == 4


def without_targets(count: int) -> dict[str, torch.Tensor]:
    return {**rows(count), "w": torch.zeros(count)}


@pytest.mark.parametrize("micro", [1, 2])
def test_a_step_without_any_target_changes_nothing_and_is_counted_apart(micro: int) -> None:
    machine = simple([without_targets(4), without_targets(4), rows(4), without_targets(4)], 4, halt_after=1)
    deliver = machine.data.batches
    machine.data.batches = lambda moment: deliver(moment) * micro  # type: ignore[method-assign]
    held = [weights(machine)]
    events = list(machine.train())
    for event in events:
        if isinstance(event, StepDone):
            held.append(weights(machine))
    steps = [event for event in events if isinstance(event, StepDone)]
    assert [step.skipped for step in steps] == [True, True, False, True]
    assert {step.why for step in steps if step.skipped} == {"it has no target"}
    assert isinstance(events[-1], RunFinished) and (events[-1].skipped, events[-1].without_targets) == (0, 3)


def test_data_without_any_target_are_the_users_mistake() -> None:
    with pytest.raises(DataError, match="100 steps in a row had no target"):
        list(simple([without_targets(4)] * 150, 150).train())
    with pytest.raises(DataError, match="none of the 3 steps"):
        list(simple([without_targets(4)] * 3, 3).train())


def test_a_loss_that_depends_on_nothing_trainable_is_the_users_mistake() -> None:
    class Blind(Weighted):
        def loss(self, outputs: torch.Tensor, batch: Mapping[str, torch.Tensor]) -> Any:
            return torch.zeros((), requires_grad=True) + 1, 1.0, {}

    model = Line()
    machine = TrainingMachine(
        model=model,
        data=[rows(2)],
        task=Blind(),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        schedule=PhaseSchedule.single(steps=2),
    )
    with pytest.raises(UserError, match="the loss does not depend on what is trained"):
        drive(machine)


# -- evaluations, dropout, events ----------------------------------------------------------------------------------------


def evaluated(events: list[Any]) -> list[Evaluated]:
    return [event for event in events if isinstance(event, Evaluated)]


def with_heldout(**sections: Any) -> dict[str, Any]:
    data = {"sources": {"a": {"use": "data.memory", "arrays": {"tokens": stream()}, "heldout": 0.2}}, "batch_size": 2, "seq_len": 4}
    return base(data=data, **sections)


def test_an_evaluation_of_an_unchanged_model_stands_still_and_is_the_mean_by_hand() -> None:
    config = with_heldout(evaluate={"e": {"every": "2 steps", "batches": 3}}, optimizer={"use": "optim.adamw", "lr": 0})
    config["model"]["rack"]["dropout"] = 0.5
    machine = machine_of(config)
    found = evaluated(drive(machine))
    machine.model.model.eval()
    assert len(found) == 7
    assert all(event.metrics == found[0].metrics for event in found)
    logits = [machine.model.model({"tokens": rows[:, :-1]})["logits"] for rows in _rows_of(machine)]
    losses = [
        nn.functional.cross_entropy(x.flatten(0, 1), rows[:, 1:].flatten()) for x, rows in zip(logits, _rows_of(machine), strict=True)
    ]
    assert found[0].metrics["loss"] == pytest.approx(sum(loss.item() for loss in losses) / 3, rel=1e-5)
    assert found[0].metrics["bits_per_token"] == pytest.approx(found[0].metrics["loss"] / 0.6931471805599453)


def _rows_of(machine: TrainingMachine) -> list[torch.Tensor]:
    evaluation = machine.evaluations["e"]
    evaluation.data.enter(evaluation.state, lookahead=1)
    start = evaluation.data.state_dict()
    rows = [evaluation.data.batches(machine.schedule.at(step=0))[0]["tokens"] for _ in range(3)]
    evaluation.data.load_state_dict(start)
    return rows


def test_evaluations_and_observers_change_no_bit_of_training() -> None:
    dropout = {"use": "transformer.decoder", "width": 8, "heads": 2, "stacks": [{"base": 2}], "dropout": 0.3}
    plain = with_heldout()
    plain["model"]["rack"] = dropout
    often = {**plain, "evaluate": {"e": {"every": "1 steps", "batches": 2}, "f": {"every": "5 steps", "batches": 1}}}
    alone, watched = machine_of(plain), machine_of(often)
    first = [e for e in drive(alone) if isinstance(e, StepDone)]
    second = []
    for event in watched.train():
        torch.rand(3)
        torch.manual_seed(5)
        if isinstance(event, StepDone):
            second.append(event)
    assert [e._replace(seconds=0) for e in first] == [e._replace(seconds=0) for e in second]
    assert same_tensors(weights(alone), weights(watched))
    assert alone.data.state_dict() == watched.data.state_dict()


def test_dropout_that_follows_time_reaches_the_forward_pass() -> None:
    rack = {"use": "transformer.decoder", "width": 8, "heads": 2, "stacks": [{"base": 2}]}
    rack["dropout"] = {"linear": {"from": 0.5, "to": 0}}
    machine = machine_of(base(model={**base()["model"], "rack": rack}))
    seen = [machine.model.model.rack.dropout for event in machine.train() if isinstance(event, StepDone)]
    assert seen == pytest.approx([0.5 * (1 - k / 12) for k in range(12)])


def test_an_evaluation_leaves_every_module_in_its_mode() -> None:
    machine = machine_of(with_heldout(evaluate={"e": {"batches": 1}}))
    for event in machine.train():
        if isinstance(event, StepDone):
            assert all(module.training for module in machine.model.model.modules())


def test_a_finished_optimizer_over_other_parameters_is_refused() -> None:
    model = Line()
    with pytest.raises(UserError, match="must hold each trainable parameter once"):
        TrainingMachine(
            model=model,
            data=[rows(2)],
            task=Weighted(),
            optimizer=torch.optim.SGD([model.map.weight], lr=1),
            schedule=PhaseSchedule.single(steps=1),
        )


def test_the_face_offers_the_machine() -> None:
    assert stackwise.TrainingMachine is TrainingMachine
