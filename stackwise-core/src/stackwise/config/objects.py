"""Python dicts and objects → nodes: the same tree as YAML gives, whose leaves may be anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import Any

from attrs import frozen

from stackwise.config.nodes import KeyPath, Node, describe
from stackwise.config.reader import MAX_DEPTH
from stackwise.contracts.components import Built
from stackwise.errors import ConfigError, Position, Problem
from stackwise.timeline.duration import Duration

IN_CODE = Position("<config>")
"""The position of everything written in Python."""


@frozen(init=False)
class Phase:
    """A named segment of the timeline, in code: `Phase("deep", until="80%", model={"rack": {"stacks": [{"base": 6}]}})`.

    Args:
        name: letters, digits, `_` and `-`.
        until: where it ends, counted from the start of the run, or the map of `until.stalls`; the last phase may leave it out.
        deltas: what it changes: `task`, `data`, `model`, `optimizer`, and how it is entered, `enter`.
    """

    name: str
    deltas: Mapping[str, Any]

    def __init__(self, name: str, **deltas: Any) -> None:
        self.__attrs_init__(name, deltas)


def sample(deltas: Callable[[float], Mapping[str, Any]], at: Sequence[str]) -> list[Phase]:
    """A curriculum given as a function of run time, as phases: `phases=sample(lambda t: {"data": {"seq_len": ...}}, at=["0%", "50%"])`.

    The function is called once per instant; its result holds until the next, so these phases are planned, logged and resumed
    like any others.

    Args:
        deltas: run time in [0, 1) → what is declared from there on (`task`, `data`, `model`, `optimizer`, `enter`).
        at: instants as shares of the run (`["0%", "25%", "50%"]`), in order, the first 0%.

    Raises:
        ConfigError: instants that are not shares, out of order, or not from 0% on; a function that returns no map.
    """
    shares = [Duration.parse(instant) for instant in at]
    values = [share.value for share in shares]
    ordered = sorted(set(values)) == values and values[:1] == [0] and values[-1] < 1
    if not ordered or any(share.unit != "fraction" for share in shares):
        message = f"{list(at)} are not instants to sample at: shares of the run below 100%, each later than the one before, the first 0%"
        raise ConfigError([Problem(message, "phases", IN_CODE)])
    phases = []
    for i, share in enumerate(shares):
        delta = deltas(float(share.value))
        if not isinstance(delta, Mapping) or "until" in delta:
            message = f"the curriculum gives {describe(delta)} at {share}: a map of deltas without `until`"
            raise ConfigError([Problem(message, "phases", IN_CODE)])
        until = {"until": str(at[i + 1])} if i + 1 < len(at) else {}
        phases.append(Phase(f"part-{i}", **until, **delta))
    return phases


def read_object(value: Mapping[str, Any]) -> Node:
    """Read a config written in Python.

    Raises:
        ConfigError: keys that are not text, numbers that are not finite, nesting without end, two phases of one name.
    """
    problems: list[Problem] = []
    node = _node(value, (), problems)
    if problems:
        raise ConfigError(problems)
    return node


def _node(value: Any, path: KeyPath, problems: list[Problem]) -> Node:
    if len(path) > MAX_DEPTH:
        problems.append(Problem(f"nested more than {MAX_DEPTH} deep", ".".join(path), IN_CODE))
        return Node("scalar", None, IN_CODE)
    if isinstance(value, list | tuple) and path == ("phases",):
        value = _phases(value, problems)
    elif isinstance(value, Phase):
        value = value.deltas
    plane = path[2:] if path[:1] == ("phases",) else path
    if plane == ("data",) and not (value is None or isinstance(value, Mapping | bool | int | float | str)):
        return Node("map", {"sources": Node("map", {"data": _part(value)}, IN_CODE)}, IN_CODE)
    if plane == ("model",) and not (value is None or isinstance(value, Mapping | bool | int | float | str | list | tuple)):
        return Node("map", {"module": _part(value)}, IN_CODE)
    if isinstance(value, Built):
        return _part(value)
    if isinstance(value, Mapping):
        entries = dict(_keyed(value, path, problems))
        options = _part(entries.pop("use")).value if isinstance(entries.get("use"), Built) else {}
        return Node("map", {**options, **{key: _node(entry, (*path, key), problems) for key, entry in entries.items()}}, IN_CODE)
    if value is None or isinstance(value, bool | int | str):
        return Node("scalar", value, IN_CODE)
    if isinstance(value, float):
        if not isfinite(value):
            problems.append(Problem(f"{value} is not finite: give a finite number", ".".join(path), IN_CODE))
        return Node("scalar", float(value), IN_CODE)
    if isinstance(value, list | tuple) and not _is_source(plane):
        return Node("list", tuple(_node(entry, (*path, str(i)), problems) for i, entry in enumerate(value)), IN_CODE)
    return Node("object", value, IN_CODE)


def _part(value: Any) -> Node:
    """A component given in code; the options of a `Built` become keys beside its `use`, so that a phase can change one of them."""
    if not isinstance(value, Built):
        return Node("object", value, IN_CODE)
    options = {key: Node("object", entry, IN_CODE) for key, entry in value.options.items()}
    return Node("map", {"use": Node("object", value, IN_CODE), **options}, IN_CODE)


def _is_source(path: KeyPath) -> bool:
    """Whether a list at `path` is a stream of batches rather than config."""
    return path[-2:-1] == ("sources",) and (path[:-2] == ("data",) or (len(path) == 4 and path[0] == "evaluate"))


def _keyed(value: Mapping[Any, Any], path: KeyPath, problems: list[Problem]) -> list[tuple[str, Any]]:
    entries: dict[str, Any] = {}
    for key, entry in value.items():
        name = str(key) if type(key) is int else key
        if not isinstance(name, str):
            problems.append(Problem(f"the key {describe(key)} is not text", ".".join(path), IN_CODE))
        elif name in entries:
            problems.append(Problem(f"the key '{name}' is given twice, as a number and as text: keep one", ".".join(path), IN_CODE))
        else:
            entries[name] = entry
    return list(entries.items())


def _phases(value: list[Any] | tuple[Any, ...], problems: list[Problem]) -> dict[str, Any]:
    phases: dict[str, Any] = {}
    for entry in value:
        if not isinstance(entry, Phase):
            problems.append(
                Problem(f"{describe(entry)} is not a phase: a list of phases holds Phase(name, until=...) objects", "phases", IN_CODE)
            )
        elif entry.name in phases:
            problems.append(Problem(f"two phases are named '{entry.name}': every phase has a name of its own", "phases", IN_CODE))
        else:
            phases[entry.name] = entry.deltas
    return phases
