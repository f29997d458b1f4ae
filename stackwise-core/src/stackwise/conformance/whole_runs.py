"""A component at work: planned, assembled and trained by the core between neutral partners, with one growth where that is possible."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import torch

from stackwise.assembly.machine import assemble
from stackwise.assembly.planning import make_plan
from stackwise.config import experiment
from stackwise.conformance import bench, partners
from stackwise.conformance.building import artifact_of
from stackwise.conformance.growth import OLD, grown_stacks
from stackwise.conformance.parameter_growth import change_of
from stackwise.conformance.reactions import watched_metrics
from stackwise.conformance.subject import LENGTH, OPEN_SIZE, ROWS, SEED, STEPS, NotApplicable, Subject, must
from stackwise.contracts.components import Built
from stackwise.contracts.events import StepDone
from stackwise.contracts.growth import ParameterGrowth
from stackwise.contracts.options import config_key
from stackwise.contracts.specs import AT_ENTRY, GIVEN, BatchSpec, EmbeddingSpec, HeadSpec, RackSpec, TaskSpec
from stackwise.errors import TrainingHalted, UserError
from stackwise.machine.machine import TrainingMachine

STOP, LONG_RUN = 12, 72
"""Step after which a run stops, and the steps of the whole: what counts calls may act only after fifty."""


def check_trains(subject: Subject) -> None:
    """A run that names the component in its config is planned, assembled and trained to its end.

    Usual cause: a spec that fits nothing beside it; an option that the example leaves open and no neighbour can fill.
    """
    if subject.kind == "loader" and subject.spec() is None:
        raise NotApplicable("only the loader that is built knows its fields, so nothing can be joined to it before")
    try:
        steps = list(_steps(_machine(subject)))
    except UserError:
        if subject.kind != "growth" or not isinstance(artifact_of(subject), ParameterGrowth):
            raise
        steps = list(_steps(_grown(subject)))  # it makes no change of depth alone
    must(len(steps) == STEPS, f"{len(steps)} of {STEPS} steps were made")


def check_interrupted_equals_uninterrupted(subject: Subject) -> None:
    """A run that stops and goes on from what it saved makes the same steps as one that never stopped.

    Usual cause: something that counts calls or remembers the last batch outside of parameters and buffers, or, in a task or a
    transform, outside of what its `state_dict` gives.
    """
    machine = _machine(subject, LONG_RUN)
    state: dict[str, Any] = {}
    expected = []
    for event in _steps(machine):
        if event.step >= STOP:
            expected.append((event.step, event.loss, event.grad_norm))
        elif event.step + 1 == STOP:
            state = bench.copy_of(machine.state())
    second = _machine(subject, LONG_RUN)
    second.restore(state)
    for before, event in zip(expected, _steps(second), strict=True):
        after = (event.step, event.loss, event.grad_norm)
        sentence = f"after stopping at step {STOP}, step {event.step} has the loss {event.loss:.9g}, and {before[1]:.9g} without stopping"
        must(after == before, sentence)


def _steps(machine: TrainingMachine) -> Iterator[StepDone]:
    """The steps of a run. A run that halts because its numbers are not finite is reported by another check."""
    try:
        yield from (event for event in machine.train() if isinstance(event, StepDone))
    except TrainingHalted:
        raise NotApplicable("its steps are not finite, which check_finite_loss reports") from None


def _machine(subject: Subject, steps: int = STEPS) -> TrainingMachine:
    compiled = experiment(_config(subject, steps))
    return assemble(make_plan(compiled, subject.registry).with_tokenizers())


def _grown(subject: Subject) -> TrainingMachine:
    """A run over parts of a growth operator's own provider, in which it makes the change that it was found to make.

    Raises:
        NotApplicable: none was found.
    """
    change = change_of(subject)
    before, after = change.parts
    rack, head = before["rack"].spec(), before["head"].spec()
    assert isinstance(rack, RackSpec) and isinstance(head, HeadSpec), "check_spec_is_cold looks at the kind of spec"
    task = TaskSpec(
        batch=change.fields, inputs=change.fields, outputs=head.outputs, attention=rack.attention[0] if rack.attention else None
    )
    sections = _config(subject, STEPS) | {
        "task": _weighing(_task(task), before["rack"]),
        "data": {"sources": {"data": _loader(BatchSpec(fields=change.fields))}, "batch_size": ROWS, "seq_len": LENGTH},
        "model": {role: _own_node(part) for role, part in before.items()},
    }
    grown: dict[str, Any] = {"model": {role: dict(node) for role, node in change.grown.items() if node}}
    if losses := getattr(after["rack"].spec(), "losses", ()):
        grown["task"] = {"auxiliary": {f"rack.{name}": 1.0 for name in losses}}
    sections["phases"] = {"before": {"until": "50%"}, "after": {**grown, "enter": {"growth": _own_node(subject)}}}
    if not any("time" in field.dims for field in change.fields.values()):
        del sections["data"]["seq_len"]
    return assemble(make_plan(experiment(sections), subject.registry))


def _config(subject: Subject, steps: int) -> dict[str, Any]:
    """A config in which the subject stands in its place and neutral partners everywhere else."""
    around = bench.boundaries(subject)
    timed = any("time" in field.dims for field in around.batch.fields.values())
    sections: dict[str, Any] = {
        "run": {"name": "check", "seed": SEED, "horizon": f"{steps} steps", "device": "cpu", "read_ahead": 0},
        "task": _task(around.task),
        "data": {"sources": {"data": _loader(around.batch)}, "batch_size": ROWS, **({"seq_len": LENGTH} if timed else {})},
        "model": {"embedding": _embedding(subject, around), "rack": _rack(around.rack), "head": _head(around.head)},
        "optimizer": Built(torch.optim.Adam, lr=1e-3),
    }
    _put(sections, subject, _own_node(subject))
    return sections


def _own_node(subject: Subject) -> dict[str, Any]:
    return {"use": subject.registered.id, **subject.example, **_open_sizes(subject)}


def _own_rack(subject: Subject) -> Subject | None:
    """The first rack of a growth operator's own provider that a config can make deeper: the operator may be for it alone."""
    for registered in subject.registry:
        if registered.kind == "rack" and registered.provider == subject.registered.provider:
            options = registered.load_options()
            rack = attrs.evolve(subject, registered=registered)
            spec, deepens = rack.spec(), any(a.name == "stacks" and a.metadata.get("stacks") for a in attrs.fields(options))
            if deepens and not (isinstance(spec, RackSpec) and spec.losses):  # a config would have to weigh them
                return rack
    return None


