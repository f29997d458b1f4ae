"""Contrastive learning: values by theory, batches that are never split, two views that learn to find each other."""

from __future__ import annotations

from math import exp, log
from typing import Any

import pytest
import torch
from how_many import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_walks import base, drive, machine_of, plan_of, problems_of

import stackwise
from stackwise import TaskSpec, UserError
from stackwise_providers_transformer.contrastive import Contrastive, info_nce
from stackwise_providers_transformer.contrastive_options import ContrastiveOptions


@pytest.mark.parametrize("rows", [2, 7, 64])
def test_vectors_that_tell_nothing_cost_the_logarithm_of_the_batch(rows: int) -> None:
    same = torch.ones(rows, 5)
    assert info_nce(same, same, 0.1).item() / rows == pytest.approx(log(rows), rel=1e-6)


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_orthogonal_pairs_cost_what_is_left_of_the_softmax(temperature: float) -> None:
    rows = torch.eye(6)
    expected = log(1 + 5 * exp(-1 / temperature))
    assert info_nce(rows, 3 * rows, temperature).item() / 6 == pytest.approx(expected, rel=1e-5)


@settings(max_examples=examples(25), deadline=None)
@given(st.integers(2, 6), st.integers(1, 5), st.integers(0, 2**20))
def test_the_loss_is_that_of_loops(rows: int, features: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randn(rows, features, generator=generator, dtype=torch.float64) for _ in range(2))

    def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a * b).sum() / ((a * a).sum().sqrt() * (b * b).sum().sqrt()))

    expected = 0.0
    for i in range(rows):
        there = [exp(cosine(first[i], second[j]) / 0.5) for j in range(rows)]
        back = [exp(cosine(first[j], second[i]) / 0.5) for j in range(rows)]
        expected -= (log(there[i] / sum(there)) + log(back[i] / sum(back))) / 2
    assert info_nce(first, second, 0.5).item() == pytest.approx(expected, rel=1e-9)


def config(**data: Any) -> dict[str, Any]:
    """Two views share five numbers, and have eight each that tell nothing and are larger."""
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(2000, 5, generator=generator)
    x, other = (torch.cat((shared, 2 * torch.randn(2000, 8, generator=generator)), 1) for _ in range(2))
    source = {"use": "data.memory", "arrays": {"features": x, "other_features": other}, "heldout": 0.25}
    return base(
        run={"name": "views", "seed": 3, "horizon": "150 steps", "device": "cpu"},
        task={"use": "transformer.contrastive", "input": "features", "temperature": 0.1},
        data={"sources": {"a": source}, "batch_size": 32, **data},
        model={
            "embedding": {"use": "transformer.features", "categories": False},
            "rack": {"use": "transformer.mlp", "width": 24, "stacks": [{"base": 2}]},
            "head": {"use": "transformer.vector", "vector": 8},
        },
        optimizer={"use": "optim.adamw", "lr": 0.005},
        evaluate={"heldout": {"batches": 3, "batch_size": 32}},
    )


@pytest.mark.parametrize("shape", [{"accumulate": 2}, {"accumulate": {"piecewise": {"values": {"0%": 1, "50%": 4}}}}])
def test_a_step_of_several_micro_batches_is_refused(shape: dict[str, Any]) -> None:
    (problem,) = problems_of(config(**shape))
    assert problem.path == "data.accumulate" and "data.batch_size" in problem.message
    assert problems_of(config(accumulate=1)) == ()


def test_a_budget_that_splits_is_refused_and_one_that_does_not_is_taken() -> None:
    tokens = torch.randint(9, (80, 4), generator=torch.Generator().manual_seed(0))
    source = {"use": "data.memory", "arrays": {"tokens": tokens, "other_tokens": tokens.flip(1)}}
    made = base(
        task={"use": "transformer.contrastive"},
        model={
            "embedding": {"use": "transformer.token", "vocab": 9},
            "rack": {"use": "transformer.decoder", "width": 8, "heads": 2, "stacks": [{"base": 1}]},
            "head": {"use": "transformer.vector", "vector": 4},
        },
    )

    def shaped(rows: int) -> dict[str, Any]:
        return {**made, "data": {"sources": {"a": source}, "batch_size": rows, "seq_len": 4, "step_tokens": 32}}

    (problem,) = problems_of(shaped(4))
    assert problem.path == "data.step_tokens" and "batch_size to 8" in problem.message
    assert len(plan_of(shaped(8)).schedule.phases) == 1


def test_two_views_learn_to_find_each_other() -> None:
    metrics = [event.metrics for event in drive(machine_of(config())) if isinstance(event, stackwise.Evaluated)]
    assert metrics[0]["accuracy"] < 0.4
    assert metrics[-1]["accuracy"] > 0.9 and metrics[-1]["loss"] < log(32) / 4


def test_what_cannot_be_told_apart_is_refused() -> None:
    task, moment = Contrastive(ContrastiveOptions(input="features", views="same")), stackwise.PhaseSchedule.single(steps=1).at(step=0)
    prepared = task.prepare({"features": torch.ones(3, 2)}, moment, torch.Generator())
    assert prepared["features"].shape == (6, 2)
    with pytest.raises(UserError, match="batch_size"):
        task.prepare({"features": torch.ones(1, 2)}, moment, torch.Generator())
    pair = Contrastive(ContrastiveOptions())
    rows = {"tokens": torch.ones(2, 3), "other_tokens": torch.ones(2, 3), "mask": torch.ones(2, 3, dtype=torch.bool)}
    with pytest.raises(UserError, match="other_mask"):
        pair.prepare(rows, moment, torch.Generator())
    with pytest.raises(ValueError, match="rows"):
        TaskSpec(batch={}, inputs={}, outputs={}, couples="columns")  # type: ignore[arg-type]
