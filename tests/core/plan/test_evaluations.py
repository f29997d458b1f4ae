"""An evaluation reads the same data at every instant, so its data must serve the task of every phase in which it runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_walks import base, memory, plan_of, problems_of

import stackwise
from stackwise import Evaluated

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


OWN = {"pairs": {**PAIRS, "arrays": {name: field + 1 for name, field in FIELDS.items()}}}
TEXT = {"more": memory(1)}


def evaluated(declared: dict[str, Any]) -> list[tuple[str, str, int]]:
    machine = stackwise.assemble(plan_of(config(declared)))
    return [(event.name, event.phase, event.step) for event in machine.train() if isinstance(event, Evaluated)]


def test_an_evaluation_that_runs_in_some_phases_need_serve_their_tasks_alone() -> None:
    """Of 12 steps the first 6 are of language; at the boundary it would run on both sides."""
    declared = {
        "before": {"batches": 1, "at": ["0%", "5 steps"]},
        "text": {"batches": 1, "at": ["25%"], "sources": TEXT},
        "pairs": {"batches": 1, "at": ["7 steps", "100%"], "sources": OWN},
    }
    assert evaluated(declared) == [
        ("before", "language", 0),
        ("text", "language", 3),
        ("before", "language", 5),
        ("pairs", "preference", 7),
        ("pairs", "preference", 12),
    ]
    unserved = {each.name: each.unserved for each in plan_of(config(declared)).evaluations}
    assert unserved == {
        "before": {"transformer.preference"},
        "text": {"transformer.preference"},
        "pairs": {"transformer.causal-lm"},
    }


@pytest.mark.parametrize(
    ("evaluation", "path"),
    [
        ({"at": ["50%"]}, "evaluate.odd"),
        ({"at": ["100%"]}, "evaluate.odd"),
        ({"at": ["5 steps", "7 steps"]}, "evaluate.odd"),
        ({"at": ["6 steps"], "sources": OWN}, "evaluate.odd.sources"),
        ({"at": ["9 steps"], "sources": TEXT}, "evaluate.odd.sources"),
    ],
)
def test_one_that_runs_where_it_does_not_serve_is_refused(evaluation: dict[str, Any], path: str) -> None:
    assert {problem.path for problem in problems_of(config({"odd": {"batches": 1, **evaluation}}))} == {path}


def test_where_a_phase_may_end_early_an_evaluation_may_run_in_any() -> None:
    declared = config({"early": {"batches": 1, "at": ["1 steps", "2 steps"]}})
    assert problems_of(declared) == ()
    declared["phases"]["language"]["until"] = {"stalls": "early.loss", "at_most": "50%"}
    assert "evaluate.early" in {problem.path for problem in problems_of(declared)}
