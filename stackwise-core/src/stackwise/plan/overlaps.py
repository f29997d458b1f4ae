"""What an evaluation and training both read, as far as it is known before the run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import attrs

from stackwise.config import EvaluateConfig
from stackwise.contracts.specs import Reading
from stackwise.errors import Problem
from stackwise.plan.copies import Copies
from stackwise.plan.junctions.join import Joined
from stackwise.plan.parts import Draft


def overlap(config: EvaluateConfig, sources: Mapping[str, Draft], joined: Iterable[Joined]) -> Problem | None:
    """A problem for the first data that a source of an evaluation reads and one of training as well, in any phase; None if none are known.

    A file that is a copy of one that training reads counts as that one, where the evaluation has sources of its own.

    Args:
        config: the evaluation.
        sources: those that it reads, its own or training's.
        joined: the drafts of all phases.
    """
    own = config.sources is not None
    trained: dict[tuple[object, object], list[tuple[str, Reading]]] = defaultdict(list)
    for name, draft in {id(draft): (name, draft) for each in joined for name, draft in each.drafts.sources.items()}.values():
        for reading in draft.readings("train", False):
            trained[reading.data, reading.key].append((name, reading))
    copies = Copies(reading.data for readings in trained.values() for _, reading in readings) if own else Copies(())
    for name, draft in sources.items():
        for reading in sorted(draft.readings(config.name, own), key=lambda each: each.data):
            for data in (reading.data, *copies.of(reading.data)):
                there = attrs.evolve(reading, data=data)
                if other := next((by for by, read in trained.get((data, reading.key), ()) if read.meets(there)), None):
                    copy = f", which holds what {data} holds," if data != reading.data else ""
                    fix = "hold out the same share in both, give it other data, or say `training_rows: true`"
                    message = f"it would read rows of {reading.data}{copy} that training reads as well (source '{other}'): {fix}"
                    return Problem(message, f"evaluate.{config.name}" + (f".sources.{name}" if own else ""))
    return None
