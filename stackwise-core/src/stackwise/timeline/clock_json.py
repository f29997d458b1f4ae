"""A compiled clock to JSON and back, exactly: checkpoints keep the clock their steps ran by."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from stackwise.timeline.clock import Clock, Piece
from stackwise.timeline.duration import Duration


def clock_as_json(clock: Clock) -> dict[str, Any]:
    """Horizon, boundaries and pieces; fractions as strings."""
    horizon = clock.horizon
    return {
        "horizon": [str(horizon.value), horizon.unit, horizon.source],
        "starts": list(clock.starts),
        "pieces": [
            {"start": p.start, "before": _as_texts(p.before), "rate": _as_texts(p.rate), "values": dict(p.values)} for p in clock.pieces
        ],
    }


def clock_from_json(document: Mapping[str, Any]) -> Clock:
    """The clock that `clock_as_json` described."""
    value, unit, source = document["horizon"]
    pieces = [Piece(p["start"], _as_fractions(p["before"]), _as_fractions(p["rate"]), p["values"]) for p in document["pieces"]]
    return Clock(Duration(Fraction(value), unit, source), tuple(document["starts"]), tuple(pieces))


def _as_texts(amounts: Mapping[str, Fraction]) -> dict[str, str]:
    return {measure: str(amount) for measure, amount in amounts.items()}


def _as_fractions(texts: Mapping[str, str]) -> dict[str, Fraction]:
    return {measure: Fraction(text) for measure, text in texts.items()}
