"""What holds at every step and boundary of every curriculum (the invariants of the design, over random small ones)."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given
from random_curricula import Curriculum, curricula, walks
from tiny_walks import boundaries, drive, held, machine_of, moments, same_tensors, watch_batches, weights

from stackwise.contracts.events import Event, PhaseEntered, StepDone

ADAMW = ("exp_avg", "exp_avg_sq", "step")


@walks(20)
@given(curricula())
def test_the_step_index_alone_decides_the_phase_and_no_batch_straddles_a_boundary(drawn: Curriculum) -> None:
    machine = machine_of(drawn.config())
    delivered: dict[int, list[tuple[int, ...]]] = {}
    watch_batches(machine, lambda step, batches: delivered.update({step: [tuple(b["tokens"].shape) for b in batches]}))
    steps = [event for event in machine.train() if isinstance(event, StepDone)]
    expected = [i for i, segment in enumerate(drawn.segments) for _ in range(segment.steps)]
    assert [event.phase for event in steps] == [f"p{i}" for i in expected]
    for step, index in enumerate(expected):
        own = drawn.segments[index]
        assert delivered[step] == [(own.batch_size, own.seq_len + 1)] * own.accumulate


@walks(25)
@given(curricula())
def test_what_a_boundary_does_not_name_is_kept_bit_for_bit(drawn: Curriculum) -> None:
    machine = machine_of(drawn.config())
    for index, (before, entered, after) in enumerate(boundaries(machine), start=1):
        assert entered.step == drawn.starts[index]
        assert (after.positions, after.ledger) == (before.positions, before.ledger)
        for name, tensor in after.weights.items():
            origin = drawn.origin(index, name)
            if origin is not None:
                assert torch.equal(tensor, before.weights[origin]), name
            if origin == name:
                assert after.identities[name] == before.identities[name], name
                assert (name in after.moments) == (name in before.moments), name
                assert name not in before.moments or same_tensors(after.moments[name], before.moments[name]), name


@walks(25)
@given(curricula())
def test_moments_follow_the_parameters_and_fresh_ones_count_their_own_steps(drawn: Curriculum) -> None:
    machine = machine_of(drawn.config())
    age: dict[str, int] = {}
    for event in machine.train():
        if isinstance(event, PhaseEntered) and event.phase_index:
            own = drawn.segments[event.phase_index]
            names = [name for name, _ in machine.model.model.named_parameters()]
            origins = {name: drawn.origin(event.phase_index, name) for name in names}
            kept = {name: o for name, o in origins.items() if o is not None and (o == name or own.moments == "copy")}
            age = {name: age[origin] for name, origin in kept.items() if origin in age}
        elif isinstance(event, StepDone):
            for name in machine.model.trainable():
                age[name] = age.get(name, 0) + 1
        assert {name: int(state["step"]) for name, state in moments(machine).items()} == age


@walks(20)
@given(curricula())
def test_trainable_parameters_and_optimizer_parameters_are_one_set_by_identity_each_once(drawn: Curriculum) -> None:
    machine = machine_of(drawn.config())
    for event in machine.train():
        if not isinstance(event, PhaseEntered | StepDone):
            continue
        ids = [id(p) for p in held(machine)]
        assert len(ids) == len(set(ids))
        assert set(ids) == {id(p) for p in machine.model.model.parameters() if p.requires_grad}
        model = machine.model.model
        assert (model.head.weight is model.embedding.weight) == drawn.tied


@walks(20)
@given(curricula())
def test_frozen_parameters_do_not_move_by_one_bit_and_thawed_ones_learn_at_once(drawn: Curriculum) -> None:
    machine = machine_of(drawn.config())
    before: dict[str, torch.Tensor] = {}
    grads: dict[str, bool] = {}
    _watch_gradients(machine, grads)
    for event in machine.train():
        if isinstance(event, PhaseEntered):
            before = weights(machine)
        if isinstance(event, StepDone):
            frozen = {name for name, p in machine.model.model.named_parameters() if not p.requires_grad}
            trained = machine.model.trainable()
            now = weights(machine)
            assert all(torch.equal(now[name], before[name]) for name in frozen)
            assert grads == {name: name in trained for name in now}
            assert frozen or not drawn.segments[int(event.phase[1:])].freeze


def _watch_gradients(machine: Any, seen: dict[str, bool]) -> None:
    """Before each update, note which parameters hold a gradient."""
    step = machine._train_step

    def observed(moment: Any) -> Any:
        optimizer = machine.optimizer.optimizer
        hook = optimizer.register_step_pre_hook(
            lambda *_: (seen.clear(), seen.update({n: p.grad is not None for n, p in machine.model.model.named_parameters()}))[1]
        )
        try:
            return step(moment)
        finally:
            hook.remove()

    machine._train_step = observed


@walks(15)
@given(curricula(growths=("identity",)))
def test_identity_growth_changes_no_output(drawn: Curriculum) -> None:
    machine = machine_of(drawn.config())
    probe = {"tokens": torch.arange(10).reshape(2, 5)}
    last = None
    for event in machine.train():
        if isinstance(event, PhaseEntered | StepDone):
            with torch.no_grad():
                logits = machine.model.model(probe)["logits"]
            shrinks = isinstance(event, PhaseEntered) and event.dropped
            if isinstance(event, PhaseEntered) and last is not None and not shrinks:
                assert torch.equal(logits, last)
            last = logits


def timeless(event: Event) -> Event:
    return event._replace(**dict.fromkeys({"seconds", "cpu_seconds"} & {*event._fields}, 0.0))


@walks(10)
@given(curricula())
def test_the_same_seed_gives_the_same_run_bit_for_bit(drawn: Curriculum) -> None:
    first, second = machine_of(drawn.config()), machine_of(drawn.config())
    one = [timeless(e) for e in drive(first)[1:]]
    torch.manual_seed(99)
    torch.rand(7)
    two = [timeless(e) for e in drive(second)[1:]]
    assert one == two
    assert same_tensors(weights(first), weights(second))
    assert all(key in ADAMW for state in moments(first).values() for key in state)