def _put(sections: dict[str, Any], subject: Subject, own: dict[str, Any]) -> None:
    """Lay the subject's own node where its kind stands."""
    kind = subject.kind
    if kind == "task" and getattr(subject.spec(), "reference", None) == GIVEN:
        own = {**own, "reference": AT_ENTRY}
    match kind:
        case "embedding" | "rack" | "head":
            sections["model"][kind] = own
            sections["task"] = _weighing(sections["task"], subject)
        case "task" | "optimizer":
            sections[kind] = own
        case "loader":
            sections["data"]["sources"] = {"data": own}
        case "transform":
            sections["data"]["transforms"] = [own]
        case "adapter":
            sections["model"]["adapters"] = {"embedding-rack": [own]}
        case "weight-adapter":
            sections["model"]["weight_adapters"] = {"first": {**own, "select": ["rack"]}}
        case "reaction":
            sections["optimizer"] = {"use": sections["optimizer"], "reaction": own}
            names = sorted({metric.partition(".")[0] for metric in watched_metrics(subject)})
            sections["evaluate"] = {name: {"every": "2 steps", "batches": 1, "training_rows": True} for name in names}
        case "schedule":
            sections["optimizer"] = Built(torch.optim.SGD, lr=own)
        case "observer":
            sections["observers"] = [own]
        case "growth":
            if (rack := _own_rack(subject)) is not None:
                boundary = bench.boundaries(rack)
                sections["model"] |= {"embedding": _embedding(rack, boundary), "head": _head(boundary.head)}
                sections["model"]["rack"] = {**_own_node(rack), "stacks": [dict([each]) for each in OLD.items()]}
                sections["task"] = _weighing(sections["task"], rack)
            deeper = {"rack": {"stacks": [{name: blocks} for name, blocks in grown_stacks(subject).items()]}}
            sections["phases"] = {"shallow": {"until": "50%"}, "deep": {"model": deeper, "enter": {"growth": own}}}


def _weighing(task: Any, part: Subject) -> Any:
    """A task that weighs the losses which a part adds."""
    losses = getattr(part.spec(), "losses", ())
    return {"use": task, "auxiliary": {f"{part.kind}.{name}": 1.0 for name in losses}} if losses else task


def _open_sizes(subject: Subject) -> dict[str, int]:
    """Sizes for dimensions that the example leaves open, so that partners of a given size can be built beside."""
    draft = subject.draft()
    options = subject.registered.load_options()
    keys = {a.name: config_key(a) for a in attrs.fields(options)}
    return {keys[option]: OPEN_SIZE for option in draft.open_sizes.values()}


def make_rack(boundary: RackSpec, stacks: Mapping[str, int]) -> partners.NeutralRack:
    """A neutral rack as a config's callable."""
    return partners.NeutralRack(boundary, stacks)


def make_embedding(boundary: EmbeddingSpec, extra: Mapping[str, tuple[int, ...]]) -> partners.NeutralEmbedding:
    """A neutral embedding as a config's callable."""
    return partners.NeutralEmbedding(boundary, {name: tuple(shape) for name, shape in extra.items()})


def _rack(spec: RackSpec) -> Built:
    stacks = [{name: blocks} for name, blocks in bench.BLOCKS.items()]
    return Built(make_rack, spec=partners.rack_boundary(spec, bench.BLOCKS), boundary=spec, stacks=stacks)


def _embedding(subject: Subject, around: bench.Boundaries) -> Built:
    extra = bench.tied_parameters(subject, "embedding")
    return Built(make_embedding, spec=around.embedding, boundary=around.embedding, extra=extra)


def _head(spec: HeadSpec) -> Built:
    return Built(partners.NeutralHead, spec=spec, boundary=spec)


def _task(spec: TaskSpec) -> Built:
    return Built(partners.NeutralTask, spec=spec, boundary=spec)


def _loader(spec: BatchSpec) -> Built:
    return Built(partners.NeutralLoader, spec=spec, boundary=spec)
