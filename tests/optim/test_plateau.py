"""The plateau reaction against torch's ReduceLROnPlateau."""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from small_parameters import CONTEXT

from stackwise import UserError
from stackwise_providers_optim.plateau import Plateau, PlateauOptions, build_plateau

METRIC = "heldout.loss"
VALUES = st.lists(
    st.one_of(st.floats(0.0078125, 4, width=32), st.sampled_from([1.0, 1.0001, 2.0, float("nan"), float("inf")])), max_size=60
)


def plateau(**options: Any) -> Plateau:
    return build_plateau(PlateauOptions(metric=METRIC, **options), CONTEXT)


@example(values=[1.0] * 30, mode="min", factor=0.5, patience=1, threshold=0.1, cooldown=2, lowest=0.001)
@given(
    values=VALUES,
    mode=st.sampled_from(["min", "max"]),
    factor=st.floats(0.05, 0.95),
    patience=st.integers(0, 4),
    threshold=st.sampled_from([0.0, 1e-4, 0.1]),
    cooldown=st.integers(0, 4),
    lowest=st.sampled_from([0.0, 0.001, 0.2]),
)
def test_the_factor_is_the_learning_rate_of_torchs_scheduler(
    values: list[float], mode: Literal["min", "max"], factor: float, patience: int, threshold: float, cooldown: int, lowest: float
) -> None:
    ours = plateau(mode=mode, factor=factor, patience=patience, threshold=threshold, cooldown=cooldown, lowest=lowest)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode=mode, factor=factor, patience=patience, threshold=threshold, cooldown=cooldown, min_lr=lowest, eps=0
    )
    for step, value in enumerate(values):
        before = ours.factor
        why = ours.watch(step, {METRIC: value})
        theirs.step(value)
        assert ours.factor == optimizer.param_groups[0]["lr"]
        assert (why is not None) == (ours.factor != before)
        assert lowest <= ours.factor <= 1


@given(values=VALUES, cut=st.integers(0, 60))
def test_a_saved_one_goes_on_as_if_it_had_not_stopped(values: list[float], cut: int) -> None:
    options: dict[str, Any] = {"patience": 1, "cooldown": 2, "factor": 0.5}
    whole, first, second = plateau(**options), plateau(**options), plateau(**options)
    for step, value in enumerate(values[:cut]):
        assert first.watch(step, {METRIC: value}) == whole.watch(step, {METRIC: value})
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for step, value in enumerate(values[cut:]):
        assert second.watch(step, {METRIC: value}) == whole.watch(step, {METRIC: value})
        assert second.factor == whole.factor


def test_it_says_why() -> None:
    watched = plateau(patience=1, factor=0.5)
    assert [watched.watch(k, {METRIC: 2.0}) for k in range(2)] == [None, None]
    assert watched.watch(2, {METRIC: 2.5}) == "heldout.loss has not improved on 2 for 2 values: learning rate × 0.5"


def test_other_numbers_pass_by() -> None:
    watched = plateau(patience=0)
    for step in range(5):
        assert watched.watch(step, {"train.loss": 1.0}) is None
    assert watched.state_dict()["best"] is None and watched.factor == 1


def test_a_metric_that_its_evaluation_does_not_have_is_refused() -> None:
    with pytest.raises(UserError, match=r"there is no metric 'heldout\.loss': write one of heldout\.losses"):
        plateau().watch(0, {"heldout.losses": 1.0})


def test_improvement_below_zero_is_improvement() -> None:
    """A share of the best value's size, so that a log-likelihood of −1 is improved on by −1.2 and not by −0.95."""
    watched = plateau(patience=0, threshold=0.1)
    assert watched.watch(0, {METRIC: -1.0}) is None
    assert watched.watch(1, {METRIC: -1.2}) is None
    assert watched.watch(2, {METRIC: -1.15}) is not None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"metric": "loss"}, "metric: 'loss' is not a metric"),
        ({"metric": METRIC, "factor": 1.0}, "factor: 1.0 is not below 1"),
        ({"metric": METRIC, "mode": "least"}, "mode"),
        ({"metric": METRIC, "patience": -1}, "patience"),
        ({"metric": METRIC, "lowest": 1.5}, "lowest"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        PlateauOptions(**options)


def test_the_envelope_is_known_before_the_run() -> None:
    assert PlateauOptions(metric=METRIC, lowest=0.05).envelope() == (0.05, 1.0)
