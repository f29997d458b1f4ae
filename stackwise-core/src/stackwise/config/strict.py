"""Strict conversion of plain values to types, with cattrs: it coerces nothing and reports every mistake with its path.

An int is accepted as a float. A float is not an int, a bool is not a number, and text is not a list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from math import isfinite
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

import attrs
from cattrs import Converter
from cattrs.errors import BaseValidationError, IterableValidationError, IterableValidationNote
from cattrs.gen import make_dict_structure_fn, override

from stackwise.config.faults import NotAMap, faults_of
from stackwise.config.nodes import describe
from stackwise.contracts.options import broken_rule, config_key, read_stacks
from stackwise.errors import UserError, did_you_mean
from stackwise.timeline.duration import Duration
from stackwise.timeline.provided import ProvidedSchedule
from stackwise.timeline.schedules import TAGS, Constant, Over, Piecewise, Schedule

MISTAKES: Final = (ValueError, UserError, BaseValidationError)
"""The errors of `convert` for a wrong value."""


_SCALARS = (int, float, str, bool)


def convert(value: Any, wanted: Any) -> Any:
    """`value` as an instance of the type `wanted`.

    Raises:
        ValueError, UserError, BaseValidationError: `MISTAKES`; `faults_of` lists them.
    """
    return _CONVERTER.structure(value, wanted)


def _whole(value: Any, _: object) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"{describe(value)} is not a whole number{_unquote(value)}")
    if not -(2**63) <= int(value) < 2**63:
        raise ValueError(f"{describe(value)} is too large: whole numbers have 64 bits")
    return int(value)


def _number(value: Any, _: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{describe(value)} is not a number{_unquote(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = float("inf")
    if not isfinite(number):
        raise ValueError(f"{describe(value)} is not a finite number")
    return number


def _unquote(value: Any) -> str:
    if not isinstance(value, str):
        return ""
    try:
        number = float(value)
    except ValueError:
        return ""
    return " but text: write it without quotes and underscores" if isfinite(number) else ": give a finite one"


def _text(value: Any, _: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{describe(value)} is not text: write it in quotes if it is meant as text")
    return value


def _truth(value: Any, _: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{describe(value)} is neither true nor false")
    return value


def _nothing(value: Any, _: object) -> None:
    if value is not None:
        raise ValueError(f"{describe(value)} is not null")


def _literal(value: Any, wanted: Any) -> Any:
    choices = get_args(wanted)
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        near = did_you_mean(value, [c for c in choices if isinstance(c, str)]) if isinstance(value, str) else ""
        raise ValueError(f"{describe(value)} is none of {', '.join(map(describe, choices))}{near if 'did you mean' in near else ''}")
    return value


def _union(value: Any, wanted: Any) -> Any:
    arms = get_args(wanted)
    if value is None and NoneType in arms:
        return None
    arms = tuple(arm for arm in arms if arm is not NoneType and not (isinstance(value, Mapping) and _is_scalar(arm)))
    if not isinstance(value, Mapping) and any(map(_is_scalar, arms)):
        arms = tuple(arm for arm in arms if not attrs.has(_shape(arm)) or isinstance(value, arm))  # a group is written as a map
    exact = [arm for arm in arms if isinstance(arm, type) and type(value) is arm]
    errors: list[Exception] = []
    for arm in exact or arms:
        try:
            return convert(value, arm)
        except MISTAKES as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if not errors:
        raise ValueError(f"{describe(value)} is a map, where a single value is wanted")
    messages = [fault.message for error in errors for fault in faults_of(error)]
    raise ValueError("; ".join(dict.fromkeys(messages)))


def _is_scalar(arm: Any) -> bool:
    return arm in _SCALARS or get_origin(arm) is Literal


def _each(entries: Iterable[tuple[str, Any, Any]]) -> list[Any]:
    """Convert every (key, value, type), collecting the mistakes with their keys."""
    results: list[Any] = []
    errors: list[Exception] = []
    for key, value, wanted in entries:
        try:
            results.append(convert(value, wanted))
        except MISTAKES as error:
            error.add_note(IterableValidationNote("", key, wanted))
            errors.append(error)
    if errors:
        raise IterableValidationError("some entries do not fit", errors, list)
    return results


def _sequence(value: Any, wanted: Any) -> Any:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{describe(value)} is not a list: write [{describe(value) if isinstance(value, str | int | float) else '…'}]")
    make = tuple if get_origin(wanted) in (tuple, Sequence) or wanted is tuple else list
    arms = get_args(wanted) or (Any, ...)
    if make is tuple and get_origin(wanted) is tuple and arms[-1] is not Ellipsis:
        if len(arms) != len(value):
            raise ValueError(f"{describe(value)} has {len(value)} entries: exactly {len(arms)} are wanted")
        return tuple(_each((str(i), entry, arm) for i, (entry, arm) in enumerate(zip(value, arms, strict=True))))
    return make(_each((str(i), entry, arms[0]) for i, entry in enumerate(value)))


def _mapping(value: Any, wanted: Any) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise NotAMap(f"{describe(value)} is not a map")
    key_type, entry_type = get_args(wanted) or (Any, Any)
    keys = _each((str(key), key, key_type) for key in value)
    return dict(zip(keys, _each((str(key), entry, entry_type) for key, entry in value.items()), strict=True))


def _duration(value: Any, _: object) -> Duration:
    return Duration.parse(value)


def _schedule(value: Any, _: object) -> Schedule:
    if not isinstance(value, Mapping):
        if hasattr(value, "compile") and hasattr(value, "over"):
            own: Schedule = value
            return own
        return Constant(value=_number(value, float))
    if "use" in value:
        return _provided(value)
    if len(value) != 1:
        raise ValueError(f"a schedule is a number, a map with one tag ({', '.join(TAGS)}), or `use` and the options of a component")
    tag, inner = next(iter(value.items()))
    if tag not in TAGS:
        raise ValueError(f"'{tag}' is not a schedule{did_you_mean(str(tag), TAGS)}")
    try:
        schedule: Schedule = convert(inner, TAGS[tag])
        if isinstance(schedule, Piecewise):
            _instants(schedule)
    except MISTAKES as error:
        error.add_note(IterableValidationNote("", tag, Schedule))
        raise
    return schedule


def _provided(value: Mapping[str, Any]) -> Schedule:
    """A component by its id; what it takes is checked when it is planned."""
    own = {key: inner for key, inner in value.items() if key not in ("use", "over")}
    use, over = _each([("use", value["use"], str), ("over", value.get("over", "run"), Over)])
    return ProvidedSchedule(use=use, options=own, over=over)


def _instants(schedule: Piecewise) -> None:
    if not schedule.values:
        raise ValueError("a piecewise schedule has at least one instant: `values: {0%: 1.0, 50%: 0.5}`")
    try:
        _each((at, at, Duration) for at in schedule.values)
    except BaseValidationError as error:
        error.add_note(IterableValidationNote("", "values", Piecewise))
        raise


def _instance(value: Any, wanted: Any) -> Any:
    """Any other type accepts only its own instances."""
    kind = _shape(wanted)
    unchecked = not isinstance(kind, type) or getattr(kind, "_is_protocol", False) or kind is object
    if unchecked or isinstance(value, kind):
        return value
    raise ValueError(f"{describe(value)} is not of type {kind.__name__}")


def _attribute(attribute: attrs.Attribute[Any], value: Any, wanted: Any) -> Any:
    rules = attribute.metadata
    if rules.get("stacks"):
        return read_stacks(value)
    if value is None and (rules.get("dimension") or rules.get("follows_task")):
        return None
    result = convert(value, wanted)
    rule: Callable[[Any], str | None] | None = rules.get("rule")
    broken = broken_rule(attribute, result) or (rule(result) if rule else None)
    if broken is not None:
        raise ValueError(broken)
    return result


def _attrs_class(wanted: Any, _: Converter) -> Callable[[Any, Any], Any]:
    attrs.resolve_types(wanted)
    overrides = {a.name: override(rename=config_key(a), struct_hook=partial(_attribute, a)) for a in attrs.fields(wanted) if a.init}
    make = make_dict_structure_fn(
        wanted,
        _CONVERTER,
        _cattrs_forbid_extra_keys=True,
        _cattrs_detailed_validation=True,
        **overrides,  # type: ignore[arg-type]  # cattrs' own keywords have other types
    )

    def structure(value: Any, _: Any) -> Any:
        if isinstance(value, wanted):
            return value
        if not isinstance(value, Mapping):
            keys = ", ".join(config_key(a) for a in attrs.fields(wanted) if a.init)
            raise NotAMap(f"{describe(value)} is not a map with the keys {keys}")
        return make(value, wanted)

    return structure


def _strict_converter() -> Converter:
    """Hooks for every type that options may have; if several predicates match, the last registered wins."""
    converter = Converter(detailed_validation=True, forbid_extra_keys=True)
    converter.register_structure_hook_func(lambda wanted: True, _instance)
    converter.register_structure_hook_factory(lambda wanted: attrs.has(_shape(wanted)), _attrs_class)
    predicates: list[tuple[Callable[[Any], bool], Callable[[Any, Any], Any]]] = [
        (lambda wanted: wanted is Any, lambda value, _: value),
        (lambda wanted: _shape(wanted) in (list, tuple, Sequence), _sequence),
        (lambda wanted: _shape(wanted) in (dict, Mapping), _mapping),
        (lambda wanted: _shape(wanted) in (Union, UnionType), _union),
        (lambda wanted: _shape(wanted) is Literal, _literal),
        (lambda wanted: _shape(wanted) is Annotated, lambda value, wanted: convert(value, wanted.__origin__)),
        (lambda wanted: wanted is Schedule, _schedule),
    ]
    for fits, hook in predicates:
        converter.register_structure_hook_func(fits, hook)
    exact: dict[Any, Callable[[Any, Any], Any]] = {
        int: _whole,
        float: _number,
        str: _text,
        bool: _truth,
        NoneType: _nothing,
        Duration: _duration,
    }
    for wanted, hook in exact.items():
        converter.register_structure_hook(wanted, hook)
    return converter


def _shape(wanted: Any) -> Any:
    return get_origin(wanted) or wanted


_CONVERTER = _strict_converter()
