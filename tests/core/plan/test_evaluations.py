"""An evaluation reads the same data at every instant, so its data must serve the task of every phase."""

from __future__ import annotations

from typing import Any

import torch
from tiny_walks import base, memory, problems_of

FIELDS = {name: torch.ones(8, 6, dtype=torch.int64) for name in ("chosen", "rejected")} | {"prefix": torch.ones(8, dtype=torch.int64)}
PAIRS = {"use": "data.memory", "arrays": FIELDS, "heldout": 0.25}
PREFERENCE = {"task": {"use": "transformer.preference"}, "data": {"sources": {"replace": {"pairs": PAIRS}}}}


def config(evaluate: dict[str, Any]) -> dict[str, Any]:
    """Plain tokens, then pairs."""
    phases = {"language": {"until": "50%"}, "preference": PREFERENCE}
    return base(data={"sources": {"a": memory(0, heldout=0.25)}, "batch_size": 2, "seq_len": 4}, phases=phases, evaluate=evaluate)


def test_inherited_sources_that_do_not_serve_a_later_task_are_refused_by_the_plan() -> None:
    (problem,) = problems_of(config({"heldout": {"batches": 1}}))
    assert problem.path == "evaluate.heldout" and "'chosen'" in problem.message and "transformer.preference" in problem.message


def test_without_the_evaluation_the_same_phases_are_planned() -> None:
    assert problems_of(config({})) == ()
