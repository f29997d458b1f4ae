"""Options that follow time arrive at what they belong to: all of them at first, and again only when one has changed."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from stackwise.curriculum.parts import Part
from stackwise.errors import ProviderError
from stackwise.planes.followers import Follower
from stackwise.timeline.schedules import Curve, Knot

RISING = Curve((Knot(0.0, 0.0, "hold"), Knot(0.5, 0.0, "linear"), Knot(1.0, 1.0, "hold")))


class Told:
    """What was handed over, in order."""

    def __init__(self) -> None:
        self.all: list[dict[str, float]] = []

    def apply_values(self, values: Mapping[str, float]) -> None:
        self.all.append(dict(values))


def part(**curves: Curve) -> Part:
    return Part(kind="task", id="a.b", curves=curves)


def test_all_values_arrive_at_first_and_again_when_one_has_changed() -> None:
    told = Told()
    follower = Follower(part(rate=RISING, share=Curve.constant(0.25)), told, "it")
    for t in (0.0, 0.25, 0.75, 0.75, 1.0):
        follower.apply(t)
    assert told.all == [{"rate": 0.0, "share": 0.25}, {"rate": 0.5, "share": 0.25}, {"rate": 1.0, "share": 0.25}]
    assert follower.values == {"rate": 1.0, "share": 0.25}


def test_constant_values_arrive_once() -> None:
    told = Told()
    follower = Follower(part(share=Curve.constant(0.25)), told, "it")
    for t in (0.0, 0.5, 1.0):
        follower.apply(t)
    assert told.all == [{"share": 0.25}]


def test_what_was_forgotten_is_handed_over_again_constants_too() -> None:
    told = Told()
    follower = Follower(part(rate=RISING, share=Curve.constant(0.25)), told, "it")
    follower.apply(0.75)
    follower.forget()
    follower.apply(0.75)
    assert told.all == [{"rate": 0.5, "share": 0.25}] * 2


def test_nothing_that_follows_time_needs_no_method_and_something_does() -> None:
    Follower(part(), object(), "the loader").apply(0.5)
    with pytest.raises(ProviderError, match=r"a\.b declares options that follow time \(rate\) but the loader has no apply_values"):
        Follower(part(rate=RISING), object(), "the loader")
