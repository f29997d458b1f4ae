"""What the model gets: the first step of every phase as its task prepares it, without a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, suppress

import torch
from attrs import frozen

from stackwise.assembly.workshop import Workshop
from stackwise.contracts.generation import HasTextCodec, TextCodec
from stackwise.contracts.protocols import Batch
from stackwise.contracts.specs import BatchSpec
from stackwise.curriculum.schedule import CompiledPhase
from stackwise.errors import UserError
from stackwise.host.registry import blaming
from stackwise.machine.placement import Placement
from stackwise.plan import Plan
from stackwise.planes.data.plane import DataPlane
from stackwise.planes.data.randomness import seed_others
from stackwise.planes.objective import Objective
from stackwise.timeline.streams import step_seed, stream_key


@frozen(kw_only=True)
class Preview:
    """One micro-batch of the first step of a phase."""

    phase: str
    step: int
    task: str
    batch: Batch
    """As the model gets it, on the CPU."""
    rows: Mapping[str, int]
    """Source → its rows, in their order in the batch."""
    of: int
    """Micro-batches of the step; this is the first."""
    codec: TextCodec | None
    """Ids ↔ text; None where no source says what its ids stand for."""
    coded: frozenset[str]
    """Fields that hold ids of that text."""


def previews(plan: Plan) -> Iterator[Preview]:
    """The first step of each phase, every phase reading its sources from their beginning.

    Of the first phase it is what the first step trains on, bit by bit. A later phase will have read further when it is reached.

    Raises:
        DataError: data that cannot be read.
        ProviderError: a component that cannot be built.
    """
    plan = plan.with_tokenizers()
    with blaming(plan.providers):
        for phase in plan.schedule:
            yield from _of_phase(plan, phase)


def _of_phase(plan: Plan, phase: CompiledPhase) -> Iterator[Preview]:
    state, seed = phase.state, plan.experiment.run.seed
    assert state is not None  # a plan's phases are declared
    shop, moment = Workshop(plan), plan.schedule.at(step=phase.start)
    objective = Objective(shop.task)
    objective.enter(state.task)
    objective.apply_values(moment.t)
    with closing(_Reading(shop.data("train", Placement("cpu", "float32")))) as reading, torch.random.fork_rng(devices=[]):
        data = reading.data
        data.enter(state.data, lookahead=objective.lookahead)
        generator = torch.Generator().manual_seed(step_seed(stream_key(seed, "task"), phase.start))
        seed_others(model_seed := step_seed(stream_key(seed, "model"), phase.start))
        torch.manual_seed(model_seed)
        batches = data.batches(moment)
        if objective.uses_model:
            raise UserError(f"task '{state.task.id}' asks the model while it prepares a batch, and a preview has none: run it")
        prepared = objective.task.prepare(batches[0], moment, generator)
        fingerprints = data.fingerprints()
        rows = {name: count["rows"] for name, count in data.ledger().items() if count["rows"]}
    codec, coded = _codec(plan, phase, fingerprints)
    coded |= {field for _, field in objective.task.get_spec().embedded.values()}  # what the embedding takes as it takes tokens
    yield Preview(
        phase=phase.name, step=phase.start, task=state.task.id, batch=prepared, rows=rows, of=len(batches), codec=codec, coded=coded
    )


class _Reading:
    """A data plane that ends when it is closed."""

    def __init__(self, data: DataPlane) -> None:
        self.data = data

    def close(self) -> None:
        self.data.end()


def _codec(plan: Plan, phase: CompiledPhase, fingerprints: Mapping[str, Mapping[str, object]]) -> tuple[TextCodec | None, frozenset[str]]:
    """The codec of the first source that has one, by its tokenizer or of its own, and the fields whose ids it reads."""
    assert phase.state is not None
    for name, part in phase.state.data.sources.items():
        codec: TextCodec | None = None
        if (entry := plan.tokenizers.find(part.id, part.options)) is not None:
            with suppress(UserError):  # a table, or a tokenizer whose library is not here: ids are shown as they are
                codec = part.options.codec_of(entry)
        elif isinstance(part.options, HasTextCodec):
            codec = part.options.text_codec(fingerprints.get(name, {}))
        if codec is not None:
            spec = part.options.to_spec() if hasattr(part.options, "to_spec") else None
            fields = spec.fields.items() if isinstance(spec, BatchSpec) else ()
            bounded = {field for field, each in fields if each.bounds is not None and "time" in each.dims}
            return codec, frozenset({*bounded, "tokens", "targets"})
    return None, frozenset()
