"""Keys whose declared value differs between two phases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stackwise.config import PhaseConfig
from stackwise.curriculum.transitions import Change


def changes_between(before: PhaseConfig, after: PhaseConfig) -> tuple[Change, ...]:
    """Every key whose declared value differs, in the order of the config."""
    old, new = _declared(before), _declared(after)
    return tuple(
        Change(path=path, before=old.get(path, "–"), after=new.get(path, "–"))
        for path in dict.fromkeys([*old, *new])
        if old.get(path) != new.get(path)
    )


def _declared(phase: PhaseConfig) -> dict[str, str]:
    """The declared state by dotted key; where a phase ends and how it is entered are not part of it."""
    return {path: value for path, value in _flat(phase.tree.printable()).items() if path.split(".")[0] not in ("until", "enter")}


def _flat(value: Any, path: str = "") -> dict[str, str]:
    if isinstance(value, Mapping):
        return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{path}.{key}" if path else str(key)).items()}
    if isinstance(value, list):
        return {path: "[" + ", ".join(_compact(entry) for entry in value) + "]"}
    return {path: _compact(value)}


def _compact(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_compact(inner)}" for key, inner in value.items())
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
