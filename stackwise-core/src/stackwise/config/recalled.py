"""A saved config that names parts given in code: read again beside the experiment that has them, refused without it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from attrs import define, field

from stackwise.config.experiment import Experiment
from stackwise.config.loading import experiment
from stackwise.config.nodes import KeyPath, Node, describe
from stackwise.config.reader import read_yaml
from stackwise.contracts.components import Built
from stackwise.errors import ConfigError, Problem

_GIVEN = ("Built(", "<")
_PLACES = {"use", "task", "data", "model", "embedding", "rack", "head", "module", "optimizer"}
"""Keys whose text can only describe a component; in options such a text may be meant, as `<pad>` is."""


@define
class _Problems:
    described: list[Problem] = field(factory=list)
    """Parts given in code that are not there, each with its description as message."""
    changed: list[Problem] = field(factory=list)


def recalled(saved: Mapping[str, Any], now: Experiment) -> Experiment:
    """The experiment that a run directory's config describes, with the objects of another one wherever both describe them alike.

    Args:
        saved: of an experiment, with a description in the place of every object.
        now: the experiment that a run is to go on with.

    Raises:
        ConfigError: a part given in code is another one now, or is not there.
    """
    problems = _Problems()
    read = _entries(saved, now.tree, (), problems)
    if problems.described or problems.changed:
        raise ConfigError([*([_together(problems.described)] if problems.described else []), *problems.changed])
    return experiment(read)


def refuse_described(read: Experiment) -> None:
    """Refuse a run directory's config in which components are described, as a file cannot hold those that were given in code.

    Raises:
        ConfigError: these components, and none of the mistakes that follow from them.
    """
    if described := [Problem(str(node.value), ".".join(path), node.position) for path, node in _described(read.tree, ())]:
        raise ConfigError([_together(described)])


def names_its_parts(read: Experiment) -> bool:
    """Whether a file can hold this experiment: no part of it was given in code."""
    return all(node.kind != "object" for _, node in _parts(read.tree, ()))


def _together(parts: Sequence[Problem]) -> Problem:
    """One sentence for all parts that were given in code, each with its description as message: one thing mends them."""
    first, *others = parts
    beside = f", and so were {', '.join(each.path for each in others)}" if others else ""
    fix = "a file holds no more than a name: go on in the program that has them, by stackwise.run(experiment, output=…, resume='must')"
    return Problem(f"{first.message} was given in code{beside}; {fix}", first.path, first.where)


def _described(node: Node, path: KeyPath) -> Iterator[tuple[KeyPath, Node]]:
    return ((where, part) for where, part in _parts(node, path) if isinstance(part.value, str) and part.value.startswith(_GIVEN))


def _parts(node: Node, path: KeyPath) -> Iterator[tuple[KeyPath, Node]]:
    """Everything that stands where a part does."""
    for key, child in node.entries.items():
        if key in _PLACES or path[-1:] == ("sources",):
            yield (*path, key), child
        yield from _parts(child, (*path, key))


def _entries(saved: Mapping[str, Any], now: Node | None, path: KeyPath, problems: _Problems) -> dict[str, Any]:
    children = {key: now.child(key) if now is not None else None for key in saved}
    read = {
        key: _value(value, children[key], (*path, key), problems) for key, value in saved.items() if not _is_option(saved, key, children)
    }
    if isinstance(built := read.get("use"), Built):
        options = {key: _option(value, children[key]) for key, value in saved.items() if key not in read}
        read["use"] = Built(built.make, built.spec, **options)
    return read


def _is_option(saved: Mapping[str, Any], key: str, children: Mapping[str, Node | None]) -> bool:
    """Whether a key beside a `Built` is one of the options that it was given, which are described as objects are."""
    if key == "use" or not str(saved.get("use", "")).startswith("Built(") or not isinstance(saved[key], str):
        return False
    child = children[key]
    return child is None or child.kind == "object"


def _option(saved: str, now: Node | None) -> Any:
    """The object that is described so, else what the description says, else the description itself."""
    if now is not None and describe(now.value) == saved:
        return now.value
    try:
        return read_yaml(saved, "<saved>").plain()
    except ConfigError:
        return saved


def _value(saved: Any, now: Node | None, path: KeyPath, problems: _Problems) -> Any:
    if isinstance(saved, Mapping):
        return _entries(saved, now, path, problems)
    if isinstance(saved, list):
        children = [now.child(str(i)) if now is not None else None for i in range(len(saved))]
        return [_value(entry, child, (*path, str(i)), problems) for i, (entry, child) in enumerate(zip(saved, children, strict=True))]
    if now is not None and now.kind == "object" and describe(now.value) == saved:
        return now.value
    if isinstance(saved, str) and (saved.startswith(_GIVEN) or (now is not None and now.kind == "object")):
        if now is not None and now.value == saved:
            problems.described.append(Problem(saved, ".".join(path)))
        else:
            present = "not there" if now is None else describe(now.value)
            message = f"was {saved} for the steps that are done, and is {present}: put it back, or begin a new run"
            problems.changed.append(Problem(message, ".".join(path)))
    return saved
