"""A compiled clock as a checkpoint keeps it, exactly: its steps ran by it, whatever a later config declares."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from itertools import pairwise
from typing import Any

from stackwise.plan.extents import SHAPE_KEYS
from stackwise.storage.codec import typed
from stackwise.timeline.clock import Clock, Piece
from stackwise.timeline.duration import Duration

_PIECE = {"start": int, "before": Mapping[str, str], "rate": Mapping[str, str], "values": Mapping[str, int | None]}


def clock_as_json(clock: Clock) -> dict[str, Any]:
    """Horizon, boundaries and pieces; fractions as text."""
    horizon = clock.horizon
    return {
        "horizon": [str(horizon.value), horizon.unit, horizon.source],
        "starts": list(clock.starts),
        "pieces": [
            {"start": p.start, "before": _as_texts(p.before), "rate": _as_texts(p.rate), "values": dict(p.values)} for p in clock.pieces
        ],
    }


def clock_from_json(document: Mapping[str, Any]) -> Clock:
    """The clock that `clock_as_json` described.

    Raises:
        KeyError, ValueError: a field is missing, is of another type, or says what no clock does.
    """
    value, unit, source = document["horizon"]
    horizon = Duration(Fraction(typed(value, str, "horizon")), typed(unit, str, "unit"), typed(source, str | None, "source"))
    starts = typed(document["starts"], tuple[int, ...], "starts")
    pieces = tuple(_piece(typed(piece, dict[str, Any], "pieces"), f"pieces.{i}") for i, piece in enumerate(document["pieces"]))
    if len(starts) < 2 or starts[0] != 0 or any(later <= earlier for earlier, later in pairwise(starts)):
        raise ValueError(f"starts are {list(starts)}: phases begin at 0 and one after the other")
    begins = [piece.start for piece in pieces]
    if not begins or begins[0] != 0 or begins != sorted(set(begins)) or horizon.value <= 0:
        raise ValueError(f"pieces begin at {begins} of a horizon of {horizon.value}: they begin at 0 and one after the other")
    return Clock(horizon, starts, pieces)


def _piece(document: Mapping[str, Any], name: str) -> Piece:
    fields = {key: typed(document[key], wanted, f"{name}.{key}") for key, wanted in _PIECE.items()}
    if fields["values"].keys() != {*SHAPE_KEYS}:
        raise ValueError(f"{name}.values has {sorted(fields['values'])}, where {', '.join(SHAPE_KEYS)} belong")
    if wrong := [key for key, value in fields["values"].items() if value is not None and value < 1]:
        raise ValueError(f"{name}.values.{wrong[0]} is {fields['values'][wrong[0]]}: the rows and positions of a step are 1 or more")
    return Piece(fields["start"], _as_fractions(fields["before"]), _as_fractions(fields["rate"]), fields["values"])


def _as_texts(amounts: Mapping[str, Fraction]) -> dict[str, str]:
    return {measure: str(amount) for measure, amount in amounts.items()}


def _as_fractions(texts: Mapping[str, str]) -> dict[str, Fraction]:
    return {measure: Fraction(text) for measure, text in texts.items()}
